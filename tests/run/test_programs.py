"""A compiled program that is on disk is not compiled again."""

import os

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


@pytest.fixture
def any_length(monkeypatch):
    """Programs are kept however short their compiling is; afterwards, as before."""
    own = jax.config.jax_persistent_cache_min_compile_time_secs
    monkeypatch.setattr(programs, "SHORTEST", 0)
    yield
    jax.config.update("jax_persistent_cache_min_compile_time_secs", own)


def compile_anew():
    """Compiles a program as a new process does; how many JAX read from its cache for that."""
    jax.clear_caches()
    compilation_cache.reset_cache()
    before = programs.count_read()
    jax.jit(lambda x: x * 3 + 1).lower(np.ones(5, np.float32)).compile()
    return programs.count_read() - before


def start():
    """Begins, compiles a program and ends; how many were read for it."""
    jax.config.update("jax_compilation_cache_dir", None)
    with programs.keep_compiled():
        return compile_anew()


def test_a_second_start_reads_what_the_first_has_compiled(cache, any_length, monkeypatch):
    assert (start(), start()) == (0, 1)
    monkeypatch.setattr(programs, "_machine", lambda devices: "another processor")
    assert start() == 0
    assert len(list(cache.iterdir())) == 2  # one folder for each computer


def flipped(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def halved(path):
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("damage", [flipped, halved])
def test_a_damaged_program_is_compiled_anew_and_read_again_from_then_on(cache, any_length, damage):
    """JAX would run a flipped one, or abort, and leave a half one there for ever."""
    assert start() == 0
    (path,) = cache.glob("*/*/*-cache")
    damage(path)
    assert (start(), start()) == (0, 1)


def test_what_a_kill_left_unnoted_is_not_read(cache, any_length):
    start()
    next(cache.glob("*/digests.json")).unlink()
    assert (start(), start()) == (0, 1)


def test_damaged_digests_are_made_anew(cache, any_length):
    start()
    next(cache.glob("*/digests.json")).write_text("{")
    assert (start(), start()) == (0, 1)


def test_a_place_that_jax_was_told_is_left_to_it(cache, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "jax"))
    with programs.keep_compiled():
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "jax")
    assert not cache.exists()


def test_without_a_place_to_write_nothing_is_kept(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("OTTER_JAX_CACHE", str(tmp_path / "file"))
    with programs.keep_compiled():
        assert jax.config.jax_compilation_cache_dir is None


def test_only_the_newest_programs_are_kept(cache, any_length, monkeypatch):
    monkeypatch.setattr(programs, "FILES", 3)
    with programs.keep_compiled():
        (home,) = cache.iterdir()
        folder = home / programs.FOLDER
        (folder / "of_a_gpu").mkdir()  # what XLA has tuned
        for number in range(5):
            (folder / f"{number}-cache").write_text("")
            os.utime(folder / f"{number}-cache", (number, number))
    start()
    kept = {path.name[0] for path in folder.iterdir()} - {"j"}  # which start has compiled
    assert kept == {"2", "3", "4", "o"}
