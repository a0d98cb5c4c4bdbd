"""A compiled program that is on disk is not compiled again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from otter_jax import mesh as meshes
from otter_jax.run import programs

MESH = meshes.make_mesh(2)


class Counted:
    """A jitted function that counts how often it is traced."""

    def __init__(self):
        self.traced = 0

        def double(variables, x):
            self.traced += 1
            return variables["a"] * x.astype(jnp.float32)

        whole, _ = meshes.shardings(MESH)
        self._jitted = jax.jit(double, in_shardings=whole, out_shardings=whole)

    def lower(self, *args):
        return self._jitted.lower(*args)


def called(*facts, size=3):
    """The result of a new program for these facts, and how often it was traced."""
    function = Counted()
    program = programs.Program(function, MESH, *facts)
    for _ in range(2):
        found = program({"a": np.float32(2)}, np.arange(size, dtype=np.int32))
    np.testing.assert_array_equal(found, 2 * np.arange(size))
    return function.traced


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("OTTER_JAX_CACHE", str(tmp_path / "cache"))
    own = jax.config.jax_compilation_cache_dir  # that of JAX itself
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()
    yield tmp_path / "cache"
    jax.config.update("jax_compilation_cache_dir", own)
    compilation_cache.reset_cache()


def test_a_program_that_fails_when_it_is_called_is_made_anew(cache, monkeypatch):
    called("double")

    def fails(*args):
        raise jax.errors.JaxRuntimeError("function not found")

    with monkeypatch.context() as patch:
        patch.setattr(
            programs.serialize_executable, "deserialize_and_load", lambda *args, **how: fails
        )
        assert called("double") == 1
    assert not list(cache.iterdir())


def test_where_jax_has_a_cache_of_its_own_nothing_is_written(cache, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "jax"))
    assert called("double") == 1
    assert not cache.exists()


def test_a_program_is_compiled_once_for_all_processes():
    assert called("double") == 1
    assert called("double") == 0


def test_other_shapes_facts_and_settings_are_other_programs(monkeypatch):
    assert called("double") == 1
    assert called("double", size=4) == 1
    assert called("twice") == 1
    with jax.default_matmul_precision("highest"):
        assert called("double") == 1
    monkeypatch.setattr(programs, "_machine", lambda devices: "another processor")
    assert called("double") == 1


def test_a_file_that_cannot_be_run_is_made_anew(cache):
    called("double")
    (file,) = cache.iterdir()
    np.savez(file, payload=np.zeros(10, np.uint8))
    assert called("double") == 1
    file.write_bytes(b"PK")
    assert called("double") == 1
    assert called("double") == 0


def test_only_shapes_are_needed_to_prepare_one():
    function = Counted()
    program = programs.Program(function, MESH, "double")
    program.compiled({"a": np.float32(2)}, jax.ShapeDtypeStruct((3,), np.int32))
    assert program({"a": np.float32(2)}, np.ones(3, np.int32)).tolist() == [2, 2, 2]
    assert function.traced == 1
