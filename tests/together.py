"""One of several processes that take steps of every method; `test_cluster` starts them.

python tests/together.py OUT STEPS COORDINATOR NUM_PROCESSES PROCESS_ID
"""

import pathlib
import sys

import jax
import numpy as np
import tiny

from otter_jax import cluster
from otter_jax import mesh as meshes
from otter_jax.objective import METHODS


def steps(method: str, devices: int, count: int) -> dict[str, np.ndarray]:
    """Metrics of each step over so many devices, and the state after the last, by path."""
    step, put = tiny.jitted(method, devices)
    state, found = meshes.put_whole(tiny.state(), meshes.make_mesh(devices)), {}
    for number in range(count):
        rows = {
            name: np.split(x, jax.process_count())[jax.process_index()]
            for name, x in tiny.batch(number).items()
        }
        state, metrics = step(state, put(rows))
        found |= {f"{number}/{name}": np.asarray(x) for name, x in metrics.items()}
    flat, _ = jax.tree_util.tree_flatten_with_path(state)
    return found | {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in flat}


def main(out: str, count: str, coordinator: str, num_processes: str, process_id: str) -> None:
    """Writes OUT/METHOD.npz, from process 0."""
    cluster.join(coordinator, int(num_processes), int(process_id))
    for method in METHODS:
        found = steps(method, jax.device_count(), int(count))
        if cluster.is_first():
            np.savez(pathlib.Path(out) / f"{method}.npz", **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
