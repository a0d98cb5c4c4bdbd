"""The door: `python -m otter_jax.main --config configs/X.py[:VARIANT] --workdir DIR`."""

import pathlib

from absl import flags

from otter_jax.commands import flags
from otter_jax.errors import UserError
from otter_jax.run import directory
from otter_jax.run.console import make_console
from otter_jax.run.convert import run
from otter_jax.training import contrastive
from otter_jax.zeroshot import evaluator

MODE = flags.DEFINE_enum(
    "mode",
    "train",
    ["train", "eval", "convert"],
    "Train and evaluate; evaluate; or make a run of a --checkpoint of the released PyTorch code.",
)
CHECKPOINT = flags.DEFINE_string("checkpoint", None, "In convert mode: best.pth.tar, for example.")


def main(_: list[str]) -> None:
    """Runs what the flags ask for."""
    workdir = flags.workdir()
    config = flags.config(saved_in=workdir if MODE.value == "eval" else None, needs="objective")
    if (MODE.value == "convert") != (CHECKPOINT.value is not None):
        raise UserError("--checkpoint FILE and --mode convert go together.")
    console = make_console()

    # Imported here: a mistake in the flags need not wait for JAX.
    pass

    if MODE.value == "convert":
        run(config, pathlib.Path(CHECKPOINT.value).expanduser(), workdir, console=console)
        return
    flags.join(config, workdir)
    if MODE.value == "eval":
        evaluator.run(config, workdir, console=console)
        return
    directory.say_differences(workdir, config, console)
    contrastive.run(
        config,
        workdir,
        make_evaluate=lambda *args: evaluator.Evaluator(*args, console),
        console=console,
    )


if __name__ == "__main__":
    flags.run(main)
