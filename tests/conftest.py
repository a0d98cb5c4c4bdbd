"""Eight devices on any machine, and every jaxtyping signature of the package checked."""

import atexit
import os
import pathlib
import shutil
import sys
import tempfile

import xla

if "TESTS_CACHE" not in os.environ:  # of compiled programs, for these tests and all they start
    os.environ["TESTS_CACHE"] = tempfile.mkdtemp(prefix="otter_jax_tests")
    atexit.register(shutil.rmtree, os.environ["TESTS_CACHE"], ignore_errors=True)
os.environ.setdefault("OTTER_JAX_CACHE", os.path.join(os.environ["TESTS_CACHE"], "otter_jax"))
# As in an activated environment: the program calls itself "python" in what it prints.
os.environ["PATH"] = f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = xla.flags()

import jax
import pytest
from jaxtyping import install_import_hook

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_compilation_cache_dir", os.environ["TESTS_CACHE"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
_hook = install_import_hook("otter_jax", "beartype.beartype")
_hook.__enter__()


@pytest.fixture(scope="session")
def golden():
    """Loads a file of numbers that the released code computed (tests/golden/README.md)."""
    import numpy as np

    folder = pathlib.Path(__file__).parent / "golden"
    return lambda name: dict(np.load(folder / name))
