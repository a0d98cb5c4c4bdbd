"""A step that cannot fit is refused before it is made, with the largest batch that could."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from otter_jax import mesh as meshes
from otter_jax.commands import start
from otter_jax.errors import UserError
from otter_jax.run.threads import in_thread
from otter_jax.training import compiling

MIB = 2**20


def program(once, grows):
    memory = SimpleNamespace(
        argument_size_in_bytes=once * MIB, temp_size_in_bytes=grows * MIB,
        output_size_in_bytes=once * MIB, alias_size_in_bytes=once * MIB,
    )  # fmt: skip
    return SimpleNamespace(memory_analysis=lambda: memory)


def test_a_step_that_fits_passes(monkeypatch):
    monkeypatch.setattr(compiling, "memory_of", lambda: 1000 * MIB)
    compiling.check_memory(program(100, 800), 64, 8)
    assert compiling.largest_batch(program(100, 800), 64, 8) == 64


def test_the_largest_batch_leaves_what_is_there_once_and_some_room(monkeypatch):
    monkeypatch.setattr(compiling, "memory_of", lambda: 1000 * MIB)
    with pytest.raises(UserError, match=r"needs 1,700 MiB .*1,000 MiB. About train.batch_size=32"):
        compiling.check_memory(program(100, 1600), 64, 8)  # 64 * (900 - 100) / 1600
    with pytest.raises(UserError, match="No batch would fit"):
        compiling.check_memory(program(1100, 10), 64, 8)


def test_the_command_knows_the_thread_that_compiles():
    assert start.COMPILER == compiling.THREAD
    with pytest.raises(ZeroDivisionError):
        in_thread(lambda: 1 / 0, compiling.THREAD)
    assert in_thread(lambda: 7, compiling.THREAD) == 7


def test_what_is_computed_again_is_not_kept():
    """Without `remat` jax 0.10's compiler for CPUs keeps it all the same."""

    @jax.checkpoint
    def block(x, weight):
        return x + jnp.tanh(jnp.tanh(x @ weight) @ weight.T)

    def step(weights, x):
        def loss(weights):
            return jnp.square(functools.reduce(block, weights, x)).mean()

        return jax.grad(loss)(weights), {}

    shapes = [jax.ShapeDtypeStruct((8, 512), np.float32)] * 9, jax.ShapeDtypeStruct((64, 8), "f")
    program = compiling.jit_step(step, meshes.make_mesh(1), remat=True).lower(*shapes).compile()
    kept = 9 * 2 * 64 * 512 * 4  # bytes of the inner layers
    assert program.memory_analysis().temp_size_in_bytes < kept / 2
