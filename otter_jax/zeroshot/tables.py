"""Tables of results: on the console, and as CSV for other programs."""

import csv
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import rich.box
import rich.table
from jaxtyping import Float, Int

from otter_jax.files import written_whole
from otter_jax.zeroshot import retrieval
from otter_jax.zeroshot.hits import KS
from otter_jax.zeroshot.ranking import Ranked, Seen

BASELINES = ("frequency", "chance")
OF_CLASSES = (*(f"FH@{k}" for k in KS), "recall@1", "mAP")
OF_PAIRS = tuple(f"{what}@{k}" for what in (retrieval.TEXT, retrieval.IMAGE) for k in retrieval.KS)
RETRIEVAL = "a text found by its image, an image by its text"

Result = Mapping[str, Any]  # of a set: metrics of each weights by their name, intervals, about


class Row(NamedTuple):
    """Holds a row of a table: what it is of, its metrics, and their intervals where it has some."""

    name: str
    metrics: Mapping[str, float]
    intervals: Mapping[str, Sequence[float]]


def rows_of(result: Result, weights: Sequence[str], before: str = "") -> list[Row]:
    """Returns the rows of a set's weights and probes; `before` is put before their names."""
    intervals = result.get("intervals", {})
    names = [*(name for name in weights if name in result), *result.get("probes", {})]
    return [Row(before + name, result[name], intervals.get(name, {})) for name in names]


def baselines_of(result: Result) -> list[Row]:
    """Returns the rows of a set's baselines."""
    return [Row(name, result[name], {}) for name in BASELINES if name in result]


def tables(
    step: str, results: Mapping[str, Result], rows: Mapping[str, Sequence[Row]], *, best: bool
) -> Iterator[rich.table.Table]:
    """Yields a table of the rows of each set, with its baselines beneath, and one of retrieval.

    With `best`, the largest value of each column has a star, baselines apart.
    """
    for name, result in results.items():
        sizes = f"{result['images']:,} images, {result['classes']:,} classes"
        titles = (f"{name}, {step}: {sizes}", f"{name}: {RETRIEVAL}")
        for title, known in zip(titles, (OF_CLASSES, OF_PAIRS), strict=True):
            columns = [c for c in known if any(c in row.metrics for row in rows[name])]
            if columns:
                baselines = [r for r in baselines_of(result) if {*columns} & r.metrics.keys()]
                yield _table(title, columns, rows[name], baselines, best)


def _table(
    title: str, columns: Sequence[str], rows: Sequence[Row], baselines: Sequence[Row], best: bool
) -> rich.table.Table:
    out = rich.table.Table(
        title=title, title_justify="left", box=rich.box.SIMPLE_HEAD,
        show_edge=False, pad_edge=False, collapse_padding=True,
    )  # fmt: skip
    out.add_column("weights", overflow="fold", min_width=len("frequency"))
    for column in columns:
        out.add_column(column, justify="right", no_wrap=True)
    largest = {c: max(row.metrics.get(c, 0.0) for row in rows) for c in columns}
    for row in rows:
        stars = [best and row.metrics.get(c) == largest[c] for c in columns]
        cells = [_cell(row, c, star) for c, star in zip(columns, stars, strict=True)]
        out.add_row(row.name, *cells)
    for row in baselines:
        out.add_row(row.name, *(_cell(row, c, False) for c in columns), style="dim")
    return out


def _cell(row: Row, metric: str, star: bool) -> str:
    """Returns a value, with its interval beneath."""
    if metric not in row.metrics:
        return ""
    text = f"{row.metrics[metric]:.3f}{'*' * star}"
    if metric in row.intervals:
        low, high = (f"{end:.3f}".removeprefix("0") for end in row.intervals[metric])
        text += f"\n{low}-{high}"
    return text


