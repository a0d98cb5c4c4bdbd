"""The door: `python -m otter_jax.main --config configs/X.py[:VARIANT] --workdir DIR`."""

import json
import pathlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import rich.console
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from otter_jax import record
from otter_jax.errors import UserError

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file, :VARIANT after it if it takes one. In eval mode: the run's own."
)
WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run, all that it needs to go on.")
MODE = flags.DEFINE_enum(
    "mode",
    "train",
    ["train", "eval", "convert"],
    "Train and evaluate; evaluate; or make a run of a --checkpoint of the released PyTorch code.",
)
CHECKPOINT = flags.DEFINE_string("checkpoint", None, "In convert mode: best.pth.tar, for example.")


def main(argv: list[str]) -> None:
    """Runs what the flags ask for."""
    if len(argv) > 1:
        raise UserError(f"What is {' '.join(argv[1:])!r}? Only flags are expected.")
    if not WORKDIR.value:
        raise UserError("--workdir is missing: the directory of the run, for example runs/first.")
    workdir = pathlib.Path(WORKDIR.value).expanduser()
    saved = workdir / "config.json"
    config = CONFIG.value
    if config is None:
        if MODE.value != "eval" or not saved.exists():
            raise UserError(
                "--config is missing: a config file, for example configs/quickstart.py."
                + (f" And there is no {saved} to take its place." if MODE.value == "eval" else "")
            )
        config = record.config_of(workdir)
    if (MODE.value == "convert") != (CHECKPOINT.value is not None):
        raise UserError("--checkpoint FILE and --mode convert go together.")
    # Keys, paths and regular expressions are printed as they are, not read as markup.
    console = rich.console.Console(markup=False, highlight=False)

    # Imported here: a mistake in the flags need not wait for JAX.
    from otter_jax import released, train, zeroshot

    if MODE.value == "convert":
        released.run(config, pathlib.Path(CHECKPOINT.value).expanduser(), workdir, console=console)
        return
    if MODE.value == "eval":
        zeroshot.run(config, workdir, console=console)
        return
    if saved.exists():
        for line in differences(record.config_of(workdir), config):
            console.print(f"Changed since the last start: {line}")
    train.run(
        config,
        workdir,
        make_evaluate=lambda *args: zeroshot.Evaluator(*args, console),
        console=console,
    )


def parse(argv: list[str]) -> list[str]:
    """Flags and config from the command line; UserError for what cannot be understood."""
    try:
        rest = flags.FLAGS(argv)
        if CONFIG.value is not None:
            CONFIG.value.to_dict()  # a file that could not be loaded is an error only when used
        return rest
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        # A KeyError's text is quoted; an error inside the config file is a whole traceback.
        text = str(error.args[0] if isinstance(error, KeyError) else error).strip()
        if "Traceback" in text:
            text = text.splitlines()[-1].split("Error: ", 1)[-1]
        raise UserError(f"In the command line or its config: {' '.join(text.split())}") from error


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


def cli() -> None:
    """`main` with a user's mistakes as one paragraph and exit status 2."""
    logging.set_verbosity(logging.ERROR)  # Orbax warns of what is meant
    try:
        app.run(main, flags_parser=parse)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    cli()
