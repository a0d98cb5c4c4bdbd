"""Compiles programs ahead of their use, and compares their memory with the machine's."""

import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import rich.console
from jax.sharding import Mesh
from jaxtyping import PyTree

from otter_jax import mesh as meshes
from otter_jax.run import cluster, heap, programs
from otter_jax.run.threads import in_thread

THREAD = "compiler"  # `commands.start` does not wait for it when a stop was asked for
TIGHT = 0.9  # of the memory; more may not be free in one piece
AMPLE = 0.33  # of the memory: a program that needs less may leave as much again unused
UNKNOWN = "memory that this backend does not report"
# For rematerialisation, which jax 0.10's compiler for CPUs would undo as mere repetition.
AS_WRITTEN = {"xla_disable_hlo_passes": "cse_barrier_expander"}


class Need(NamedTuple):
    """Says how many bytes per device a compiled program holds at once."""

    total: int
    arguments: int  # a step's are parameters, optimiser, teacher and batch
    temporary: int

    def __str__(self) -> str:
        mebibytes = f"{self.total / 2**20:,.0f} MiB per device"
        return f"{mebibytes} ({self.temporary / 2**20:,.0f} of it temporary)"


def jit_step(step: Callable[..., Any], mesh: Mesh, *, remat: bool = False) -> Any:
    """Jits a step (state, batch) -> (state, metrics) over the mesh; it takes the state over.

    With `remat` what the step says is computed again is so on CPUs, too.
    """
    whole, rows = meshes.shardings(mesh)
    options = AS_WRITTEN if remat and mesh.devices.flat[0].platform == "cpu" else None
    return jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(whole, rows),
        out_shardings=whole,
        compiler_options=options,
    )


def shapes_of(tree: PyTree) -> PyTree:
    """Returns the shapes and dtypes of arrays, to compile for."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def compiled(
    jitted: Any, *shapes: Any, name: str, console: rich.console.Console
) -> tuple[Any, Need | None]:
    """Compiles a function for arguments of such shapes; prints how long it took, and its memory.

    Returns the program and what it needs, None if the backend does not report that. Prints, too,
    whether an earlier start had compiled it. A signal need not wait for the end.
    """
    if not console.is_terminal:
        console.print(f"compiling   {name}")
    with console.status(f"Compiling {name}"):
        began, read = time.monotonic(), programs.count_read()
        program = in_thread(jitted.lower(*shapes).compile, THREAD)
        seconds = time.monotonic() - began
        programs.note_compiled()
        need = need_of(program)
        if need is not None and need.total > AMPLE * memory_of():
            heap.give_back()
        cluster.meet("compiled")  # on CPUs, a collective waits only half a minute for the others
    kept = ", as an earlier start compiled it" if programs.count_read() > read else ""
    console.print(f"compiled    {name} in {seconds:.0f} s{kept}; it needs {need or UNKNOWN}")
    return program, need


def need_of(program: Any) -> Need | None:
    """Returns what a compiled program holds, None if the backend does not report it.

    This takes a second for a large program, so call it once.
    """
    m = program.memory_analysis()
    if m is None:
        return None
    held = m.argument_size_in_bytes + m.temp_size_in_bytes + m.output_size_in_bytes
    return Need(held - m.alias_size_in_bytes, m.argument_size_in_bytes, m.temp_size_in_bytes)


def shortage(need: Need | None) -> str:
    """Returns by how much a program is too large for a device, as a sentence; "" if it may fit."""
    limit = memory_of()
    if need is None or need.total <= limit:
        return ""
    return f"The step needs {need}, and there are {limit / 2**20:,.0f} MiB."


def largest_batch(need: Need, batch_size: int, multiple: int) -> int:
    """Returns about the largest batch, a multiple of `multiple`, that fits; 0 if none does.

    What is there once (parameters, optimiser, teacher) stays, and the rest grows with the batch, or
    faster: so it is an estimate from above.
    """
    share = (TIGHT * memory_of() - need.arguments) / max(need.temporary, 1)
    return max(0, int(min(share, 1.0) * batch_size) // multiple * multiple)


def memory_of() -> float:
    """Returns a device's memory in bytes; for a CPU device, its share of the machine's memory."""
    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"]
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return machine / jax.local_device_count()
