"""Reads the records of a set in batches; a batch depends on (seed, step) alone.

The order is index arithmetic: one endless permutation of the record numbers, new in every epoch (or
several of them, mixed), cut into global batches; a process takes its own rows of each. No state is
kept, so a restart needs only the step, and no number of processes, workers or threads changes what
a global batch holds. An epoch's last batch is filled up from the next epoch.
"""

import dataclasses
import os
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import grain
import numpy as np
from absl import flags
from jaxtyping import UInt8

from otter_jax.data import images, worker
from otter_jax.data.source import Source
from otter_jax.errors import UserError

Batch = dict[str, np.ndarray]

_PATIENCE = 100  # consecutive unreadable records before the set is called broken
_BUFFER = 2 << 30  # bytes of finished batches that may wait


@runtime_checkable
class Annotation(Protocol):
    """Makes what stands beside an image in a row: caption tokens or a label.

    There are four: `captions.Tokenizer`, `packing.Packed`, `readings.Readings` and `Labels`.

    Attributes:
      feature: name of the feature of a record that it reads.
    """

    feature: str

    def row(self, record: dict[str, Any]) -> Batch:
        """Returns the entries of one row, by name."""

    def collate(self, batch: Batch) -> Batch:
        """Turns this process's stacked rows into the batch that a step takes."""

    def shapes(self, batch_size: int) -> dict[str, tuple[tuple[int, ...], Any]]:
        """Returns shape and dtype of each of its entries in a global batch."""


@dataclasses.dataclass(frozen=True)
class Labels:
    """Annotates a row with the number of its class: label int32."""

    feature: str = "label"

    def row(self, record: dict[str, Any]) -> Batch:
        """Returns the record's label."""
        return {"label": np.array(record[self.feature], np.int32)}

    def collate(self, batch: Batch) -> Batch:
        """Returns the batch as it is."""
        return batch

    def shapes(self, batch_size: int) -> dict[str, tuple[tuple[int, ...], Any]]:
        """Returns shape and dtype of a global batch's labels."""
        return {"label": ((batch_size,), np.int32)}


def train_batches(
    source: Source,
    annotation: Annotation,
    *,
    seed: int,
    batch_size: int,
    image_size: int,
    resize: int,
    flip: bool,
    min_area: float = 0.0,
    jitter: float = 0.0,
    exif: str = "apply",
    start_step: int,
    process: int = 0,
    num_processes: int = 1,
    num_workers: int = 0,
) -> Iterator[Batch]:
    """Yields this process's b = batch_size / num_processes rows of the global batches of training.

    A batch is image uint8 [b, S, S, 3], replaced int32 [b], and what `annotation` makes: token_ids
    int32 [b, L] and mask bool [b, L] of captions (`packing` has others), or label int32 [b]. The
    stream has no end. Crops and flips are drawn by the row's number in the whole stream, so they
    differ between epochs, but do not depend on the number of processes. A record whose image cannot
    be read is replaced by the next one that can, and `replaced` holds its number (-1 elsewhere):
    `source.key(number)` names it.

    Args:
      source: the records; each needs an image and the feature that `annotation` reads.
      annotation: a tokenizer, packed or not, `Readings` of captions, or `Labels`.
      seed: of the order and the crops.
      batch_size: over all processes.
      image_size: S, pixels.
      resize: pixels of the shorter side before the crop, at least S.
      flip: mirror half of the images.
      min_area: 0 takes a window of the resized image; more takes a part of the image as it is, of
        at least this share of its area, and resizes that (`images.random_resized_crop`).
      jitter: strength of changes of brightness, contrast and saturation, 0 to 1 (`images.jitter`).
      exif: "apply" turns pictures upright by their EXIF orientation, "ignore" leaves them.
      start_step: number of the first global batch; skipping those before costs nothing.
      process: which of them this is, from 0.
      num_processes: processes that share a global batch.
      num_workers: worker processes that decode; 0 decodes in threads of this one. A 500 x 400 JPEG
        takes a core about 3 ms (docs/data.md); a worker takes some ten seconds to start.

    Raises:
      UserError: no captions or labels, sizes that do not fit, or 100 unreadable images in a row.
    """
    source.check_has(annotation.feature)
    rows = _rows_per_process(source, batch_size, num_processes, image_size, resize, exif)
    if batch_size > len(source):
        raise UserError(
            f"batch_size={batch_size} is more than {source.name} has records, {len(source)}: a "
            f"batch would hold an image twice. Make it {len(source)} at most."
        )
    if not (0 <= min_area <= 1 and 0 <= jitter <= 1):
        raise UserError(f"min_area={min_area}, jitter={jitter}: each from 0 to 1.")
    load = _TrainRow(source, annotation, image_size, resize, flip, min_area, jitter, exif)
    ds = source.order(seed).random_map(load).batch(rows, drop_remainder=True)
    ds = ds.map(annotation.collate)
    return _run(ds[process::num_processes][start_step:], rows * image_size**2 * 3, num_workers)


def eval_batches(
    source: Source,
    *,
    batch_size: int,
    image_size: int,
    resize: int,
    exif: str = "apply",
    process: int = 0,
    num_processes: int = 1,
) -> Iterator[Batch]:
    """Yields this process's rows of every record once, in order, cropped in the middle.

    A batch is image uint8 [b, S, S, 3], index int32 [b] and valid bool [b], b = batch_size /
    num_processes. Every process gets equally many batches: rows past the end have index -1 and are
    not valid. An image that cannot be read is not valid either. The pixels of both are 0. `exif` is
    that of `train_batches`.

    Raises UserError for sizes that do not fit, or a source without images.
    """
    rows = _rows_per_process(source, batch_size, num_processes, image_size, resize, exif)
    ds = _all_rows(_EvalRow(source, image_size, resize, exif), batch_size).batch(rows)
    return _run(ds[process::num_processes], rows * image_size**2 * 3, num_workers=0)


