"""The command doctor."""

import sys

from absl import flags

from otter_jax.commands import flags
from otter_jax.run.console import make_console
from otter_jax.training.doctor import tell

STEP = flags.DEFINE_bool("step", True, "Compile the step, and measure it.")


def main(_: list[str]) -> None:
    """Runs the program."""
    config = flags.config(saved_in=None, needs="objective")
    if not tell(config, step=STEP.value, console=make_console()):
        sys.exit(1)
