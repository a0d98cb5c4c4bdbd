"""Reads and writes a run's directory: config, starts, results; files appear whole."""

import contextlib
import hashlib
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any, NamedTuple

import rich.console
from ml_collections import ConfigDict

from otter_jax.errors import UserError
from otter_jax.files import Refused, read_json, write_text
from otter_jax.run import lock

COMMANDS = {"objective": "train", "phases": "transfer"}  # key of a config: the command it is for
# What may differ from start to start of one run; the config's other keys in these sections may not.
FIXED = ("method", "objective", "model", "data", "gates", "teacher", "seed", "optim.name",
         "optim.freeze", "train.stored_statistics")  # fmt: skip
FREE = ("model.dtype", "data.dir", "data.num_workers", "data.tars", "data.folder")
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def describe(workdir: pathlib.Path, config: Mapping[str, Any]) -> None:
    """Writes config.json, and adds an entry for this start to run.json.

    A run.json that is damaged is set aside, as run.json.damaged.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    write_text(workdir / "config.json", json.dumps(config, indent=2, sort_keys=True))
    path = workdir / "run.json"
    try:
        starts = list(read_json(path)) if path.exists() else []
    except (Refused, ValueError, TypeError):
        path.replace(path.with_name("run.json.damaged"))
        starts = []
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


def check_place(workdir: pathlib.Path) -> None:
    """Raises UserError if no directory can be made or written to there."""
    there = workdir.absolute()
    try:
        while not there.exists() and there != there.parent:
            there = there.parent
        with tempfile.TemporaryFile(dir=there):
            return
    except OSError as error:
        reason = f"no file can be made in {there} ({error.strerror})"
    if not there.is_dir():
        reason = f"{there} is a file"
    raise UserError(
        f"--workdir {workdir} cannot be the directory of a run: {reason}. Give another path."
    )


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


def is_run(workdir: str | pathlib.Path) -> bool:
    """Tells whether this is the directory of a run with checkpoints."""
    folder = pathlib.Path(workdir).expanduser()
    described = (folder / "run.json").is_file() or (folder / "config.json").is_file()
    return bool(str(workdir)) and (folder / "checkpoints").is_dir() and described


def config_of(workdir: pathlib.Path, *, needs: str = "objective") -> ConfigDict:
    """Returns the config of the latest start of a run that made steps.

    Raises UserError if there is none, or it has no key `needs`: another command made the run.
    """
    config = read_config(workdir)
    if needs not in config:
        raise UserError(
            f"{workdir} is a run of another command, {command_of(config)}: its config has no key "
            f"{needs!r}."
        )
    return config


def read_config(workdir: pathlib.Path) -> ConfigDict:
    """Returns the config of the latest start of any run that made steps.

    Raises UserError if there is none, or it is damaged.
    """
    path = workdir / "config.json"
    if not path.is_file():
        raise UserError(f"There is no {path}: is {workdir} the directory of a run?")
    try:
        return completed(read_json(path))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{path} is damaged, it cannot be read ({error}): restore it, or give the config that "
            "the run was trained with, --config NAME."
        ) from error


def completed(config: Any) -> ConfigDict:
    """Returns a run's config as it was written, with the keys that runs of old versions lack.

    Raises a TypeError if it is no object.
    """
    found = {"gates": {"shape": "", "penalty": "", "strength": 0.0}} | config
    if "data" in found:
        found["data"] = {"exif": "ignore"} | found["data"]
    evaluation = dict(found.get("eval", {}))
    if sets := dict(evaluation.get("sets", {})):
        new = {"folder": "", "probe": ""}
        found["eval"] = evaluation | {"sets": {name: new | sets[name] for name in sets}}
    return ConfigDict(found)


def command_of(config: ConfigDict) -> str:
    """Returns the command that a config is for, "none" if it has no key of one."""
    return next((name for key, name in COMMANDS.items() if key in config), "none")


@contextlib.contextmanager
def new_folder(out: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields an empty folder that becomes `out` at the end, so that `out` is never half written.

    After an error it is removed. Files get the permissions that the umask gives. Raises UserError
    if `out` is there and not an empty folder, or cannot be made.
    """
    out = out.absolute()
    if out.exists() and not (out.is_dir() and not any(out.iterdir()) and out != pathlib.Path.cwd()):
        raise UserError(f"--out {out} is there already, and not an empty folder; give a new one.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        scratch = pathlib.Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error.strerror}.") from error
    try:
        yield scratch
        mask = os.umask(0)
        os.umask(mask)
        scratch.chmod(0o777 & ~mask)
        for path in scratch.rglob("*"):
            if path.is_file():  # some libraries make private files
                path.chmod(0o666 & ~mask)
        scratch.replace(out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a value as JSON, so that a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(value, indent=2))


