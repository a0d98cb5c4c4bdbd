"""Scores what runs have learned: hits at K in each evaluation set, among all names of a search."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, PyTree

from otter_jax.study.linear import Maps
from otter_jax.study.towers import CachedTowers
from otter_jax.zeroshot import hits
from otter_jax.zeroshot.standing import standing

KS = (1, 5, 10)


class Search(NamedTuple):
    """Holds one question: which of a bank's names do these pictures show?

    Attributes:
      name: such as "seen/name".
      images: features of the pictures that have a label.
      texts: those of the names to search in.
      labels: numbers of the right names, padded with -1.
    """

    name: str
    images: Float[np.ndarray, "N *features"]
    texts: Float[np.ndarray, "C W"]
    labels: Int[np.ndarray, "N M"]

    @property
    def ks(self) -> list[int]:
        """The numbers of best names that hits are counted in."""
        return [k for k in KS if k <= len(self.texts)]

    def baselines(self) -> dict[str, dict[str, float]]:
        """Returns hits at K of chance, and of always answering the most frequent names."""
        count = len(self.texts)
        found = {
            "chance": hits.chance(self.labels, count, self.ks),
            "frequency": hits.frequency(self.labels, count, self.ks),
        }
        return {
            kind: {f"{self.name}@{k}": value for k, value in each.items()}
            for kind, each in found.items()
        }


@functools.partial(jax.jit, static_argnames="model")
def _standings(
    model: CachedTowers, variables: PyTree, images: Any, texts: Any, labels: Any
) -> Int[Any, "R N 4"]:
    """Returns how the names stand to each picture's labels, for runs one after the other."""

    def one(variables):
        img = model.apply(variables, images, method=model.embed_images)
        return _place(img, model.apply(variables, texts, method=model.embed_texts), labels)

    return jax.lax.map(one, variables)


def _place(img: Any, txt: Any, labels: Any) -> Int[Any, "N 4"]:
    # All bits of float32, as in `zeroshot.ranking`: or ranks would depend on the device.
    cosines = jnp.matmul(img, txt.T, precision=jax.lax.Precision.HIGHEST)
    return standing(cosines, labels)


def scores(
    model: CachedTowers, variables: PyTree, searches: Sequence[Search]
) -> list[dict[str, float]]:
    """Returns {"SET/SEARCH@K": hits} for each of some stacked runs' variables.

    Names of equal cosines count as hits by their chance to come first. A run with embeddings that
    are not finite has no scores: {}.
    """
    counts = {
        s.name: np.asarray(_standings(model, variables, s.images, s.texts, s.labels))
        for s in searches
    }
    runs = len(next(iter(counts.values())))
    return [_hits({name: each[i] for name, each in counts.items()}, searches) for i in range(runs)]


def scores_of_maps(maps: Maps, searches: Sequence[Search]) -> dict[str, float]:
    """Returns what `scores` does, for a closed form."""
    counts = {}
    for s in searches:
        img = maps.embed_images(s.images).astype(np.float32)
        txt = maps.embed_texts(s.texts).astype(np.float32)
        counts[s.name] = np.asarray(_place_alone(img, txt, s.labels))
    return _hits(counts, searches)


_place_alone = jax.jit(_place)


def _hits(
    counts: Mapping[str, Int[np.ndarray, "N 4"]], searches: Sequence[Search]
) -> dict[str, float]:
    """Returns the hits of a run from the standings in each search; {} if some are not finite."""
    found = {}
    for s in searches:
        above, level, labels, finite = counts[s.name].T
        if not finite.all():
            return {}
        for k, value in hits.expected_hit(above, level, labels, s.ks).items():
            found[f"{s.name}@{k}"] = round(value, 6)
    return found
