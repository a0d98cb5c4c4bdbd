"""What the programs' command lines have in common: a config, and mistakes as one paragraph."""

import json
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import rich.console
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from otter_jax import record
from otter_jax.errors import UserError

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file, :VARIANT after it if it takes one."
)
WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run, all that it needs to go on.")


def workdir() -> pathlib.Path:
    """The directory of the run."""
    if not WORKDIR.value:
        raise UserError("--workdir is missing: the directory of the run, for example runs/first.")
    return pathlib.Path(WORKDIR.value).expanduser()


def config(*, saved_in: pathlib.Path | None, needs: str) -> ConfigDict:
    """The config given; without one, and where that will do, the one that a run was started by.

    Raises UserError if there is none, or it has no key `needs` and so is of another program.
    """
    if CONFIG.value is not None:
        if needs not in CONFIG.value:
            raise UserError(f"This --config is of another program: it has no key {needs!r}.")
        return CONFIG.value
    if saved_in is not None and (saved_in / "config.json").exists():
        return record.config_of(saved_in, needs=needs)
    raise UserError(
        "--config is missing: a config file, for example configs/quickstart.py."
        + (f" And there is no {saved_in / 'config.json'} to take its place." if saved_in else "")
    )


def console() -> rich.console.Console:
    """Where programs say what they do."""
    # Keys, paths and regular expressions are printed as they are: not read as markup, not broken.
    return rich.console.Console(markup=False, highlight=False, soft_wrap=True)


def parse(argv: list[str]) -> list[str]:
    """Flags and config from the command line; UserError for what cannot be understood."""
    try:
        rest = flags.FLAGS(argv)
        if CONFIG.value is not None:
            CONFIG.value.to_dict()  # a file that could not be loaded is an error only when used
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        # A KeyError's text is quoted; an error inside the config file is a whole traceback.
        text = str(error.args[0] if isinstance(error, KeyError) else error).strip()
        if "Traceback" in text:
            text = text.splitlines()[-1].split("Error: ", 1)[-1]
        raise UserError(f"In the command line or its config: {' '.join(text.split())}") from error
    if len(rest) > 1:
        raise UserError(f"What is {' '.join(rest[1:])!r}? Only flags are expected.")
    return rest


def say_differences(
    workdir: pathlib.Path, config: ConfigDict, console: rich.console.Console
) -> None:
    """Prints what has changed since the last start of the run, if there was one."""
    if (workdir / "config.json").exists():
        for line in differences(record.read_config(workdir), config):
            console.print(f"Changed since the last start: {line}")


def differences(before: ConfigDict, after: ConfigDict) -> Iterator[str]:
    """`key: old -> new` for every value of two configs that differs."""
    old, new = flatten(json.loads(before.to_json())), flatten(json.loads(after.to_json()))
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            yield f"{key}: {old.get(key)!r} -> {new.get(key)!r}"


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a.b": 1}."""
    flat = {}
    for key, value in tree.items():
        flat |= (
            flatten(value, f"{prefix}{key}.")
            if isinstance(value, Mapping)
            else {f"{prefix}{key}": value}
        )
    return flat


def run(main: Callable[[list[str]], None]) -> None:
    """`main` with a user's mistakes as one paragraph and exit status 2."""
    logging.set_verbosity(logging.ERROR)  # Orbax warns of what is meant
    try:
        app.run(main, flags_parser=parse)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
