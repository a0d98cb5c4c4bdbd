"""What this process reads of a set, as a config says."""

import contextlib
from collections.abc import Callable, Iterator

import jax
import numpy as np
import rich.console
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Int
from ml_collections import ConfigDict

from otter_jax import mesh as meshes
from otter_jax.data import pipeline
from otter_jax.data.ensure import ensure
from otter_jax.data.formats.tars import Tars
from otter_jax.data.source import Source
from otter_jax.run import cluster


def train_batches(
    config: ConfigDict, source: Source, target: pipeline.Target, start: int
) -> Iterator[pipeline.Batch]:
    """Its rows of the global batches from step `start` on, as `pipeline.train_batches` has them."""
    data = config.data
    return pipeline.train_batches(
        source,
        target,
        seed=config.seed,
        batch_size=config.train.batch_size,
        image_size=data.image_size,
        resize=data.resize,
        flip=data.flip,
        min_area=data.min_area,
        jitter=data.jitter,
        start_step=start,
        host=jax.process_index(),
        num_hosts=jax.process_count(),
        num_workers=data.num_workers,
    )


def eval_batches(
    config: ConfigDict, source: Source, *, shared: bool = True
) -> Iterator[pipeline.Batch]:
    """Its rows of every record once, in order, as `pipeline.eval_batches` has them.

    Not `shared` with the other processes, all rows in each of them.
    """
    return pipeline.eval_batches(
        source,
        batch_size=config.eval.batch_size,
        image_size=config.data.image_size,
        resize=config.data.resize,
        host=jax.process_index() if shared else 0,
        num_hosts=jax.process_count() if shared else 1,
    )


def ensure_set(dataset: str, data_dir: str, tars: Tars = (), folder: str = "") -> None:
    """As `store.ensure`; of several processes the first makes the set, and the others find it."""
    with cluster.first_before_others():
        ensure(dataset, data_dir, tars, folder)


def over_all(
    config: ConfigDict,
    source: Source,
    mesh: Mesh,
    best_of: Callable[[Array], Int[Array, "B R"]],
    *,
    check: Callable[[], None],
    advance: Callable[[int], None] = lambda count: None,
) -> tuple[Int[np.ndarray, "N R"], Bool[np.ndarray, "N"]]:
    """What `best_of` makes of each image of a set, and whether the image could be read.

    Every process reads its rows, and gets the results of all. `best_of` is compiled, from rows on
    their devices to a copy on each; `check` is called once a batch, and may raise to end it here;
    `advance` hears how many records were done.
    """
    found, valid = [], np.zeros(len(source), bool)
    with contextlib.closing(eval_batches(config, source)) as batches:
        for number, batch in enumerate(batches):
            check()
            best = best_of(meshes.put_batch({"image": batch["image"]}, mesh)["image"])
            found.append(np.asarray(best))
            valid[batch["index"][batch["valid"]]] = True
            advance(min(len(best), len(source) - number * len(best)))
    return np.concatenate(found)[: len(source)], cluster.stack(valid).any(axis=0)


def name_unreadable(
    source: Source, valid: Bool[np.ndarray, "N"], console: rich.console.Console
) -> list[str]:
    """The keys of the images that could not be read, of which it says that they are left out."""
    keys = [source.key(int(i)) for i in np.flatnonzero(~valid)]
    if keys:
        console.print(
            f"{source.name}: {len(keys)} unreadable images are left out, such as "
            f"{', '.join(keys[:3])}."
        )
    return keys


def batch_shapes(
    config: ConfigDict, target: pipeline.Target, mesh: Mesh
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a global batch of training, to compile for before one is read."""
    B, S = config.train.batch_size, config.data.image_size
    shapes = {"image": ((B, S, S, 3), np.uint8), **target.shapes(B)}
    _, rows = meshes.shardings(mesh)
    return {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=rows)
        for name, (shape, dtype) in shapes.items()
    }
