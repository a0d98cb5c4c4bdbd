"""Reads the records of a set in batches; a batch depends on (seed, step) alone.

The order is index arithmetic: one endless permutation of the record numbers, new in every epoch (or
several of them, mixed), cut into global batches; a host takes its own rows of each. No state is
kept, so a restart needs only the step, and no number of hosts, workers or threads changes what a
global batch holds. An epoch's last batch is filled up from the next epoch.
"""

import dataclasses
import os
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import grain
import numpy as np
from absl import flags

from otter_jax.data import images, worker
from otter_jax.data.source import Source
from otter_jax.errors import UserError

Batch = dict[str, np.ndarray]

_PATIENCE = 100  # unreadable records in a row before the set is called broken
_BUFFER = 2 << 30  # bytes of finished batches that may wait


@runtime_checkable
class Annotation(Protocol):
    """Makes what a row has beside its image: `captions.Tokenizer`, `packing.Packed` or `Labels`.

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
    start_step: int,
    host: int = 0,
    num_hosts: int = 1,
    num_workers: int = 0,
) -> Iterator[Batch]:
    """Yields this host's b = batch_size / num_hosts rows of the global batches of training.

    A batch is image uint8 [b, S, S, 3], replaced int32 [b], and what `annotation` makes: token_ids
    int32 [b, L] and mask bool [b, L] of captions (`packing` has others), or label int32 [b]. The
    stream has no end. Crops and flips are drawn by the row's number in the whole stream, so they
    differ from epoch to epoch and not from host to host. A record whose image cannot be read is
    replaced by the next one that can, and `replaced` holds its number (-1 elsewhere):
    `source.key(number)` names it.

    Args:
      source: the records; each needs an image and the feature that `annotation` reads.
      annotation: a tokenizer, packed or not, or `Labels`.
      seed: of the order and the crops.
      batch_size: over all hosts.
      image_size: S, pixels.
      resize: pixels of the shorter side before the crop, at least S.
      flip: mirror half of the images.
      min_area: 0 takes a window of the resized image; more takes a part of the image as it is, of
        at least this share of its area, and resizes that (`images.random_resized_crop`).
      jitter: strength of changes of brightness, contrast and saturation, 0 to 1 (`images.jitter`).
      start_step: number of the first global batch; passing over those before costs nothing.
      host: this process, from 0.
      num_hosts: processes that share a global batch.
      num_workers: processes that decode; 0 is threads of this one. A 500 x 400 JPEG takes about
        3 ms of a core (docs/data.md), a worker some ten seconds to start.

    Raises:
      UserError: no captions or labels, sizes that do not fit, or 100 unreadable images in a row.
    """
    source.check_has(annotation.feature)
    rows = _rows_per_host(source, batch_size, num_hosts, image_size, resize)
    if batch_size > len(source):
        raise UserError(
            f"batch_size={batch_size} is more than {source.name} has records, {len(source)}: a "
            "batch would hold an image twice. Make it smaller."
        )
    if not (0 <= min_area <= 1 and 0 <= jitter <= 1):
        raise UserError(f"min_area={min_area}, jitter={jitter}: each from 0 to 1.")
    load = _TrainRow(source, annotation, image_size, resize, flip, min_area, jitter)
    ds = source.order(seed).random_map(load).batch(rows, drop_remainder=True)
    ds = ds.map(annotation.collate)
    return _run(ds[host::num_hosts][start_step:], rows * image_size**2 * 3, num_workers)


def eval_batches(
    source: Source,
    *,
    batch_size: int,
    image_size: int,
    resize: int,
    host: int = 0,
    num_hosts: int = 1,
) -> Iterator[Batch]:
    """Yields this host's rows of every record once, in order, cropped in the middle.

    A batch is image uint8 [b, S, S, 3], index int32 [b] and valid bool [b], b = batch_size /
    num_hosts. Every host gets the same number of batches: rows past the end have index -1 and are
    not valid. Neither is an image that cannot be read. The pixels of both are 0.

    Raises UserError for sizes that do not fit, or a source without images.
    """
    rows = _rows_per_host(source, batch_size, num_hosts, image_size, resize)
    steps = -(-len(source) // batch_size)
    ds = grain.MapDataset.range(steps * batch_size).map(_EvalRow(source, image_size, resize))
    return _run(ds.batch(rows)[host::num_hosts], rows * image_size**2 * 3, num_workers=0)


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

    def random_map(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        for number in range(index, index + _PATIENCE):
            record = self.source[number % len(self.source)]
            try:
                decoded = images.decode(record["image"])
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
        if self.flip and rng.random() < 0.5:
            pixels = np.ascontiguousarray(pixels[:, ::-1])
        if self.jitter:
            pixels = images.jitter(pixels, self.jitter, rng)
        replaced = np.int32(-1 if number == index else index)
        return {"image": pixels, "replaced": replaced} | self.annotation.row(record)


@dataclasses.dataclass(frozen=True)
class _EvalRow(grain.transforms.Map):
    """Loads the row of a record for evaluation; past the last record, or unreadable: zeros."""

    source: Source
    image_size: int
    resize: int

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
            decoded = images.decode(self.source[index]["image"])
        except images.UnreadableImage:
            return row
        return {
            **row,
            "image": images.center_crop(decoded, self.resize, self.image_size),
            "valid": np.bool_(True),
        }


def _rows_per_host(
    source: Source, batch_size: int, num_hosts: int, image_size: int, resize: int
) -> int:
    """Returns the rows of a batch for each host. Raises UserError for sizes that do not fit."""
    source.check_has("image")
    if batch_size < 1 or batch_size % num_hosts:
        raise UserError(f"batch_size={batch_size} does not divide over {num_hosts} hosts.")
    if resize < image_size:
        raise UserError(
            f"resize={resize} is less than image_size={image_size}: there is nothing to crop from."
        )
    return batch_size // num_hosts


def _run(ds: grain.MapDataset, batch_bytes: int, num_workers: int) -> Iterator[Batch]:
    """Yields batches, made ahead by threads or worker processes until the iterator is closed."""
    threads = 1 if num_workers else max(1, min(os.cpu_count() or 1, _BUFFER // batch_bytes, 16))
    ahead = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads + 1)
    batches = ds.to_iter_dataset(ahead)
    if num_workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain's workers copy the flags; a library has none
        options = grain.MultiprocessingOptions(num_workers=num_workers)
        batches = batches.mp_prefetch(options, worker_init_fn=worker.begin)
    iterator = iter(batches)
    try:
        for batch in iterator:
            # A worker's arrays lie in memory shared with it; what leaves here outlives it.
            yield {name: np.array(array) for name, array in batch.items()} if num_workers else batch
    finally:
        iterator.close()
