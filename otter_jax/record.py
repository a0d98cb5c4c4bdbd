"""What a run leaves behind for people: how it was started, its numbers, its results."""

import hashlib
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import rich.console
import rich.progress
import tensorboardX
from ml_collections import ConfigDict

from otter_jax.errors import UserError

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


class Scalars:
    """Numbers over steps, in metrics.jsonl (one object a line) and as TensorBoard events.

    A run that goes on from step `start` first drops the lines, and the results, that it will write
    again.
    """

    def __init__(self, workdir: pathlib.Path, start: int = 0):
        path = workdir / "metrics.jsonl"
        if path.exists():
            lines = [line for line in path.read_text().splitlines() if _step_of(line) <= start]
            write_text(path, "".join(line + "\n" for line in lines))
        for result in (workdir / "results").glob("step_*.json"):
            if int(result.stem.removeprefix("step_")) > start:
                result.unlink()
        self._lines = path.open("a", buffering=1)
        self._events = tensorboardX.SummaryWriter(
            str(workdir / "tensorboard"), purge_step=start + 1
        )

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Appends the numbers of one step."""
        self._lines.write(json.dumps({"step": step} | dict(scalars)) + "\n")
        for name, value in scalars.items():
            self._events.add_scalar(name, value, step)
        self._events.flush()

    def close(self) -> None:
        """Writes out what is buffered."""
        self._lines.close()
        self._events.close()


def describe(workdir: pathlib.Path, config: Mapping[str, Any]) -> None:
    """Writes config.json, and how this start was made into run.json (one entry a start)."""
    workdir.mkdir(parents=True, exist_ok=True)
    write_text(workdir / "config.json", json.dumps(config, indent=2, sort_keys=True))
    path = workdir / "run.json"
    starts = json.loads(path.read_text()) if path.exists() else []
    here = pathlib.Path(__file__).parent
    try:
        git = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=here, capture_output=True, text=True, check=True,
        ).stdout.strip()  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        git = None  # no git, or not a checkout
    starts.append(
        {
            "command": sys.argv,
            "git": git,
            **versions(),
        }
    )
    write_text(path, json.dumps(starts, indent=2))


def versions() -> dict[str, Any]:
    """What computes: Python, the packages, and this package as it lies on disk."""
    here = pathlib.Path(__file__).parent
    code = hashlib.sha256()
    for path in sorted(here.rglob("*.py")):
        code.update(path.read_bytes())
    return {
        "python": sys.version.split()[0],
        "versions": {name: metadata.version(name) for name in PACKAGES},
        "otter_jax": code.hexdigest()[:12],
    }


def config_of(workdir: pathlib.Path, *, needs: str = "objective") -> ConfigDict:
    """The config of the latest start of a run.

    Raises UserError if there is none, or it has no key `needs`: a run of another program.
    """
    config = read_config(workdir)
    if needs not in config:
        raise UserError(f"{workdir} is a run of another program: its config has no key {needs!r}.")
    return config


def read_config(workdir: pathlib.Path) -> ConfigDict:
    """The config of the latest start of any program's run. Raises UserError if there is none."""
    path = workdir / "config.json"
    if not path.is_file():
        raise UserError(f"There is no {path}: is {workdir} the directory of a run?")
    no_gates = {"gates": {"shape": "", "penalty": "", "strength": 0.0}}  # of runs before there were
    return ConfigDict(no_gates | json.loads(path.read_text()))


def progress_bar(console: rich.console.Console) -> rich.progress.Progress:
    """What is done, for how long, and how long it will take; nothing but on a terminal."""
    return rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeElapsedColumn(),
        rich.progress.TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a result so that a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(value, indent=2))


def results(workdir: pathlib.Path, step: int) -> pathlib.Path:
    """Where an evaluation of the state after `step` steps is written."""
    return workdir / "results" / f"step_{step:08d}.json"


def millions(count: int) -> str:
    """1234567 as 1.23 M."""
    return f"{count / 1e6:.2f} M" if count >= 1e5 else f"{count:,}"


def duration(seconds: float) -> str:
    """Seconds as 1h02m, 3m04s or 5s."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}h{m:02d}m" if hours else f"{m}m{s:02d}s" if m else f"{s}s"


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a file so that a reader, or a kill, never leaves half of it."""
    scratch = path.with_name(path.name + ".tmp")
    scratch.write_text(text, "utf-8")
    os.replace(scratch, path)


def _step_of(line):
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError):
        return float("inf")  # the half line of a killed process
