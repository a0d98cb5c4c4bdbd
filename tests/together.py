"""One of several processes that take steps of every method; `test_cluster` starts them.

python tests/together.py OUT STEPS COORDINATOR NUM_PROCESSES PROCESS_ID
"""

import functools
import pathlib
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import tiny

from otter_jax import mesh as meshes
from otter_jax.models.norm import BatchNorm
from otter_jax.objective import PUBLISHED
from otter_jax.run import cluster
from otter_jax.step import TrainState, create_state


class Pictures(nn.Module):
    """An encoder with a batch norm, and next to nothing to compile."""

    width: int = 8

    @nn.compact
    def __call__(self, pixels, *, train):
        patches = pixels.reshape(-1, 4, 4, 4, 4, 3).mean((2, 4))
        x = nn.Dense(self.width, dtype=jnp.float64)(patches)
        x = BatchNorm(dtype=jnp.float64)(x, use_running_average=not train)
        return nn.relu(x).mean((1, 2))


class Words(nn.Module):
    """The mean of a caption's word vectors."""

    @nn.compact
    def __call__(self, token_ids, mask, *, train):
        return nn.Embed(50, 16, dtype=jnp.float64)(token_ids)

    def pool(self, hidden, token_ids, mask):
        return (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)


METHODS = (*PUBLISHED, "trust_otter")
MODEL = tiny.towers().clone(img=Pictures(), txt=Words())


@functools.cache
def fresh() -> TrainState:
    """The state before the first step of every method, in NumPy."""
    first = tiny.batch()
    init = functools.partial(MODEL.init, train=False)
    variables = jax.jit(init)(jax.random.key(0), first["image"], tiny.captions_of(first))
    variables = jax.tree.map(np.float64, jax.device_get(variables))
    return jax.device_get(create_state(variables["params"], variables["batch_stats"], tiny.tx()))


def steps(method: str, devices: int, count: int) -> dict[str, np.ndarray]:
    """Metrics of each step over so many devices, and the state after the last, by path.

    In float64: in float32 five steps make 1e-4 of a rounding, through ReLUs and a scale of 49.
    """
    step, put = tiny.jitted(method, devices, model=MODEL)
    state, found = meshes.put_whole(fresh(), meshes.make_mesh(devices)), {}
    batches = [
        put({k: np.split(x, jax.process_count())[jax.process_index()] for k, x in batch.items()})
        for batch in map(tiny.batch, range(count))
    ]
    for number, batch in enumerate(batches):
        state, metrics = step(state, batch)
        found |= {f"{number}/{name}": np.asarray(x) for name, x in metrics.items()}
    flat, _ = jax.tree_util.tree_flatten_with_path(state)
    return found | {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in flat}


def main(out: str, count: str, coordinator: str, num_processes: str, process_id: str) -> None:
    """Writes OUT/METHOD.npz, from process 0."""
    cluster.join(coordinator, int(num_processes), int(process_id))
    for method in METHODS:
        with jax.enable_x64(True):
            found = steps(method, jax.device_count(), int(count))
        if cluster.is_first():
            np.savez(pathlib.Path(out) / f"{method}.npz", **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
