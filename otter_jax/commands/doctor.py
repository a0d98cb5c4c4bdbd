"""Finds what would go wrong with a run, or make it slow, before it takes GPUs."""

import argparse
from collections.abc import Sequence

from otter_jax.commands import flags, start


def parser() -> start.Parser:
    """Returns the parser of the command line."""
    made = start.Parser(
        "doctor",
        "--config NAME[:VARIANT] [FLAGS]",
        "Finds what would go wrong with a run, or make it slow, before it takes GPUs: images, "
        "captions, labels, memory, and whether the pipeline keeps up with the step. Run it on the "
        "machine that will train; it takes half a minute, and the time to compile. The exit status "
        "is 1 if something is wrong.",
        (
            "--config pairs --config.data.name=mine",
            "--config pairs:cpu --config.data.name=mine --nostep",
        ),
    )
    flags.add_config(made)
    made.flag("--nostep", action="store_true", help="neither compile the step nor measure it")
    return made


def run(options: argparse.Namespace) -> int:
    """Checks the config that the flags name; returns 1 if something is wrong."""
    start.print_loading()
    config = flags.config(options, needs="objective")
    from otter_jax.run import heap
    from otter_jax.run.console import make_console
    from otter_jax.training.doctor import print_findings

    heap.share_and_keep()  # so that the step that is timed is as fast as training's
    console = make_console()
    if not print_findings(config, step=not options.nostep, console=console):
        return 1
    words = ("--config", options.config, *options.overrides, "--workdir", "runs/first")
    console.print(start.following(("train", *words)))
    return 0


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    return start.status(lambda: run(flags.parse(parser(), argv)))
