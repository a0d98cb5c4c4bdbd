"""Reads what an evaluation has predicted: its tables of images and classes."""

import csv
import io
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

from otter_jax import files
from otter_jax.report.history import History
from otter_jax.run import directory
from otter_jax.zeroshot import tables

MOST = 1 << 30  # bytes of a table: ImageNet's 50,000 images have 8 MB
WEIGHTS = ("student", "ema")  # the first that has tables is shown
Row = TypeVar("Row")


class Prediction(NamedTuple):
    """Holds the labels of an image, and its best classes with their cosines, best first."""

    key: str
    labels: tuple[str, ...]
    best: list[tuple[str, float]]


class OfClass(NamedTuple):
    """Holds the recall@1 of a class, and which class its images are most often taken for."""

    name: str
    images: int
    recall: float
    taken_for: str
    times: int


class Predicted(NamedTuple):
    """Holds the predictions of some weights on a set after a step."""

    step: int
    weights: str
    images: list[Prediction]
    classes: list[OfClass]


def read(run: History, name: str) -> Predicted | None:
    """Reads the newest tables of the set `name`; None if there are none.

    Damaged ones are left out, and the run's notes say so.
    """
    for step in sorted(run.evaluations, reverse=True):
        folder = directory.results(run.workdir, step).with_suffix("")
        for weights in WEIGHTS:
            stem = folder / tables.stem_of(name, weights)
            images = _rows(run, stem.with_name(f"{stem.name}.images.csv"), _prediction)
            if images:
                classes = _rows(run, stem.with_name(f"{stem.name}.classes.csv"), _of_class)
                return Predicted(step, weights, images, classes)
    return None


def _rows(run: History, path, row_of: Callable[[dict[str, str]], Row]) -> list[Row]:
    try:
        text = files.read_text(path, MOST)
        return [row_of(row) for row in csv.DictReader(io.StringIO(text, newline=""))]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error):
        run.notes.append(f"{path.relative_to(run.workdir)} is damaged and left out.")
        return []


def _prediction(row: dict[str, str]) -> Prediction:
    return Prediction(row["image"], tuple(row["labels"].split(" | ")), list(_best(row)))


def _best(row: dict[str, str]) -> Iterator[tuple[str, float]]:
    yield row["class_1"], float(row["cosine_1"])
    number = 2
    while f"class_{number}" in row:
        yield row[f"class_{number}"], float(row[f"cosine_{number}"])
        number += 1


def _of_class(row: dict[str, str]) -> OfClass:
    recall = float(row["recall@1"])
    return OfClass(row["class"], int(row["images"]), recall, row["taken_for"], int(row["times"]))
