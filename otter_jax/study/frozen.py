"""Computes the features of a set once: what its pictures and captions give before training."""

import contextlib
import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Float, PyTree, Shaped
from ml_collections import ConfigDict

from otter_jax import caches
from otter_jax.data.captions import Tokenizer
from otter_jax.data.pipeline import Batch, eval_batches, view_batches
from otter_jax.data.source import Source
from otter_jax.errors import UserError
from otter_jax.models.efficientnet import EfficientNet
from otter_jax.models.towers import Towers
from otter_jax.objective import Objective
from otter_jax.run import cluster, trained
from otter_jax.weights.tensors import Tell, quiet

ROWS = 64  # pictures or texts at once


class Encoders:
    """Holds both pretrained encoders, and computes what enters their trained parts.

    Attributes:
      enter: the block that training begins with; "" if none is trained.
      resize: pixels of a picture's shorter side before it is cropped.
      digest: of all else that features depend on beside the set.
    """

    def __init__(
        self,
        model: Mapping[str, Any],
        *,
        image_size: int,
        resize: int,
        max_tokens: int,
        enter: str,
        tell: Tell = quiet,
    ):
        """`model` is a config's section; `enter` names the block that training begins with.

        With `enter` "" the image encoder is frozen as a whole. Pictures are cropped to
        `image_size` pixels once their shorter side has `resize`. `tell` is told what the user
        should see. Raises UserError as `weights.load_image` and `weights.load_text` do, and for an
        encoder without such a block.
        """
        objective = dataclasses.asdict(Objective())  # of the temperatures, which are not used
        config = ConfigDict({"model": model, "gates": {"shape": ""}, "objective": objective})
        self.model, variables, folder = trained.fresh(config, key=jax.random.key(0), tell=tell)
        _check_enter(self.model, enter, model["img"]["arch"])
        self._variables = {
            name: {tower: tree[tower] for tower in ("img", "txt") if tower in tree}
            for name, tree in variables.items()
        }
        self._tokenizer = Tokenizer(folder, max_tokens)
        self._sizes = {"image_size": image_size, "resize": resize}
        self.resize, self.enter = resize, enter
        facts = (
            cluster.fingerprint(self._variables), self._tokenizer.digest, image_size, max_tokens,
            enter, tuple(self.model.mean), tuple(self.model.std), repr(self.model.img),
            repr(self.model.txt),
        )  # fmt: skip
        self.digest = hashlib.sha256(repr(facts).encode()).hexdigest()
        self._embed_images = jax.jit(functools.partial(features_of_images, self.model, enter))
        self._embed_texts = jax.jit(functools.partial(features_of_texts, self.model))

    def given(self) -> dict[str, Shaped[np.ndarray, "..."]]:
        """Returns what the trained part of the image tower starts with, by "params/img/..."."""
        if not self.enter:
            return {}
        names = self.model.img.blocks
        before = {"conv_stem", "bn1", *names[: names.index(self.enter)]}
        flat = traverse_util.flatten_dict(self._variables)
        return {
            "/".join(path): np.asarray(leaf)
            for path, leaf in flat.items()
            if path[1] == "img" and path[2] not in before
        }

    def images(self, source: Source) -> Float[np.ndarray, "N *features"]:
        """Returns what each picture gives, cropped in the middle as evaluation does.

        Raises UserError for pictures that cannot be read.
        """
        return self._images(source, eval_batches(source, batch_size=ROWS, **self._sizes))

    def view(self, source: Source, number: int, flip: bool) -> Float[np.ndarray, "N *features"]:
        """Returns what each picture gives in one of its random crops; raises as `images` does."""
        batches = view_batches(source, batch_size=ROWS, view=number, flip=flip, **self._sizes)
        return self._images(source, batches)

    def _images(self, source: Source, batches: Iterator[Batch]) -> Float[np.ndarray, "N *features"]:
        """Returns what the pictures of these batches give."""
        found, wrong = [], []
        with contextlib.closing(batches) as batches:
            for batch in batches:
                found.append(np.asarray(self._embed_images(self._variables, batch["image"])))
                wrong += batch["index"][~batch["valid"] & (batch["index"] >= 0)].tolist()
        if wrong:
            some = ", ".join(source.key(i) for i in wrong[:3])
            raise UserError(
                f"{source.name}: {len(wrong)} pictures cannot be read, such as {some}. Make the "
                "set again without them: otter-jax prepare leaves them out."
            )
        return np.concatenate(found)[: len(source)]

    def texts(self, texts: Sequence[str]) -> Float[np.ndarray, "N W"]:
        """Returns the pooled hidden states of each text; each different text is computed once."""
        different = sorted(set(texts), key=lambda text: (len(text), text))
        number = {text: i for i, text in enumerate(different)}
        found = []
        for start in range(0, len(different), ROWS):
            part = different[start : start + ROWS]
            ids, mask = self._tokenizer.encode([*part, *[""] * (ROWS - len(part))])
            # Few lengths, so few programs: short texts need not be as long as the longest.
            most = int(mask.sum(axis=1).max())
            length = min(-(-most // 8) * 8, self._tokenizer.max_tokens)
            ids, mask = ids[:, :length], mask[:, :length]
            found.append(np.asarray(self._embed_texts(self._variables, ids, mask))[: len(part)])
        return np.concatenate(found)[[number[text] for text in texts]]


def kept_images(
    encoders: Encoders, source: Source, folder: pathlib.Path, dtype: str
) -> Shaped[np.ndarray, "N *features"]:
    """Returns the images' features in `dtype`, from a file in `folder` if they were made before."""
    path = folder / caches.named("images", *_facts(encoders, source, dtype))
    return caches.kept(path, lambda: {"images": encoders.images(source).astype(dtype)})["images"]


def kept_views(
    encoders: Encoders,
    source: Source,
    count: int,
    flip: bool,
    folder: pathlib.Path,
    dtype: str,
    tell: Tell,
) -> Shaped[np.ndarray, "V N *features"]:
    """Returns the features of `count` random crops of each picture, kept as `kept_images` does."""

    def make():
        found = None
        for number in range(count):
            tell(f"{source.name}: random crop {number + 1} of {count} of each picture")
            view = encoders.view(source, number, flip)
            found = np.empty((count, *view.shape), dtype) if found is None else found
            found[number] = view
        return {"views": found}

    path = folder / caches.named("views", *_facts(encoders, source, dtype), count, flip)
    return caches.kept(path, make)["views"]


def _facts(encoders: Encoders, source: Source, dtype: str) -> tuple[Any, ...]:
    """Returns all that the features of a set's pictures depend on."""
    pictures = source.pictures()
    whole = [source[i]["image"] for i in range(len(source))] if pictures is None else pictures
    return encoders.digest, encoders.resize, cluster.fingerprint(whole), len(source), dtype


def kept_texts(
    encoders: Encoders, texts: Sequence[str], folder: pathlib.Path, dtype: str
) -> Float[np.ndarray, "N W"]:
    """Returns the texts' features in `dtype`, from a file in `folder` if they were made before."""
    path = folder / caches.named("texts", encoders.digest, cluster.fingerprint(list(texts)), dtype)
    return caches.kept(path, lambda: {"texts": encoders.texts(texts).astype(dtype)})["texts"]


def features_of_images(model: Towers, enter: str, variables: PyTree, image: Any) -> Any:
    """Returns what pixels give: the encoder's features, or what enters a block."""

    def features(towers, image):
        pixels = (image.astype(jnp.float32) - jnp.array(towers.mean)) / jnp.array(towers.std)
        return towers.img(pixels, train=False)

    found, sown = model.apply(variables, image, method=features, mutable=["intermediates"])
    # What comes after a block that is entered is not computed.
    return sown["intermediates"]["img"][f"{enter}_input"][0] if enter else found


def features_of_texts(model: Towers, variables: PyTree, token_ids: Any, mask: Any) -> Any:
    """Returns the pooled hidden states of texts."""

    def pooled(towers, token_ids, mask):
        return towers.txt.pool(towers.txt(token_ids, mask, train=False), token_ids, mask)

    return model.apply(variables, token_ids, mask, method=pooled)


def _check_enter(model: Towers, enter: str, arch: str) -> None:
    """Raises UserError if the image tower has no block of this name."""
    if not enter:
        return
    if not isinstance(model.img, EfficientNet):
        raise UserError(
            f"trained={enter!r}: of {arch} only the head can be trained on kept features; the "
            'blocks of EfficientNets can. Set trained = "heads", or cached = false.'
        )
    if enter not in model.img.blocks:
        raise UserError(
            f"trained={enter!r}: {arch} has no such block; it has {', '.join(model.img.blocks)}."
        )
