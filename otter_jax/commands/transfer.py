"""The command transfer."""

import pathlib

from absl import flags

from otter_jax.commands import flags
from otter_jax.errors import UserError
from otter_jax.run import directory
from otter_jax.run.console import make_console
from otter_jax.transfer.export import export
from otter_jax.transfer.task import run

EXPORT = flags.DEFINE_string("export", None, "Write a trained network into this new folder.")


SHARE = flags.DEFINE_float("share", 0.0, "With --export: the share of its filters to prune.")


BY = flags.DEFINE_enum(
    "by",
    "attention",
    ["attention", "magnitude"],
    "With --share: which filters go first, those with the least attention or the smallest kernel.",
)


def main(_: list[str]) -> None:
    """Runs what the flags ask for."""
    workdir, console = flags.workdir(), make_console()
    if EXPORT.value is None:
        if SHARE.value:
            raise UserError("--share goes with --export.")
        config = flags.config(saved_in=None, needs="phases")
        flags.join(config, workdir)
        directory.say_differences(workdir, config, console)
        run(config, workdir, console=console)
        return
    config = flags.config(saved_in=workdir, needs="phases")
    out = pathlib.Path(EXPORT.value).expanduser()
    made = export(config, workdir, out, share=SHARE.value, by=BY.value, console=console)
    for folder in made:
        console.print(f"Written: {folder}")
