"""The door: `python -m otter_jax.main --config configs/X.py[:VARIANT] --workdir DIR`."""

import pathlib

from absl import flags

from otter_jax import command
from otter_jax.errors import UserError

MODE = flags.DEFINE_enum(
    "mode",
    "train",
    ["train", "eval", "convert"],
    "Train and evaluate; evaluate; or make a run of a --checkpoint of the released PyTorch code.",
)
CHECKPOINT = flags.DEFINE_string("checkpoint", None, "In convert mode: best.pth.tar, for example.")


def main(_: list[str]) -> None:
    """Runs what the flags ask for."""
    workdir = command.workdir()
    config = command.config(saved_in=workdir if MODE.value == "eval" else None, needs="objective")
    if (MODE.value == "convert") != (CHECKPOINT.value is not None):
        raise UserError("--checkpoint FILE and --mode convert go together.")
    console = command.console()

    # Imported here: a mistake in the flags need not wait for JAX.
    from otter_jax import released, train, zeroshot

    if MODE.value == "convert":
        released.run(config, pathlib.Path(CHECKPOINT.value).expanduser(), workdir, console=console)
        return
    command.join(config, workdir)
    if MODE.value == "eval":
        zeroshot.run(config, workdir, console=console)
        return
    command.say_differences(workdir, config, console)
    train.run(
        config,
        workdir,
        make_evaluate=lambda *args: zeroshot.Evaluator(*args, console),
        console=console,
    )


if __name__ == "__main__":
    command.run(main)
