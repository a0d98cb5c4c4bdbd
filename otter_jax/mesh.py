"""Devices: one mesh axis, `data`, over which the rows of a batch are spread."""

import functools
from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding
from jaxtyping import PyTree

from otter_jax.errors import UserError

AXIS = "data"
ROWS = PartitionSpec(AXIS)  # axis 0 cut into one piece per device
WHOLE = PartitionSpec()  # a copy on every device


def make_mesh(num_devices: int | None = None) -> Mesh:
    """Puts the first `num_devices` devices of all processes in one row; default: all of them."""
    devices = jax.devices()[:num_devices]
    # make_mesh defaults to explicit axes, under which flax's Embed cannot be traced.
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def count(mesh: Mesh) -> str:
    """Returns the number of devices as text: "1 device", "8 devices"."""
    return f"{mesh.size} device{'s' * (mesh.size > 1)}"


def shardings(mesh: Mesh) -> tuple[NamedSharding, NamedSharding]:
    """Returns two shardings: a copy on every device, and rows spread over the devices."""
    return NamedSharding(mesh, WHOLE), NamedSharding(mesh, ROWS)


def one_device() -> SingleDeviceSharding:
    """Returns the sharding that puts everything on this process's first device."""
    return SingleDeviceSharding(jax.local_devices()[0])


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Puts the global batch on the devices, from the rows that this process has read."""
    put = functools.partial(jax.make_array_from_process_local_data, NamedSharding(mesh, ROWS))
    return {name: put(rows) for name, rows in batch.items()}


def put_whole(tree: PyTree, mesh: Mesh) -> PyTree:
    """Puts a copy of a tree on every device; each process has the whole tree."""
    put = functools.partial(jax.make_array_from_process_local_data, NamedSharding(mesh, WHOLE))
    return jax.tree.map(lambda x: put(np.asarray(x)), tree)


def check_divides(key: str, batch_size: int, devices: int) -> None:
    """Raises UserError, naming the nearest sizes, unless the batch divides over the devices."""
    if batch_size < 1 or batch_size % devices:
        below = batch_size // devices * devices
        nearest = f"{below} or {below + devices}" if below > 0 else f"{devices}"
        raise UserError(
            f"{key}={batch_size} does not divide over {devices} devices; nearest: {nearest}."
        )
