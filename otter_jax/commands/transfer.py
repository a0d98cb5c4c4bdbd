"""Trains a pretrained image encoder on labelled pictures, one group of its weights at a time."""

import argparse
from collections.abc import Sequence

from otter_jax.commands import flags, start


def parser() -> start.Parser:
    """Returns the parser of the command line."""
    made = start.Parser(
        "transfer",
        "--config transfer[:VARIANT] --workdir DIR [FLAGS]",
        "Trains a pretrained image encoder on labelled pictures, one group of its weights at a "
        "time. The same command goes on with a run that was stopped.",
        (
            "--config transfer --workdir runs/birds --config.data.name=birds \\\n"
            "      --config.data.folder=/data/birds",
            "--config transfer:full --workdir runs/mine --config.data.name=mine",
        ),
    )
    flags.add_config(made)
    flags.add_workdir(made)
    flags.add_resuming(made)
    flags.add_processes(made)
    return made


def run(options: argparse.Namespace) -> None:
    """Trains as the flags say, and writes the report."""
    start.print_loading(options.process_id)
    config = flags.config(options, needs="phases")
    flags.join(options, config)
    from otter_jax.report import transfer as report
    from otter_jax.run import directory, programs
    from otter_jax.run.console import make_console
    from otter_jax.transfer import task

    console, workdir = make_console(), options.workdir
    directory.check_run(workdir, config, anyway=options.anyway, console=console)
    with programs.keep_compiled():
        validation = task.run(
            config, workdir, from_step=options.from_step, anyway=options.anyway, console=console
        )
        if config.report:
            report.write(config, workdir, validation, console=console)
    console.print(f"Results are in {workdir / 'results'}, the log is {workdir / 'metrics.jsonl'}.")
    by = [] if config.gates.shape else ["--by", "magnitude"]
    pruned = start.exported(workdir, "smaller_", "--share", 0.2, *by)
    console.print(start.following(start.exported(workdir), pruned))


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    return start.status(lambda: run(flags.parse(parser(), argv)))
