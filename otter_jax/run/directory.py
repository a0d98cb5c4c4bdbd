"""Reads and writes a run's directory: config, starts, results; files appear whole."""

import hashlib
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any

import rich.console
from ml_collections import ConfigDict

from otter_jax.errors import UserError

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def describe(workdir: pathlib.Path, config: Mapping[str, Any]) -> None:
    """Writes config.json, and adds an entry for this start to run.json."""
    workdir.mkdir(parents=True, exist_ok=True)
    write_text(workdir / "config.json", json.dumps(config, indent=2, sort_keys=True))
    path = workdir / "run.json"
    starts = json.loads(path.read_text()) if path.exists() else []
    here = pathlib.Path(__file__).parent.parent
    try:
        git = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=here, capture_output=True, text=True, check=True,
        ).stdout.strip()  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        git = None  # git is not installed, or this is no checkout
    starts.append(
        {
            "command": sys.argv,
            "git": git,
            **versions(),
        }
    )
    write_text(path, json.dumps(starts, indent=2))


def versions() -> dict[str, Any]:
    """Returns the versions of Python and the packages, and a digest of this package's code."""
    here = pathlib.Path(__file__).parent.parent
    code = hashlib.sha256()
    for path in sorted(here.rglob("*.py")):
        if path.relative_to(here).parts[0] != "configs":  # a link in a checkout, files in a wheel
            code.update(path.read_bytes())
    return {
        "python": sys.version.split()[0],
        "versions": {name: metadata.version(name) for name in PACKAGES},
        "otter_jax": code.hexdigest()[:12],
    }


def config_of(workdir: pathlib.Path, *, needs: str = "objective") -> ConfigDict:
    """Returns the config of the latest start of a run.

    Raises UserError if there is none, or it has no key `needs`: another command made the run.
    """
    config = read_config(workdir)
    if needs not in config:
        raise UserError(f"{workdir} is a run of another command: its config has no key {needs!r}.")
    return config


def read_config(workdir: pathlib.Path) -> ConfigDict:
    """Returns the config of the latest start of any run. Raises UserError if there is none."""
    path = workdir / "config.json"
    if not path.is_file():
        raise UserError(f"There is no {path}: is {workdir} the directory of a run?")
    found = {"gates": {"shape": "", "penalty": "", "strength": 0.0}}  # runs older than gates
    found |= json.loads(path.read_text())
    if isinstance(found.get("data"), dict):
        found["data"] = {"exif": "ignore"} | found["data"]  # runs older than this key
    return ConfigDict(found)


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a value as JSON, so that a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(value, indent=2))


def results(workdir: pathlib.Path, step: int) -> pathlib.Path:
    """Returns the file for the evaluation of the state after step `step`."""
    return workdir / "results" / f"step_{step:08d}.json"


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a file, so that neither a reader nor a kill ever meets half of it."""
    scratch = path.with_name(path.name + ".tmp")
    scratch.write_text(text, "utf-8")
    os.replace(scratch, path)


def print_differences(
    workdir: pathlib.Path, config: ConfigDict, console: rich.console.Console
) -> None:
    """Prints the config values that changed since the run's last start, if there was one."""
    if (workdir / "config.json").exists():
        for line in differences(read_config(workdir), config):
            console.print(f"Changed since the last start: {line}")


def differences(before: ConfigDict, after: ConfigDict) -> Iterator[str]:
    """Yields `key: old -> new` for every value of two configs that differs."""
    old, new = flatten(json.loads(before.to_json())), flatten(json.loads(after.to_json()))
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            yield f"{key}: {old.get(key)!r} -> {new.get(key)!r}"


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens {"a": {"b": 1}} to {"a.b": 1}."""
    flat = {}
    for key, value in tree.items():
        flat |= (
            flatten(value, f"{prefix}{key}.")
            if isinstance(value, Mapping)
            else {f"{prefix}{key}": value}
        )
    return flat