def write_results(path: pathlib.Path, results: Mapping[str, Result], weights: Sequence[str]):
    """Writes all metrics as CSV, a line for each set, weights and metric."""
    heading = ("set", "weights", "metric", "value", "low", "high", "images", "classes")
    lines = (
        (name, row.name, metric, value, *row.intervals.get(metric, ("", "")), *sizes)
        for name, result in results.items()
        for sizes in [(result["images"], result["classes"])]
        for row in (*rows_of(result, weights), *baselines_of(result))
        for metric, value in row.metrics.items()
    )
    write_csv(path, heading, lines)


def stem_of(name: str, weights: str) -> str:
    """Returns how the names of the files of a set's images and classes begin."""
    return re.sub(r"[^\w.-]", "_", f"{name}.{weights}")


def write_seen(
    folder: pathlib.Path, seen: Seen, numbers: Mapping[str, Float[np.ndarray, "C"]]
) -> None:
    """Writes the tables of all images and, with these numbers of each, of all classes of a set."""
    name = stem_of(seen.s.name, seen.weights)
    source, images = seen.s.source, np.flatnonzero(seen.counted)
    keys = (source.key(int(number)) for number in images)
    write_predictions(folder / f"{name}.images.csv", keys, seen.s.names, seen.labels, seen.ranked)
    if numbers:
        best = seen.ranked.best[:, 0]
        write_classes(folder / f"{name}.classes.csv", seen.s.names, seen.labels, best, numbers)


def write_classes(
    path: pathlib.Path,
    names: Sequence[str],
    labels: Int[np.ndarray, "N M"],
    best: Int[np.ndarray, "N"],
    numbers: Mapping[str, Float[np.ndarray, "C"]],
) -> None:
    """Writes a line of CSV for each class that has images: how many, and its numbers.

    `best` is the class with the largest cosine of each image; the wrong one that is most often so
    among a class's images stands in `taken_for`, and how often in `times`.
    """
    there = labels >= 0
    images = np.bincount(labels[there], minlength=len(names))
    wrong = there & ~(labels == best[:, None]).any(axis=1, keepdims=True)
    rows, columns = np.nonzero(wrong)
    pairs = np.stack([labels[rows, columns], best[rows]], axis=1)
    pairs, counts = np.unique(pairs, axis=0, return_counts=True)
    taken = {}  # the last one of a class is the most frequent
    for number in np.argsort(counts, kind="stable"):
        taken[int(pairs[number, 0])] = names[pairs[number, 1]], int(counts[number])
    lines = (
        (names[c], images[c], *(f"{n[c]:.4f}" for n in numbers.values()), *taken.get(c, ("", 0)))
        for c in np.flatnonzero(images).tolist()
    )
    write_csv(path, ("class", "images", *numbers, "taken_for", "times"), lines)


def write_predictions(
    path: pathlib.Path,
    keys: Iterable[str],
    names: Sequence[str],
    labels: Int[np.ndarray, "N M"],
    ranked: Ranked,
) -> None:
    """Writes a line of CSV for each image: its labels, and its best classes with their cosines.

    `place` is 1 where no class has a larger cosine than a label of the image. Several labels stand
    in one field, divided by " | ".
    """
    numbers = range(1, ranked.best.shape[1] + 1)
    best = [f"{what}_{number}" for number in numbers for what in ("class", "cosine")]
    rows = zip(keys, labels, ranked.above.min(axis=1), ranked.best, ranked.cosines, strict=True)

    def lines():
        for key, own, above, classes, cosines in rows:
            pairs = zip(classes, cosines, strict=True)
            found = [each for c, cosine in pairs for each in (names[c], f"{cosine:.4f}")]
            yield key, " | ".join(names[n] for n in own if n >= 0), above + 1, *found

    write_csv(path, ("image", "labels", "place", *best), lines())


def write_csv(path: pathlib.Path, heading: Sequence[str], lines: Iterable[Sequence[Any]]) -> None:
    """Writes a table, so that a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        written_whole(path) as scratch,
        scratch.open("w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(heading)
        writer.writerows(lines)