def results(workdir: pathlib.Path, step: int, kind: str = "") -> pathlib.Path:
    """Returns the file for an evaluation of the state after step `step`.

    `kind` is "" for the run's own, and tells others apart from it and each other.
    """
    return workdir / "results" / f"step_{step:08d}{'.' * bool(kind)}{kind}.json"


class Evaluation(NamedTuple):
    """Is a file of results that is there: of which step, and of which `kind`, as in `results`."""

    path: pathlib.Path
    step: int
    kind: str

    def read(self) -> dict[str, Any] | None:
        """Returns what it says; None of a file that is damaged, or is none of this program."""
        try:
            found = read_json(self.path)
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) and "step" in found else None


def evaluations(workdir: pathlib.Path) -> list[Evaluation]:
    """Returns the evaluations of a run, by their steps."""
    paths = sorted((workdir / "results").glob("step_*.json"))
    named = ((path, re.fullmatch(r"step_(\d+)(?:\.(\w+))?\.json", path.name)) for path in paths)
    return [Evaluation(path, int(name[1]), name[2] or "") for path, name in named if name]


def digest(facts: Mapping[str, Any]) -> str:
    """Returns eight digits that change whenever a value does."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]


def check_run(
    workdir: pathlib.Path, config: ConfigDict, *, anyway: bool, console: rich.console.Console
) -> None:
    """Raises UserError if `config` describes another run than the one in `workdir`.

    Prints the values that changed since the run's last start; with `anyway` also those of other
    data, another model or method, but not another batch size, since steps are counted in batches.
    A run without a checkpoint is none yet. Raises UserError, too, if another start trains there.
    """
    lock.check_free(workdir)
    if not any((workdir / "checkpoints").glob("[0-9]*")) or not (workdir / "config.json").exists():
        return
    try:
        before = read_config(workdir)
    except UserError as error:
        console.print(f"The run's config was not compared with this one: {error}")
        return
    if command_of(before) != command_of(config):
        raise UserError(
            f"{workdir} is a run of {command_of(before)}, and this is {command_of(config)}: give "
            "another --workdir."
        )
    now = config.train.batch_size
    was = flatten(json.loads(before.to_json())).get("train.batch_size", now)
    if was != now:
        raise UserError(
            f"The run in {workdir} has batches of {was}, and train.batch_size is {now} here. A run "
            f"counts its steps in batches, so it goes on with {was} alone: "
            f"--config.train.batch_size={was}, or another --workdir."
        )
    changed = list(differences(before, config))
    other = [line for line in changed if _is_fixed(line.split(": ")[0])]
    if other and not anyway:
        more = f"; and {len(other) - 8} more" if len(other) > 8 else ""
        theirs = flatten(json.loads(before.to_json()))
        keys = [line.split(": ")[0] for line in other]
        flags = " ".join(f"--config.{key}={shlex.quote(str(theirs[key]))}" for key in keys)
        keep = f", or go on as before by {flags}" if len(keys) <= 3 else ""
        raise UserError(
            f"The run in {workdir} is another one: {'; '.join(other[:8])}{more}. Give another "
            f"--workdir{keep}; or --anyway, "
            "if this run is meant to go on so."
        )
    for line in changed:
        console.print(f"Changed since the last start: {line}")


def _is_fixed(key: str) -> bool:
    """Tells whether another value of this key makes another run."""
    within = [name for name in (*FIXED, *FREE) if key == name or key.startswith(f"{name}.")]
    return bool(within) and not set(within) & set(FREE)


def differences(before: ConfigDict, after: ConfigDict) -> Iterator[str]:
    """Yields "key: old -> new" for every value of two configs that differs.

    Keys that only one of the two has are left out: versions of this program have other ones.
    """
    old, new = flatten(json.loads(before.to_json())), flatten(json.loads(after.to_json()))
    for key in sorted(old.keys() & new.keys()):
        if old[key] != new[key]:
            yield f"{key}: {old[key]!r} -> {new[key]!r}"


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
