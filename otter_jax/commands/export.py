"""The command export."""

import argparse
import pathlib
import sys

from absl import logging

from otter_jax.errors import UserError
from otter_jax.run import directory
from otter_jax.run.export import run


def main(argv: list[str] | None = None) -> None:
    """`run` by the command line; a user's mistake is one paragraph and exit status 2."""
    parser = argparse.ArgumentParser(
        "python -m otter_jax.export", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--workdir", required=True, type=pathlib.Path, help="a run's directory")
    parser.add_argument("--out", required=True, type=pathlib.Path, help="a new folder")
    parser.add_argument("--weights", default="student", choices=["student", "ema"])
    options = parser.parse_args(argv)
    logging.set_verbosity(logging.ERROR)  # Orbax warns of what is meant
    workdir, out = options.workdir.expanduser(), options.out.expanduser()
    try:
        run(directory.config_of(workdir), workdir, out, which=options.weights)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"The {options.weights} weights of {workdir} are in {out}.")
