"""Opens the labelled splits that a transfer trains and validates on."""

import dataclasses
import pathlib
import re

import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict

from otter_jax.data.ensure import ensure
from otter_jax.data.formats import class_folders
from otter_jax.data.repeats import trained_on
from otter_jax.data.source import Source, in_both, open_dataset
from otter_jax.errors import UserError
from otter_jax.run import cluster

REMEDY = (
    "data.train and data.validation name the splits; to divide one: "
    "--config.data.train='train[20%:]' --config.data.validation='train[:20%]'."
)

CLASSES = "label"  # the feature of a set of class folders that holds them


@dataclasses.dataclass(frozen=True)
class Labelled:
    """Holds a split, the label (class number) of each record, and the classes' names."""

    source: Source
    labels: Int[np.ndarray, "N"]
    names: tuple[str, ...]

    @classmethod
    def open(cls, config: ConfigDict, which: str) -> "Labelled":
        """Opens the split config.data.train or config.data.validation; `which` names the key.

        Raises UserError if there is no such split, it has no classes, or a record has no label.
        """
        data = config.data
        source = open_dataset(data.dir, data.name, data[which], remedy=REMEDY)
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
    """Opens the training and the validation split; prints how many pictures both have as copies.

    Raises UserError if a record is in both, or a class in only one of them.
    """
    data = config.data
    if not data.name:
        raise UserError(
            "data.name is missing: the name of a set, for a folder of your own a new one with "
            "--config.data.folder=DIR."
        )
    if data.folder and not (pathlib.Path(data.dir).expanduser() / data.name).exists():
        _check_new(data)
    with cluster.first_before_others():
        ensure(data.name, data.dir, folder=data.folder, exif=data.exif)
    train, validation = Labelled.open(config, "train"), Labelled.open(config, "validation")
    both = in_both(data.dir, data.name, data.train, data.validation)
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
    copies = trained_on(validation.source, train.source)
    if copies:
        print(
            f"{copies:,} of the {len(validation.labels):,} pictures of data.validation="
            f"{data.validation!r} are copies of pictures of data.train={data.train!r}, byte for "
            "byte. They count like any other."
        )
    return train, validation


def _check_new(data: ConfigDict) -> None:
    """Raises UserError if the set that will be made of a folder lacks the label or a split."""
    if data.label != CLASSES:
        raise UserError(
            f"data.label={data.label!r} is not a feature of {data.name} that holds classes: as it "
            f"is made of a folder, they are in {CLASSES!r}."
        )
    there = class_folders.find(data.folder)
    for what, split in (("train", data.train), ("validation", data.validation)):
        for name in re.findall(r"(?:^|\+)\s*([\w-]+)", split):
            if name not in (*there, "all"):  # TFDS's word for all splits
                raise UserError(
                    f"data.{what}={split!r}: {data.folder} has no split {name!r}, it has "
                    f"{', '.join(there)}. {REMEDY}"
                )
