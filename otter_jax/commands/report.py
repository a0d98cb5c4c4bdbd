"""Writes the report of a run: its curves, its results and what its teacher matches, one file."""

import argparse
import pathlib
from collections.abc import Sequence

from otter_jax.commands import flags, start
from otter_jax.errors import UserError


def parser() -> start.Parser:
    """Returns the parser of the command line."""
    made = start.Parser(
        "report",
        "WORKDIR [WORKDIR ...] [FLAGS]",
        "Writes report.html, one file that opens offline: loss, hits and what the teacher matches. "
        "Several runs are laid over each other. `train` and `eval` write a run's own at their end.",
        ("runs/first", "runs/otter runs/infonce --out both.html"),
    )
    flags.add_workdirs(made)
    where = "[report.html in the run's directory, or in the folder that holds all of them]"
    flags.add_file(made, help=where)
    return made


def run(options: argparse.Namespace) -> None:
    """Writes the report as the flags say."""
    if None in options.workdirs:
        raise UserError("WORKDIR is empty: the directory of a run, for example runs/first.")
    start.print_loading(waits_for="the program")
    from otter_jax.report import run as report

    written: pathlib.Path = report.write(options.workdirs, options.file)
    print(f"The report is in {written}.")


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    return start.status(lambda: run(flags.parse(parser(), argv)))
