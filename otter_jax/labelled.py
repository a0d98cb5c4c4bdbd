"""Labelled pictures: what a network is transferred to, and how well it names them."""

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import rich.console
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PyTree, UInt8
from ml_collections import ConfigDict

from otter_jax import feed, gates
from otter_jax import mesh as meshes
from otter_jax.data import store
from otter_jax.errors import UserError

KS = (1, 3)  # of top-K
REMEDY = (
    "data.train and data.validation name the splits; to divide one: "
    "--config.data.train='train[20%:]' --config.data.validation='train[:20%]'."
)


@dataclasses.dataclass(frozen=True)
class Labelled:
    """A split, the class of each record, and the classes' names."""

    source: store.Source
    labels: Int[np.ndarray, "N"]
    names: tuple[str, ...]

    @classmethod
    def open(cls, config: ConfigDict, which: str) -> "Labelled":
        """The "train" or "validation" of config.data.

        Raises UserError if there is none, it has no classes, or a record has none.
        """
        data = config.data
        source = store.open_dataset(data.dir, data.name, data[which], remedy=REMEDY)
        if data.label not in source.features or source.classes(data.label) is None:
            raise UserError(
                f"data.label={data.label!r} is not a feature of {source.name} that holds classes; "
                f"it has {', '.join(source.features)}."
            )
        values = [np.asarray(source[i][data.label]) for i in range(len(source))]
        if any(value.ndim for value in values):
            raise UserError(f"data.label={data.label!r} of {source.name} holds several classes.")
        labels = np.array(values, np.int32)
        missing = np.flatnonzero(labels < 0)
        if len(missing):
            some = ", ".join(source.key(int(i)) for i in missing[:3])
            raise UserError(
                f"{len(missing)} records of {source.name} have no label, such as {some}: one can "
                "neither train nor validate on them. Take a split that is labelled."
            )
        return cls(source, labels, tuple(source.classes(data.label)))


def open_splits(config: ConfigDict) -> tuple[Labelled, Labelled]:
    """What is trained on, and what is validated on.

    Raises UserError if a record is in both, or a class in one alone.
    """
    data = config.data
    if not data.name:
        raise UserError(
            "data.name is missing: the name of a set, for a folder of your own a new one with "
            "--config.data.folder=DIR."
        )
    feed.ensure(data.name, data.dir, folder=data.folder)
    train, validation = Labelled.open(config, "train"), Labelled.open(config, "validation")
    both = store.in_both(data.dir, data.name, data.train, data.validation)
    if both:
        raise UserError(
            f"{both:,} of the {len(validation.labels):,} pictures of "
            f"data.validation={data.validation!r} are in data.train={data.train!r}, too. {REMEDY}"
        )
    counts = np.bincount(train.labels, minlength=len(train.names))
    there = np.bincount(validation.labels, minlength=len(validation.names))
    for what, split, empty in (
        ("train", data.train, (counts == 0) & (there > 0)),
        ("validation", data.validation, (there == 0) & (counts > 0)),
    ):
        if empty.any():
            some = ", ".join(train.names[i] for i in np.flatnonzero(empty)[:5])
            raise UserError(
                f"data.{what}={split!r} has no picture of {empty.sum()} of the {len(train.names)} "
                f"classes that the other split has, such as {some}. Take a larger one, or leave "
                "these classes out of both."
            )
    return train, validation


def normaliser(config: ConfigDict) -> Callable[[UInt8[Array, "B H W 3"]], Float[Array, "B H W 3"]]:
    """From pixels 0..255 to what the network is used to."""
    mean, std = (jnp.array(list(config.model[key]), jnp.float32) for key in ("mean", "std"))
    return lambda image: (image.astype(jnp.float32) - mean) / std


class Validation:
    """Measures a network's top-K accuracy on a labelled split."""

    def __init__(
        self,
        config: ConfigDict,
        model: nn.Module,
        data: Labelled,
        mesh: Mesh,
        console: rich.console.Console,
    ):
        self.data, self.mesh = data, mesh
        self._config, self._console = config, console
        self._named = False
        whole, rows = meshes.shardings(mesh)
        normalise = normaliser(config)

        def ranked(params, batch_stats, image):
            variables = {"params": gates.fold(params), "batch_stats": batch_stats}
            logits = model.apply(variables, normalise(image), train=False)
            return jax.lax.top_k(logits, min(max(KS), logits.shape[1]))[1]

        shardings = (whole, whole, rows)
        self._ranked = jax.jit(ranked, in_shardings=shardings, out_shardings=whole)

    def __call__(
        self, params: PyTree, batch_stats: PyTree, check: Callable[[], None] = lambda: None
    ) -> dict[str, float]:
        """{"top-1", "top-3"} of the gated network; unreadable images are left out, and named.

        `check` is called once a batch, and may raise to end it.
        """
        ranked, ok = feed.over_all(
            self._config,
            self.data.source,
            self.mesh,
            functools.partial(self._ranked, params, batch_stats),
            check=check,
        )
        if not self._named:
            feed.name_unreadable(self.data.source, ok, self._console)
            self._named = True
        hits = ranked == self.data.labels[:, None]
        if not ok.any():
            raise UserError(f"No image of {self.data.source.name} is readable.")
        return {f"top-{k}": float(hits[ok, :k].any(axis=1).mean()) for k in KS}
