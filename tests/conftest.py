"""Eight devices on any machine, and every jaxtyping signature of the package checked."""

import atexit
import os
import shutil
import tempfile

if "TESTS_CACHE" not in os.environ:  # of compiled programs, for all that these tests start
    os.environ["TESTS_CACHE"] = tempfile.mkdtemp(prefix="otter_jax_tests")
    atexit.register(shutil.rmtree, os.environ["TESTS_CACHE"], ignore_errors=True)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The tests compile much and run little: without optimisation a step compiles in a third.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import jax
import pytest
from jaxtyping import install_import_hook

jax.config.update("jax_num_cpu_devices", 8)
_hook = install_import_hook("otter_jax", "beartype.beartype")
_hook.__enter__()


@pytest.fixture(scope="session")
def golden():
    """Loads a file of numbers that the released code computed (tests/golden/README.md)."""
    import pathlib

    import numpy as np

    folder = pathlib.Path(__file__).parent / "golden"
    return lambda name: dict(np.load(folder / name))
