"""Reads this process's share of a set's batches."""

import contextlib
from collections.abc import Callable, Iterator

import jax
import numpy as np
import rich.console
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Int, PyTree
from ml_collections import ConfigDict

from otter_jax import mesh as meshes
from otter_jax.data import pipeline
from otter_jax.data.source import Source
from otter_jax.run import cluster


def training(
    config: ConfigDict, source: Source, annotation: pipeline.Annotation, start: int
) -> Iterator[pipeline.Batch]:
    """Yields this process's rows of the training batches from step `start` on."""
    data = config.data
    return pipeline.train_batches(
        source,
        annotation,
        seed=config.seed,
        batch_size=config.train.batch_size,
        image_size=data.image_size,
        resize=data.resize,
        flip=data.flip,
        min_area=data.min_area,
        jitter=data.jitter,
        exif=data.exif,
        start_step=start,
        process=jax.process_index(),
        num_processes=jax.process_count(),
        num_workers=data.num_workers,
    )


def evaluation(
    config: ConfigDict, source: Source, *, shared: bool = True
) -> Iterator[pipeline.Batch]:
    """Yields this process's rows of every record once, in order.

    With shared=False every process reads all rows.
    """
    return pipeline.eval_batches(
        source,
        batch_size=config.eval.batch_size,
        image_size=config.data.image_size,
        resize=config.data.resize,
        exif=config.data.exif,
        process=jax.process_index() if shared else 0,
        num_processes=jax.process_count() if shared else 1,
    )


def over_all(
    config: ConfigDict,
    source: Source,
    mesh: Mesh,
    place: Callable[[Array, Array], PyTree],
    labels: Int[np.ndarray, "N M"],
    *,
    check_stop: Callable[[], None],
    advance: Callable[[int], None] = lambda count: None,
) -> tuple[PyTree, Bool[np.ndarray, "N"]]:
    """Applies `place` to every image of a set; returns the results, and which were readable.

    Every process reads its rows, and gets the results of all. `place` is a compiled function: it
    takes images, and their labels padded with -1, in rows that are spread over the devices; its
    result, one array or several with a row for each image, has a copy on each. `check_stop` is
    called once per batch, and may raise to end the loop; `advance` is called with the number of
    records done.
    """
    found, valid = [], np.zeros(len(source), bool)
    labels = np.pad(labels, ((0, 1), (0, 0)), constant_values=-1)  # index -1: past the last record
    with contextlib.closing(evaluation(config, source)) as batches:
        for number, batch in enumerate(batches):
            check_stop()
            rows = {"image": batch["image"], "labels": labels[batch["index"]]}
            found.append(jax.device_get(place(**meshes.put_batch(rows, mesh))))
            valid[batch["index"][batch["valid"]]] = True
            size = config.eval.batch_size
            advance(min(size, len(source) - number * size))
    joined = jax.tree.map(lambda *parts: np.concatenate(parts)[: len(source)], *found)
    return joined, cluster.stack(valid).any(axis=0)


def name_unreadable(
    source: Source, valid: Bool[np.ndarray, "N"], console: rich.console.Console
) -> list[str]:
    """Returns the keys of the images that could not be read, and prints that they are left out."""
    keys = [source.key(int(i)) for i in np.flatnonzero(~valid)]
    if keys:
        console.print(
            f"{source.name}: {len(keys)} unreadable images are left out, such as "
            f"{', '.join(keys[:3])}."
        )
    return keys


def shapes(
    config: ConfigDict, annotation: pipeline.Annotation, mesh: Mesh
) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of a global training batch, so that steps can be compiled before one."""
    B, S = config.train.batch_size, config.data.image_size
    rows_of = {"image": ((B, S, S, 3), np.uint8), **annotation.shapes(B)}
    _, rows = meshes.shardings(mesh)
    return {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=rows)
        for name, (shape, dtype) in rows_of.items()
    }
