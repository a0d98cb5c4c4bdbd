"""Evaluates a run on the zero-shot sets of its config."""

import argparse
from collections.abc import Sequence

from otter_jax.commands import flags, start


def parser() -> start.Parser:
    """Returns the parser of the command line."""
    made = start.Parser(
        "eval",
        "--workdir DIR [--config NAME[:VARIANT]] [FLAGS]",
        "Evaluates a run on the zero-shot sets of its config, or of another one: its best "
        "checkpoint by eval.best, else the latest.",
        (
            "--workdir runs/first",
            "--workdir runs/first --config FOLDER/with_my_classes.py",
        ),
    )
    flags.add_workdir(made)
    flags.add_config(made, saved=True)
    flags.add_step(made)
    flags.add_beside(made)
    flags.add_processes(made)
    return made


def run(options: argparse.Namespace) -> None:
    """Evaluates as the flags say."""
    start.print_loading(options.process_id)
    workdir = options.workdir
    config = flags.config(options, needs="objective")
    flags.join(options, config)
    from otter_jax.report import run as report
    from otter_jax.run import trained
    from otter_jax.run.console import make_console
    from otter_jax.zeroshot import evaluator

    console = make_console()
    evaluator.run(config, workdir, step=options.step, others=options.beside, console=console)
    report.write_at_end(workdir, console)
    ema = start.exported(workdir, "ema_", "--weights", "ema")
    kept = trained.kept_weights(config)
    console.print(start.following(start.exported(workdir), *([ema] if "ema" in kept else [])))


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    return start.status(lambda: run(flags.parse(parser(), argv)))
