"""Trains an image and a text encoder on image-caption pairs, and evaluates them."""

import argparse
from collections.abc import Sequence

from otter_jax.commands import flags, start


def parser() -> start.Parser:
    """Returns the parser of the command line."""
    made = start.Parser(
        "train",
        "--config NAME[:VARIANT] --workdir DIR [FLAGS]",
        "Trains an image and a text encoder on image-caption pairs, and evaluates them. The same "
        "command goes on with a run that was stopped.",
        (
            "--config quickstart --workdir runs/first",
            "--config pairs:kd --workdir runs/mine --config.data.name=mine",
        ),
    )
    flags.add_config(made)
    flags.add_workdir(made)
    flags.add_resuming(made)
    flags.add_profile(made)
    flags.add_processes(made)
    return made


def run(options: argparse.Namespace) -> None:
    """Trains as the flags say."""
    start.print_loading(options.process_id)
    config = flags.config(options, needs="objective")
    flags.join(options, config)
    from otter_jax.report import run as report
    from otter_jax.run import directory, programs
    from otter_jax.run.console import make_console
    from otter_jax.training import contrastive, profiling

    console, workdir = make_console(), options.workdir
    directory.check_run(workdir, config, anyway=options.anyway, console=console)
    how = {"from_step": options.from_step, "anyway": options.anyway}
    with programs.keep_compiled(named=options.profile is not None):
        span = profiling.Span(*options.profile) if options.profile else None
        contrastive.run(config, workdir, profile=span, console=console, **how)
    report.write_at_end(workdir, console)
    console.print(f"Results are in {workdir / 'results'}, the log is {workdir / 'metrics.jsonl'}.")
    console.print(start.following(("eval", "--workdir", workdir), start.exported(workdir)))


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    return start.status(lambda: run(flags.parse(parser(), argv)))
