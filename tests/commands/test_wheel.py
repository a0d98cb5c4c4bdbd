"""The package without its checkout: a wheel, unpacked where nothing else of the project lies."""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import zipfile

import pytest
from world import REPO

from otter_jax.commands import configs

SOURCES = ("pyproject.toml", "README.md", "LICENSE", "requirements.txt", "otter_jax", "configs")
BUILD = """
import os, sys
from setuptools import build_meta
for kind, folder in zip(("wheel", "sdist"), sys.argv[1:]):
    getattr(build_meta, f"build_{kind}")(folder)
"""
OWN = """
from otter_jax.configs import pairs

def get_config(method="otter"):
    config = pairs.get_config(method)
    config.data.name = "mine"
    return config
"""
# The entry point runs with the flags of `otter-jax`; then configs are loaded as commands do it.
TRY = """
import json, sys
from importlib.metadata import entry_points

(script,) = entry_points(group="console_scripts", name="otter-jax")
door = script.load()
sys.argv = ["/bin/otter-jax", "train", "--config", "quickstrat", "--workdir", "run"]
assert door() == 2
sys.argv = ["/bin/otter-jax", "train", "--config", "quickstart", "--help"]
try:
    door()
except SystemExit as end:
    assert not end.code
assert "jax" not in sys.modules

import otter_jax
from otter_jax.commands import configs

loaded = {name: configs.load(name, []).seed for name in configs.names()}
own = configs.load("own.py:kd", ["--config.data.max_tokens=7"])
print(json.dumps([otter_jax.__file__, loaded, own.method, own.data.name, own.data.max_tokens]))
"""


def build(source, out, *kinds):
    """Builds a wheel, and an sdist if so said, of a folder."""
    out.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", BUILD, *[str(out)] * (1 + ("sdist" in kinds))],
        cwd=source, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,) = out.glob("*.whl")
    return wheel


def names_in(wheel):
    """Names of the modules in a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if name.endswith(".py")}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of what is built, since building leaves its traces."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in SOURCES:
        if (REPO / name).is_dir():
            shutil.copytree(
                REPO / name,
                folder / name,
                symlinks=True,
                ignore=shutil.ignore_patterns("__pycache__"),
            )
        else:
            shutil.copy(REPO / name, folder / name)
    return folder


def test_a_wheel_works_in_any_folder_with_the_configs_of_the_program_and_ones_own(
    checkout, tmp_path
):
    version = importlib.metadata.version("setuptools")
    assert int(version.split(".")[0]) >= 77, f"setuptools {version}: run launch/install.sh again"
    wheel = build(checkout, tmp_path / "dist", "sdist")
    expected = {str(path.relative_to(REPO)) for path in (REPO / "otter_jax").rglob("*.py")} | {
        f"otter_jax/configs/{path.name}" for path in (REPO / "configs").glob("*.py")
    }
    assert names_in(wheel) == expected

    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    zipfile.ZipFile(wheel).extractall(site)
    elsewhere.mkdir()
    (elsewhere / "own.py").write_text(OWN)
    done = subprocess.run(
        [sys.executable, "-c", TRY],
        cwd=elsewhere,
        env=os.environ | {"PYTHONPATH": str(site), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "did you mean quickstart?" in done.stderr
    *said, last = done.stdout.splitlines()
    assert said[0] == "usage: otter-jax train --config NAME[:VARIANT] --workdir DIR [FLAGS]"
    file, loaded, *own = json.loads(last)
    assert file.startswith(str(site))
    assert loaded.keys() == set(configs.names())
    assert own == ["kd", "mine", 7]

    # A wheel of what an sdist holds is the same.
    (sdist,) = (tmp_path / "dist").glob("*.tar.gz")
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    subprocess.run(["tar", "-xzf", sdist, "-C", unpacked], check=True)
    (source,) = unpacked.iterdir()
    assert names_in(build(source, tmp_path / "again")) == expected
