"""The project's stated entry: `python -m otter_jax.main --config NAME --workdir DIR`.

It does the same as `python -m otter_jax train`, and with --mode eval as `python -m otter_jax eval`.
"""

import argparse
import sys
from collections.abc import Sequence

from otter_jax.commands import evaluate, flags, start, train

MODES = {"train": train.run, "eval": evaluate.run}


def parser() -> start.Parser:
    """Returns the parser of the command line."""
    made = start.Parser(
        "train",
        "--config NAME[:VARIANT] --workdir DIR [--mode train|eval] [FLAGS]",
        "Trains an image and a text encoder on image-caption pairs, and evaluates them; or with "
        "--mode eval evaluates a run.",
        (
            "--config configs/quickstart.py --workdir runs/first",
            "--workdir runs/first --mode eval",
        ),
        called=f"{start.program()}.main",
    )
    made.flag("--mode", choices=[*MODES], default="train", help="[%(default)s]")
    flags.add_config(made, saved=True)
    flags.add_workdir(made)
    flags.add_resuming(made)
    flags.add_profile(made)
    flags.add_step(made)
    flags.add_beside(made)
    flags.add_processes(made)
    return made


def run(argv: Sequence[str]) -> None:
    """Trains or evaluates as the flags say."""
    options: argparse.Namespace = flags.parse(parser(), argv)
    flags.check_config(options, saved=options.mode == "eval")
    MODES[options.mode](options)


def main(argv: Sequence[str]) -> int:
    """Runs the program; returns its exit status."""
    return start.status(lambda: run(argv))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
