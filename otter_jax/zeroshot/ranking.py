"""Ranks the classes of a set for each of its images, some images at a time, on all devices."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int, PyTree
from ml_collections import ConfigDict

from otter_jax import mesh as meshes
from otter_jax.errors import UserError
from otter_jax.run import batches
from otter_jax.run.embedder import Embedder
from otter_jax.zeroshot import retrieval
from otter_jax.zeroshot.measures import Measure
from otter_jax.zeroshot.sets import EvalSet
from otter_jax.zeroshot.standing import check_finite, standing_among, standing_of_each

BEST = 5  # classes that are kept of each image


class Ranked(NamedTuple):
    """Holds how the classes stand to the labels of each image, and which are best.

    Attributes:
      above, level: for each label, the classes with a larger, and with the same cosine.
      finite: whether all cosines of the image are.
      best, cosines: the classes with the largest cosines, of equal ones the first of the bank.
      images: the embeddings, where they are kept.
    """

    above: Int[np.ndarray, "N M"]
    level: Int[np.ndarray, "N M"]
    finite: Bool[np.ndarray, "N"]
    best: Int[np.ndarray, "N K"]
    cosines: Float[np.ndarray, "N K"]
    images: Float[np.ndarray, "N D"] | None


class Seen(NamedTuple):
    """Holds what some weights make of a set.

    Attributes:
      s, weights, bank: the set, the name of the weights, one vector per class of the set.
      valid: whether an image of the set was readable.
      counted: whether it has a label, too; all that follows is of these images alone.
      labels: their class numbers, padded with -1.
      ranked: how the classes stand to them.
    """

    s: EvalSet
    weights: str
    bank: Float[np.ndarray, "C D"]
    valid: Bool[np.ndarray, "N"]
    counted: Bool[np.ndarray, "N"]
    labels: Int[np.ndarray, "n M"]
    ranked: Ranked


class Ranker:
    """Compares embeddings, in programs that are compiled once for each size of a bank.

    All processes make the same calls, and get the whole results. Of the scores, images x classes,
    no more than those of a batch exist at once.
    """

    def __init__(self, config: ConfigDict, embedder: Embedder, mesh: Mesh):
        """`embedder` embeds batches of config.eval.batch_size images."""
        self._config, self._embedder, self._mesh = config, embedder, mesh
        whole, rows = meshes.shardings(mesh)
        self._place = jax.jit(place, in_shardings=(whole, rows, rows), out_shardings=whole)
        self._among = jax.jit(among, in_shardings=(whole, rows, rows), out_shardings=whole)
        self._whole = jax.jit(lambda x: x, in_shardings=rows, out_shardings=whole)

    def rank(
        self,
        s: EvalSet,
        weights: str,
        variables: PyTree,
        bank: Float[np.ndarray, "C D"],
        *,
        keep_images: bool,
        check_stop: Callable[[], None],
        advance: Callable[[int], None],
    ) -> Seen:
        """Ranks the classes of a bank for all images of a set; keeps their embeddings if asked.

        Raises UserError if no labelled image is readable, or some embedding is not finite.
        """
        on_devices = meshes.put_whole(bank, self._mesh)

        def rank_batch(image, labels):
            embedded = self._embedder.image_batch(variables, image)
            found = self._place(on_devices, embedded, labels)
            return found | ({"images": self._whole(embedded)} if keep_images else {})

        found, valid = batches.over_all(
            self._config, s.source, self._mesh, rank_batch, s.labels,
            check_stop=check_stop, advance=advance,
        )  # fmt: skip
        counted = valid & (s.labels >= 0).any(axis=1)
        if not counted.any():
            raise UserError(
                f"eval.sets.{s.name}: no labelled image of {s.source.name} is readable."
            )
        what = f"eval.sets.{s.name}: embeddings of images ({weights})"
        check_finite(found["finite"] | ~valid, s.source.key, what)
        ranked = Ranked(**{"images": None} | {name: x[counted] for name, x in found.items()})
        return Seen(s, weights, bank, valid, counted, s.labels[counted], ranked)

    def embed(
        self, variables: PyTree, s: EvalSet, check_stop: Callable[[], None]
    ) -> tuple[Float[np.ndarray, "N D"], Bool[np.ndarray, "N"]]:
        """Embeds all images of a set; returns the embeddings, and which were readable."""

        def embed_batch(image, labels):
            return self._whole(self._embedder.image_batch(variables, image))

        return batches.over_all(
            self._config, s.source, self._mesh, embed_batch, s.labels, check_stop=check_stop
        )

    def retrieve(
        self,
        seen: Seen,
        pairs: retrieval.Pairs,
        check_stop: Callable[[], None],
    ) -> dict[str, Measure]:
        """Returns text@K and image@K of a set of pairs, whose texts are the classes of the bank."""
        pictures, texts = seen.ranked.images[pairs.records], seen.bank[pairs.texts]
        own_texts, own_pictures = pairs.texts[pairs.text], pairs.picture
        to_text = self._in_blocks(pictures, seen.bank, (own_pictures, own_texts), check_stop)
        to_image = self._in_blocks(texts, pictures, (pairs.text, own_pictures), check_stop)
        return retrieval.recalls(pairs, to_text, to_image, len(seen.bank))

    def _in_blocks(self, queries, answers, right, check_stop):
        return retrieval.in_blocks(self._among, queries, answers, right, self._mesh, check_stop)


def scores(bank: Float[jax.Array, "C D"], rows: Float[jax.Array, "B D"]) -> Float[jax.Array, "B C"]:
    """Returns the cosines of some rows and a bank, both of unit length, in full float32."""
    return jnp.matmul(rows, bank.T, precision=jax.lax.Precision.HIGHEST)


def place(bank: jax.Array, img: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
    """Returns the fields of `Ranked` for a batch of embeddings and their labels."""
    cosines = scores(bank, img)
    above, level = standing_of_each(cosines, labels)
    values, best = jax.lax.top_k(cosines, min(BEST, len(bank)))
    finite = jnp.isfinite(cosines).all(axis=1)
    return {"above": above, "level": level, "finite": finite, "best": best, "cosines": values}


def among(answers: jax.Array, queries: jax.Array, right: jax.Array) -> jax.Array:
    """Returns the standings of a batch of queries, whose right answers are marked."""
    return standing_among(scores(answers, queries), right)
