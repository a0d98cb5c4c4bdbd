"""Compiles programs ahead of their use, and reports their memory."""

import time
from collections.abc import Callable
from typing import Any

import jax
import rich.console
from jax.sharding import Mesh
from jaxtyping import PyTree

from otter_jax import mesh as meshes
from otter_jax.run import cluster


def jit_step(step: Callable[..., Any], mesh: Mesh) -> Any:
    """Jits a step (state, batch) -> (state, metrics) over the mesh; it takes the state over."""
    whole, rows = meshes.shardings(mesh)
    return jax.jit(step, donate_argnums=0, in_shardings=(whole, rows), out_shardings=whole)


def shapes_of(tree: PyTree) -> PyTree:
    """Returns the shapes and dtypes of arrays, to compile for."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def compiled(jitted: Any, *shapes: Any, name: str, console: rich.console.Console) -> Any:
    """Compiles a function for arguments of such shapes; prints how long it took, and its memory."""
    if not console.is_terminal:
        console.print(f"compiling   {name}")
    with console.status(f"Compiling {name}"):
        began = time.monotonic()
        program = jitted.lower(*shapes).compile()
        seconds = time.monotonic() - began
        cluster.meet("compiled")  # on CPUs, a collective waits only half a minute for the others
    console.print(f"compiled    {name} in {seconds:.0f} s; it needs {memory(program)}")
    return program


def memory(program: Any) -> str:
    """Returns the bytes per device that a compiled program holds at once, as text."""
    total = bytes_needed(program)
    if total is None:
        return "memory that this backend does not report"
    temporary = program.memory_analysis().temp_size_in_bytes
    return f"{total / 2**20:,.0f} MiB per device ({temporary / 2**20:,.0f} of it temporary)"


def bytes_needed(program: Any) -> int | None:
    """Returns the bytes per device that a program holds at once, None if it is not known."""
    m = program.memory_analysis()
    if m is None:
        return None
    total = m.argument_size_in_bytes + m.temp_size_in_bytes + m.output_size_in_bytes
    return total - m.alias_size_in_bytes
