"""Keeps compiled programs on disk, so that a second start need not wait for a compiler."""

import contextlib
import functools
import hashlib
import os
import platform
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import serialize_executable
from jax.sharding import Mesh
from jaxtyping import Array

from otter_jax import caches
from otter_jax.run import cluster, digests

SHORTEST = 0.3  # seconds of compiling; less is not worth a file
FILES = 256  # of one computer; the oldest are removed
FOLDER = "programs"  # of one computer, beside the digests of what is in it
HIT = "/jax/compilation_cache/cache_hits"  # what JAX calls a program that it has read

_home: Path | None = None  # where JAX writes, if this process may and `keep_compiled` said so


@contextlib.contextmanager
def keep_compiled(*, named: bool = False) -> Iterator[None]:
    """Makes JAX keep what it compiles from here on, in the user's cache, and read it next time.

    With `named` a kept program is only read if its operations have the names of this one's, too.

    Does nothing where JAX was told another place (JAX_COMPILATION_CACHE_DIR), or the cache cannot
    be written. JAX tells programs apart by their text, its version, options and kind of device; the
    folder by the rest that they depend on, as a home may be shared by several computers.
    """
    global _home
    before = jax.config.jax_compilation_cache_include_metadata_in_key
    jax.config.update("jax_compilation_cache_include_metadata_in_key", named or before)
    about = hashlib.sha256(repr(_machine(jax.local_devices())).encode()).hexdigest()[:16]
    home = caches.users() / f"compiled_{about}"
    if not jax.config.jax_compilation_cache_dir and _can_hold(home / FOLDER):
        if cluster.is_first():  # the only one of several processes that JAX lets write
            _tidy(home)
            _home = home
        jax.config.update("jax_compilation_cache_dir", str(home / FOLDER))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", SHORTEST)
    try:
        yield
    finally:
        note_compiled()
        _home = None
        jax.config.update("jax_compilation_cache_include_metadata_in_key", before)


def note_compiled() -> None:
    """Notes digests of the programs that JAX has kept; without one it is not read next time.

    JAX has none: it would run a damaged program, or the process would abort, and what a kill has
    left half written would stay there for ever.
    """
    if _home is not None:
        with contextlib.suppress(OSError, ValueError):  # another start notes them, too
            digests.write(_home, FOLDER)


def _can_hold(folder: Path) -> bool:
    """Tells whether a folder, which is made, can be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def _tidy(home: Path) -> None:
    """Removes kept programs that are not as they were noted, and the oldest of too many."""
    with contextlib.suppress(OSError):  # another start removes them, too
        whole = {home / name for name in digests.whole(home, FOLDER)}
        if not whole:
            (home / digests.FILE).unlink(missing_ok=True)
        paths = sorted((home / FOLDER).glob("*-cache"), key=os.path.getmtime)
        for path in {*paths} - ({*paths[-FILES:]} & whole):
            path.unlink(missing_ok=True)


@functools.cache
def _read_so_far() -> list[str]:
    """Returns a list that grows with each program that JAX reads in place of compiling it."""
    found: list[str] = []

    def listen(event: str, **_: object) -> None:
        if event == HIT:
            found.append(event)

    jax.monitoring.register_event_listener(listen)
    return found


def count_read() -> int:
    """Returns how many programs JAX has read from its cache since this was first called."""
    return len(_read_so_far())


class Program:
    """Is a jitted function of variables and arrays to one array; each of its programs is kept.

    A program is for one set of shapes. Reading it takes a tenth of a second; to trace and compile
    it takes seconds. Several threads may call it.
    """

    def __init__(self, jitted: Any, mesh: Mesh, *facts: object):
        """Compiles nothing yet; `facts` and the shapes tell a program for `mesh` from others."""
        self._jitted, self._facts = jitted, facts
        self._devices = mesh.devices.flatten().tolist()
        self._made: dict[str, Callable[..., Array]] = {}
        self._untried: dict[str, Path] = {}  # where a program is from that was not called yet
        self._lock = threading.Lock()

    def __call__(self, *args: Any) -> Array:
        """Returns the function's result."""
        program, path = self.compiled(*args), self._untried.pop(_shapes(args), None)
        if path is None:
            return program(*args)
        try:  # a program that was read from disk, for the first time
            return jax.block_until_ready(program(*args))
        except jax.errors.JaxRuntimeError:
            path.unlink(missing_ok=True)
            self._made[_shapes(args)] = program = self._compile(args)
            return program(*args)

    def compiled(self, *args: Any) -> Callable[..., Array]:
        """Returns the program for arrays, or shapes with shardings, like these."""
        with self._lock:
            shapes = _shapes(args)
            if shapes not in self._made:
                # JAX's own cache is enough, and what it has read cannot be written again.
                own = jax.config.jax_compilation_cache_dir
                self._made[shapes] = self._compile(args) if own else self._read(args)
            return self._made[shapes]

    def _compile(self, args: tuple[Any, ...]) -> Callable[..., Array]:
        """Compiles; for one row on a CPU in half the time, as one answer is waited for.

        EfficientNet-Lite0 then takes 13 ms in place of 6.
        """
        one = args[1].shape[0] == 1 and self._devices[0].platform == "cpu"
        options = {"xla_backend_optimization_level": 0} if one else {}
        return self._jitted.lower(*args).compile(compiler_options=options)

    def _read(self, args: tuple[Any, ...]) -> Callable[..., Array]:
        """Reads the program from disk, else compiles it and writes it there."""
        made = []

        def make():
            made.append(self._compile(args))
            payload, _, _ = serialize_executable.serialize(made[0])
            return {"payload": np.frombuffer(payload, np.uint8)}

        leaves, _ = jax.tree_util.tree_flatten_with_path(args)
        shapes = [(jax.tree_util.keystr(k), x.shape, str(x.dtype)) for k, x in leaves]
        machine = _machine(self._devices)
        name = caches.named("program", caches.code(), machine, *self._facts, shapes)
        path = caches.users() / name
        try:
            found = caches.kept(path, make)
        except Exception:  # of a compiler that cannot give its program away
            if not made:
                raise
        if made:
            return made[0]
        trees = jax.tree.structure((args, {})), jax.tree.structure(0)
        try:
            program = serialize_executable.deserialize_and_load(
                found["payload"].tobytes(), *trees, execution_devices=self._devices
            )
        except Exception:  # whatever a compiler does not like of it, it can make it again
            path.unlink(missing_ok=True)
            return self._compile(args)
        self._untried[_shapes(args)] = path
        return program


def _shapes(args: tuple[Any, ...]) -> str:
    """Returns what tells programs of one model apart: the shapes beside the variables."""
    return str([(x.shape, str(x.dtype)) for x in jax.tree.leaves(args[1:])])


def _machine(devices: Sequence[jax.Device]) -> tuple[object, ...]:
    """Returns what programs depend on beside the code: devices, their driver, and settings."""
    flags = platform.processor() or platform.machine()
    about = Path("/proc/cpuinfo")
    if about.exists():  # programs use what the processor has, and crash on another
        lines = about.read_text("utf-8", "replace").splitlines()
        flags = next((line for line in lines if line.startswith(("flags", "Features"))), flags)
    client = devices[0].client
    kinds = sorted({device.device_kind for device in devices})
    precision = jax.config.jax_default_matmul_precision
    return client.platform, client.platform_version, kinds, len(devices), flags, precision
