"""Turns a checkpoint of the released PyTorch code into a run: to evaluate, export or teach by."""

import argparse
import pathlib
from collections.abc import Sequence

from otter_jax.commands import flags, start


def parser() -> start.Parser:
    """Returns the parser of the command line."""
    made = start.Parser(
        "convert",
        "CHECKPOINT --config NAME[:VARIANT] --workdir DIR [FLAGS]",
        "Turns a checkpoint of the released PyTorch code into a run, to evaluate, export or teach "
        "by. The config describes its model. No PyTorch is needed.",
        (
            "best.pth.tar --config cc3m:otter_released --workdir runs/released",
            "last.pth.tar --config wit:kd_released --workdir runs/wit_released",
        ),
    )
    made.flag("checkpoint", type=pathlib.Path, metavar="CHECKPOINT", help="such as best.pth.tar")
    flags.add_config(made)
    flags.add_workdir(made)
    return made


def run(options: argparse.Namespace) -> None:
    """Converts as the flags say."""
    start.print_loading()
    config = flags.config(options, needs="objective")
    from otter_jax.run.console import make_console
    from otter_jax.run.convert import run as convert

    console, workdir = make_console(), options.workdir
    convert(config, options.checkpoint.expanduser(), workdir, console=console)
    out = workdir.with_name(f"{workdir.name}_exported")
    console.print(
        start.following(
            ("eval", "--workdir", workdir), ("export", "--workdir", workdir, "--out", out)
        )
    )


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    return start.status(lambda: run(flags.parse(parser(), argv)))
