"""Lets several processes join, agree and wait for each other.

JAX's distributed runtime does the work; this module decides when it is started, and turns its
failures into messages. With a single process every function returns at once.
"""

import contextlib
import itertools
import json
import os
import pathlib
import socket
import time
import uuid
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jaxtyping import PyTree, Shaped

from otter_jax.errors import UserError
from otter_jax.run.threads import in_thread

JOIN = 300  # seconds within which all processes must have joined
HEARTBEAT = 60  # seconds without a sign of life after which a process counts as dead
SEEN = 60  # seconds within which a network file system shows what another machine wrote
LONG = 7 * 24 * 3600  # seconds to wait for slow work, such as making a data set


def launcher() -> str:
    """Returns the launcher that started several processes: "SLURM", "Open MPI", or "" for none.

    A batch script or a shell inside an allocation is a single process: only `srun` and `mpirun`
    start several.
    """
    env = os.environ
    if "SLURM_STEP_NODELIST" in env and int(env.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        return "SLURM"
    if int(env.get("OMPI_COMM_WORLD_SIZE", 1)) > 1:
        return "Open MPI"
    return ""


def join(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Joins the other processes, if there are any; must come before any other call of JAX.

    Arguments that are None are taken from SLURM or Open MPI. `coordinator` is HOST:PORT of process
    0, a port that is free there. On GPUs, under SLURM and Open MPI, each process gets the GPU of
    its local rank. On CPUs each compiles its programs anew: none that was kept is read.

    Raises UserError if the three are incomplete, if the coordinator cannot be reached, or the
    processes do not have equally many devices. If others do not come within `JOIN` seconds, JAX
    ends the process.
    """
    given = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    missing = [f"--{name}" for name, value in given.items() if value is None]
    started_by = launcher()
    if not started_by and len(missing) == len(given):
        return
    if not started_by and missing:
        raise UserError(
            f"{', '.join(missing)} missing: of several processes each needs all three of "
            "--coordinator=HOST:PORT (of process 0), --num_processes and --process_id; under srun "
            "or mpirun none."
        )
    if num_processes is not None and not 0 <= (process_id or 0) < num_processes:
        raise UserError(
            f"--process_id={process_id}: of {num_processes} processes, from 0 to "
            f"{num_processes - 1}."
        )
    if coordinator is not None:
        _reach(coordinator, first=not process_id)
    if not process_id:
        print(f"Waiting for the other processes, {JOIN} s at most", flush=True)
    try:
        in_thread(
            lambda: jax.distributed.initialize(
                coordinator,
                num_processes,
                process_id,
                initialization_timeout=JOIN,
                heartbeat_timeout_seconds=HEARTBEAT,
            ),
            "join",
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"The processes that {started_by or 'the flags'} tell of could not be joined: {error} "
            "Give --coordinator=HOST:PORT, --num_processes and --process_id."
        ) from error
    if jax.default_backend() == "cpu":
        # A program that XLA (jaxlib 0.10) reads back has lost the order between what it sends in
        # a loop and beside it. Gloo matches messages by their order, so the processes would hang.
        jax.config.update("jax_enable_compilation_cache", False)
    devices = Counter(device.process_index for device in jax.devices())
    if len(set(devices.values())) > 1:
        told = ", ".join(f"process {p} has {n}" for p, n in sorted(devices.items()))
        raise UserError(f"Every process needs as many devices as the others, but {told}.")


def _reach(coordinator: str, *, first: bool) -> None:
    """Raises UserError if HOST:PORT is malformed or does not answer; JAX would dump core."""
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"--coordinator={coordinator!r}: HOST:PORT, for example node0:8476.")
    deadline = time.monotonic() + JOIN
    while not first:  # the first opens the port itself
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise UserError(
                    f"--coordinator={coordinator}: nobody answered in {JOIN} s ({error}). Was "
                    "process 0 started there, and is the port open?"
                ) from None
        time.sleep(1)


def is_first() -> bool:
    """Tells whether this is process 0, which writes and prints for all processes."""
    return jax.process_index() == 0


def stack(x: Shaped[np.ndarray, "*shape"]) -> Shaped[np.ndarray, "P *shape"]:
    """Stacks the arrays of all P processes, of the same shape. All processes call it."""
    if jax.process_count() == 1:
        return x[None]
    return np.asarray(multihost_utils.process_allgather(x))


def gather(text: str) -> list[str]:
    """Returns the texts of all processes. All processes call it."""
    raw = np.frombuffer(text.encode(), np.uint8)
    sizes = stack(np.array(len(raw), np.int32))
    padded = np.zeros(max(1, sizes.max()), np.uint8)
    padded[: len(raw)] = raw
    return [bytes(row[:n]).decode() for row, n in zip(stack(padded), sizes, strict=True)]


def agree(facts: Callable[[], Mapping[str, Any]]) -> None:
    """Raises UserError on all processes if they differ, and names the differences.

    `facts` may take time to compute, so a single process does not call it.
    """
    if jax.process_count() == 1:
        return
    first, *others = (json.loads(text) for text in gather(json.dumps(facts(), default=str)))
    told = [
        f"{name} is {first.get(name)!r} in process 0 and {other.get(name)!r} in process {number}"
        for number, other in enumerate(others, start=1)
        for name in sorted(first.keys() | other.keys())
        if first.get(name) != other.get(name)
    ]
    if told:
        raise UserError(
            "All processes must be started alike, but "
            + "; ".join(told[:5])
            + (f"; and {len(told) - 5} more differences." if len(told) > 5 else ".")
        )


def fingerprint(tree: PyTree) -> str:
    """Returns eight digits that change whenever a value of the tree does, for `agree`."""
    crc = 0
    for leaf in jax.tree.leaves(tree):
        crc = zlib.crc32(np.ascontiguousarray(leaf).view(np.uint8), crc)
    return f"{crc:08x}"


def check_shared(workdir: pathlib.Path) -> None:
    """Raises UserError unless all processes see the same folder, as shared checkpoints need."""
    if jax.process_count() == 1:
        return
    token, path, is_new = uuid.uuid4().hex, workdir / "together", not workdir.exists()
    if is_first():
        workdir.mkdir(parents=True, exist_ok=True)
        path.write_text(token)
    token = gather(token)[0]
    deadline = time.monotonic() + SEEN
    while not (seen := path.exists() and path.read_text() == token):
        if time.monotonic() > deadline:
            break
        time.sleep(0.5)
    meet("check_shared")
    blind = [number for number, ok in enumerate(stack(np.array(seen))) if not ok]
    if is_first():
        path.unlink()
        if is_new:
            with contextlib.suppress(OSError):
                workdir.rmdir()  # a start that is refused leaves nothing
    if blind:
        raise UserError(
            f"--workdir {workdir}: processes {blind} do not see there what process 0 writes. It "
            "must be on a file system that all have in common."
        )


@contextlib.contextmanager
def first_before_others() -> Iterator[None]:
    """Lets the first process through this context before all others, which wait."""
    if not is_first():
        meet("first_before_others")
    yield
    if is_first():
        meet("first_before_others")


def meet(where: str) -> None:
    """Waits until all processes get here; tolerates longer waits than a collective does.

    Signals are heard meanwhile.
    """
    if jax.process_count() == 1:
        return
    barrier = ocp.multihost.get_barrier_sync_fn()  # kept by the coordinator, not by the devices
    key = f"{where} {next(_meetings)}"
    in_thread(lambda: barrier(key=key, timeout_ms=LONG * 1000), "meet")


_meetings = itertools.count()  # a barrier needs a name of its own
