"""Finds and loads configs: those that ship with the package by name, others by path."""

import pathlib
import re
import traceback
import types
from collections.abc import Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from otter_jax.commands import ranges
from otter_jax.commands.start import nearest
from otter_jax.errors import UserError
from otter_jax.run.directory import flatten

HOME = pathlib.Path(__file__).parent.parent / "configs"


def names() -> list[str]:
    """Returns the names of the configs that ship with the package."""
    return sorted(path.stem for path in HOME.glob("*.py") if path.stem != "__init__")


def find(given: str) -> tuple[pathlib.Path, list[str]]:
    """Returns the file that "NAME_OR_PATH[:VARIANT]" names, and [VARIANT], or [] without one.

    Raises UserError, with the nearest name, if there is no such file.
    """
    name, *variant = given.split(":", 1)
    path = pathlib.Path(name).expanduser()
    if path.suffix != ".py" and len(path.parts) == 1:
        if name not in names():
            raise UserError(
                f"No config {name!r} ships with the program{nearest(name, names())} There are: "
                f"{', '.join(names())}; a config of your own is given by its path, FOLDER/NAME.py."
            )
        return HOME / f"{name}.py", variant
    if not path.is_file():
        raise UserError(
            f"There is no config file {name}{nearest(path.stem, names())} By name there are: "
            f"{', '.join(names())}."
        )
    return path, variant


def load(given: str, overrides: Sequence[str]) -> ConfigDict:
    """Returns the config "NAME_OR_PATH[:VARIANT]" with the values of `overrides`.

    Raises UserError if there is no such file; with file and line, if the file raises an error; and
    as `override` does.
    """
    path, variant = find(given)
    module = types.ModuleType("otter_jax_config")
    module.__file__ = str(path)
    try:
        exec(compile(path.read_bytes(), str(path), "exec"), vars(module))
        config = module.get_config(*variant)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"The config failed at {_where(error, path)}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"{path}: get_config returned {type(config).__name__}, not a ConfigDict.")
    return override(config.lock(), overrides)


def _where(error: Exception, path: pathlib.Path) -> str:
    """Returns "FILE:LINE: ERROR": the last line in the config itself, else where it was raised."""
    _, *frames = traceback.extract_tb(error.__traceback__)  # the first is `load`
    own = [frame for frame in frames if frame.filename == str(path)]
    file, line = path, 1
    if isinstance(error, SyntaxError) and error.filename:
        file, line = error.filename, error.lineno
    elif frames:
        file, line = (own or frames)[-1].filename, (own or frames)[-1].lineno
    said = error.msg if isinstance(error, SyntaxError) else str(error)
    # An unknown key of a ConfigDict: all that it has fills a screen, what is near stands behind it.
    said = re.sub(r' Other fields present: ".*\}"', "", said.replace("\\n", " "), flags=re.DOTALL)
    text = f"{type(error).__name__}: {said}"
    return f"{file}:{line}: {' '.join(text.split())}"


def override(config: ConfigDict, overrides: Sequence[str]) -> ConfigDict:
    """Returns the config with new values, each given as "--config.KEY=VALUE".

    Raises UserError for an unknown key, with the nearest one, and for a value of another type or
    out of its range.
    """
    for word in overrides:
        _check_key(config, re.sub(r"^--?(no)?config\.", "", word.split("=")[0]))
    values, argv = flags.FlagValues(), ["", *overrides]
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
        values(argv)
        made = values.config
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        text = str(error).replace("\\n", " ").replace("\\'", "'")  # a KeyError's text is quoted
        raise UserError(f"On the command line: {' '.join(text.split())}") from error
    ranges.check(made)
    return made


def _check_key(config: ConfigDict, key: str) -> None:
    """Raises UserError, with the nearest key and those of its section, for a key that is none."""
    section, before = config, ""
    for name in key.split("."):
        if not isinstance(section, ConfigDict):
            raise UserError(f"The config has no key {key!r}: {before[:-1]} is a value.")
        if name not in section:
            every = list(flatten(config.to_dict()))
            raise UserError(
                f"The config has no key {key!r}{nearest(key, every)} There are: "
                f"{', '.join(f'{before}{each}' for each in section)}."
            )
        section, before = section[name], f"{before}{name}."


def with_tuples(value: Any) -> Any:
    """Turns lists, which JSON makes of tuples, back into tuples, as overrides need them."""
    if isinstance(value, dict):
        return {key: with_tuples(each) for key, each in value.items()}
    return tuple(map(with_tuples, value)) if isinstance(value, list) else value