def view_batches(
    source: Source, *, batch_size: int, image_size: int, resize: int, flip: bool, view: int
) -> Iterator[Batch]:
    """Yields every record once, as `eval_batches` does, but cropped at random as in training.

    Crops, and which half is mirrored if `flip` is set, are drawn by `view` and a record's number.
    Raises UserError as `eval_batches` does.
    """
    rows = _rows_per_process(source, batch_size, 1, image_size, resize, exif="apply")
    row = _ViewRow(source, image_size, resize, exif="apply", flip=flip, view=view)
    return _run(_all_rows(row, rows).batch(rows), rows * image_size**2 * 3, num_workers=0)


def _all_rows(row: "_EvalRow", batch_size: int) -> grain.MapDataset:
    """Returns every record's row, in order; rows past the last record fill the last batch."""
    steps = -(-len(row.source) // batch_size)
    return grain.MapDataset.range(steps * batch_size).map(row)


@dataclasses.dataclass(frozen=True)
class _TrainRow(grain.transforms.RandomMap):
    """Loads the row of a record: its image, cropped at random, and its annotation."""

    source: Source
    annotation: Annotation
    image_size: int
    resize: int
    flip: bool
    min_area: float
    jitter: float
    exif: str

    def random_map(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        for number in range(index, index + _PATIENCE):
            record = self.source[number % len(self.source)]
            try:
                decoded = images.decode(record["image"], exif=self.exif)
                break
            except images.UnreadableImage as error:
                reason = error
        else:
            raise UserError(
                f"{self.source.name}: from record {index} ({self.source.key(index)}) on, "
                f"{_PATIENCE} images in a row cannot be read, the last for {reason}. "
                "Is this the right data?"
            )
        if self.min_area:
            pixels = images.random_resized_crop(decoded, self.image_size, self.min_area, rng)
        else:
            pixels = images.random_crop(decoded, self.resize, self.image_size, rng)
        if self.flip:
            pixels = _mirrored(pixels, rng)
        if self.jitter:
            pixels = images.jitter(pixels, self.jitter, rng)
        replaced = np.int32(-1 if number == index else index)
        return {"image": pixels, "replaced": replaced} | self.annotation.row(record)


@dataclasses.dataclass(frozen=True)
class _EvalRow(grain.transforms.Map):
    """Loads the row of a record for evaluation: zeros past the last record, or if unreadable."""

    source: Source
    image_size: int
    resize: int
    exif: str

    def map(self, index: int) -> dict[str, Any]:
        row = {
            "image": np.zeros((self.image_size, self.image_size, 3), np.uint8),
            "index": np.int32(-1),
            "valid": np.bool_(False),
        }
        if index >= len(self.source):
            return row
        row["index"] = np.int32(index)
        try:
            decoded = images.decode(self.source[index]["image"], exif=self.exif)
        except images.UnreadableImage:
            return row
        return {
            **row,
            "image": self.crop(decoded, index),
            "valid": np.bool_(True),
        }

    def crop(self, decoded: images.Pixels, index: int) -> UInt8[np.ndarray, "S S 3"]:
        """Returns the middle of a record's image."""
        return images.center_crop(decoded, self.resize, self.image_size)


@dataclasses.dataclass(frozen=True)
class _ViewRow(_EvalRow):
    """Loads the row of a record as `_EvalRow` does, cropped and mirrored at random."""

    flip: bool
    view: int

    def crop(self, decoded: images.Pixels, index: int) -> UInt8[np.ndarray, "S S 3"]:
        rng = np.random.default_rng([self.view, index])
        pixels = images.random_crop(decoded, self.resize, self.image_size, rng)
        return _mirrored(pixels, rng) if self.flip else pixels


def _mirrored(pixels: images.Pixels, rng: np.random.Generator) -> images.Pixels:
    """Returns a picture, mirrored with a probability of one half."""
    return np.ascontiguousarray(pixels[:, ::-1]) if rng.random() < 0.5 else pixels


def _rows_per_process(
    source: Source, batch_size: int, num_processes: int, image_size: int, resize: int, exif: str
) -> int:
    """Returns the rows of a batch for each process. Raises UserError for values that do not fit."""
    source.check_has("image")
    if batch_size < 1 or batch_size % num_processes:
        raise UserError(f"batch_size={batch_size} does not divide over {num_processes} processes.")
    if resize < image_size:
        raise UserError(
            f"resize={resize} is less than image_size={image_size}: there is nothing to crop from."
        )
    if exif not in images.EXIF:
        raise UserError(f"data.exif={exif!r}: one of {', '.join(images.EXIF)}.")
    return batch_size // num_processes


def _run(ds: grain.MapDataset, batch_bytes: int, num_workers: int) -> Iterator[Batch]:
    """Yields batches, made ahead by threads or worker processes until the iterator is closed."""
    threads = 1 if num_workers else max(1, min(os.cpu_count() or 1, _BUFFER // batch_bytes, 16))
    ahead = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads + 1)
    batches = ds.to_iter_dataset(ahead)
    if num_workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain's workers copy parsed flags; here are none
        options = grain.MultiprocessingOptions(num_workers=num_workers)
        batches = batches.mp_prefetch(options, worker_init_fn=worker.begin)
    iterator = iter(batches)
    try:
        for batch in iterator:
            # A worker's arrays lie in memory shared with it, so they are copied to outlive it.
            yield {name: np.array(array) for name, array in batch.items()} if num_workers else batch
    finally:
        iterator.close()
