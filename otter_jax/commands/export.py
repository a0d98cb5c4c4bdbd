"""Writes the encoders of a run, or the network of a transfer, for other programs."""

import argparse
import pathlib
from collections.abc import Sequence

import rich.console
from ml_collections import ConfigDict

from otter_jax.commands import flags, start
from otter_jax.errors import UserError
from otter_jax.run import directory
from otter_jax.run.console import make_console


def parser() -> start.Parser:
    """Returns the parser of the command line."""
    made = start.Parser(
        "export",
        "--workdir DIR --out DIR [FLAGS]",
        "Writes the best or latest weights of a run into a new folder: the image encoder for timm, "
        "the text encoder for transformers, both for sentence-transformers and for open_clip, and "
        "a model card; of a transfer its network for timm, gates folded in, and with --share the "
        "same network with fewer channels, for this program.",
        (
            "--workdir runs/first --out exported --eval unseen",
            "--workdir runs/birds --out birds --share 0.2",
        ),
    )
    flags.add_workdir(made, read_only=True)
    flags.add_out(made)
    made.flag("--weights", choices=["student", "ema"], help="of a run of two encoders [student]")
    made.flag(
        "--eval",
        nargs="+",
        metavar="SET",
        help="of a run of two encoders: evaluation sets to write as CLIP_benchmark reads them",
    )
    made.flag(
        "--share",
        type=float,
        metavar="S",
        help="of a transfer: the share of its filters to prune [0]",
    )
    made.flag(
        "--by",
        choices=["attention", "magnitude"],
        help="with --share: how the filters to prune are ranked [attention]",
    )
    flags.add_config(made, saved=True)
    flags.add_step(made)
    return made


def run(options: argparse.Namespace) -> None:
    """Exports as the flags say; the run's config shows which kind of run it is."""
    workdir, console = options.workdir, make_console()
    config = flags.any_config(options)
    transfer = directory.command_of(config) == "transfer"
    for name in ("weights", "eval") if transfer else ("share", "by"):
        if getattr(options, name) is not None:
            one, other = ("two encoders", "a transfer")[:: -1 if transfer else 1]
            raise UserError(f"--{name} is for {other}, and {workdir} is a run of {one}.")
    if options.by is not None and not options.share:
        raise UserError("--by goes with --share: it says how the filters to prune are ranked.")
    start.print_loading()
    if transfer:
        _network(config, options, console)
    else:
        _encoders(config, options, console)


def _encoders(
    config: ConfigDict, options: argparse.Namespace, console: rich.console.Console
) -> None:
    from otter_jax.run import export
    from otter_jax.zeroshot import benchmark

    workdir, out, weights = options.workdir, options.out, options.weights or "student"
    with directory.new_folder(out) as folder:
        sets = benchmark.open_sets(config, options.eval or [])
        taken = export.write(
            config,
            workdir,
            folder,
            which=weights,
            step=options.step,
            home=out,
            tell=console.print,
        )
        for each in sets:
            benchmark.write(each, config, folder / "eval" / each.name, console)
    console.print(f"The {weights} weights of {workdir}, {taken}, are in {out}. They are read by")
    console.print(f'  SentenceTransformer("{out}")')
    model = out / "open_clip"
    if model.is_dir():
        console.print(f'  open_clip.create_model_from_pretrained("local-dir:{model}")')
    console.print(f'  timm.create_model("local-dir:{out / "image"}", pretrained=True)')
    console.print(f'  transformers.AutoModel.from_pretrained("{out / "text"}")')
    for each in sets:
        console.print(f"{each.name} is in {out / 'eval' / each.name}, for CLIP_benchmark.")
        if model.is_dir():
            console.print(f"  {benchmark.command(each.name, out / 'eval' / each.name, model)}")


def _network(
    config: ConfigDict, options: argparse.Namespace, console: rich.console.Console
) -> None:
    from otter_jax.transfer.export import export

    folders: list[pathlib.Path] = export(
        config,
        options.workdir,
        options.out,
        share=options.share or 0.0,
        by=options.by or "attention",
        step=options.step,
        console=console,
    )
    for folder in folders:
        console.print(f"Written: {folder}")
    console.print("It is read by")
    console.print(f'  timm.create_model("local-dir:{folders[0]}", pretrained=True)')


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    return start.status(lambda: run(flags.parse(parser(), argv)))
