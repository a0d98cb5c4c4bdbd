"""Programs are compiled in a thread of their own, and keep what they must."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich.console

from otter_jax import mesh as meshes
from otter_jax.commands import start
from otter_jax.run.threads import in_thread
from otter_jax.training import compiling


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


def test_what_is_handed_over_is_counted_once():
    memory = SimpleNamespace(
        argument_size_in_bytes=30, temp_size_in_bytes=500, output_size_in_bytes=20,
        alias_size_in_bytes=10,
    )  # fmt: skip
    need = compiling.need_of(SimpleNamespace(memory_analysis=lambda: memory))
    assert need == compiling.Need(total=540, arguments=30, temporary=500)


def test_a_backend_that_does_not_report_memory_is_no_obstacle(capsys):
    mute = SimpleNamespace(memory_analysis=lambda: None)
    jitted = SimpleNamespace(lower=lambda: SimpleNamespace(compile=lambda: mute))
    console = rich.console.Console(width=120)
    assert compiling.compiled(jitted, name="the step", console=console) == (mute, None)
    assert "it needs memory that this backend does not report" in capsys.readouterr().out


def test_freed_memory_is_given_back_where_there_is_no_room_for_a_step_three_times(monkeypatch):
    given, console = [], rich.console.Console(quiet=True)
    monkeypatch.setattr(compiling.heap, "give_back", lambda: given.append(True))
    for room, expected in ((3.1, []), (2.9, [True])):
        monkeypatch.setattr(compiling, "memory_of", lambda room=room: room * 3 * 4096)
        x = jax.ShapeDtypeStruct((1024,), np.float32)
        compiling.compiled(jax.jit(lambda x, y: x + y), x, x, name="a sum", console=console)
        assert given == expected
