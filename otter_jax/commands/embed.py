"""Writes the vectors of pictures or texts; a Parquet file of pictures is an index to search."""

import argparse
import functools
import pathlib
from collections.abc import Sequence

import rich.console

from otter_jax.commands import flags, start
from otter_jax.errors import Stopped, UserError

NAMED = 5  # pictures in a message


def parser() -> start.Parser:
    """Returns the parser of the command line."""
    made = start.Parser(
        "embed",
        "MODEL SOURCE... --out FILE [FLAGS]",
        "Writes a vector for each picture: in Parquet an index, which `search` reads and the same "
        "command brings up to date, or in .npz. After a stop the same command goes on.",
        (
            "runs/first photos --out photos.parquet",
            "runs/first --texts captions.txt --out captions.npz",
        ),
    )
    flags.add_model(made)
    flags.add_batch_size(made)
    flags.add_sources(made)
    made.flag(
        "--texts",
        type=pathlib.Path,
        metavar="FILE",
        help="instead of SOURCE: a text on each line",
    )
    flags.add_file(made, help="what is written: a new or older .parquet, or a new .npz")
    return made


def run(options: argparse.Namespace) -> int:
    """Embeds what the flags name."""
    if options.file is None:
        raise UserError("--out is missing: a file, for example photos.parquet.")
    if bool(options.sources) == (options.texts is not None):
        raise UserError("Give SOURCEs, such as a folder of pictures, or --texts FILE: one of both.")
    from otter_jax.predict import vectors

    vectors.check_out(options.file)
    try:
        return _texts(options) if options.texts else _pictures(options)
    except Stopped:
        print(
            f"Stopped. What is done is in {options.file}.parts; the same command goes on from it."
        )
        raise


def _texts(options: argparse.Namespace) -> int:
    from otter_jax.predict import vectors

    texts = vectors.texts_of(options.texts)
    start.print_loading()
    from otter_jax.predict.progress import Progress
    from otter_jax.run import stops
    from otter_jax.run.console import make_console
    from otter_jax.zeroshot import prompts

    console = make_console()
    model = flags.load_model(options)
    for note in prompts.cut(model.tokenizer, texts):
        console.print(f"Note: {note}.")
    with stops.Stop() as stop, Progress(console, len(texts), what="texts") as progress:
        new = vectors.embed_texts(
            model,
            texts,
            options.file,
            load=_load(options, model.step),
            check_stop=stop.check,
            advance=progress.advance,
        )
    console.print(
        f"{options.file}: the vectors of {len(texts):,} texts, by {model.name}: {new:,} new, "
        f"{len(texts) - new:,} as they were"
    )
    return 0


def _pictures(options: argparse.Namespace) -> int:
    from otter_jax.predict.pictures import Pictures

    pictures = Pictures.of(options.sources)
    print(pictures.told())
    start.print_loading()
    from otter_jax.predict import index
    from otter_jax.predict.progress import Progress
    from otter_jax.run import stops
    from otter_jax.run.console import make_console

    console = make_console()
    model = flags.load_model(options)
    with stops.Stop() as stop:
        done = index.update(
            model,
            pictures,
            options.file,
            load=_load(options, model.step),
            progress=functools.partial(Progress, console),
            check_stop=stop.check,
        )
    _print(done, options.file, model.name, console)
    if options.file.suffix.lower() == ".parquet" and done.new + done.changed + done.kept:
        console.print(start.following(("search", options.file, "a red bicycle")))
    return start.PARTLY if done.unreadable else 0


def _load(options: argparse.Namespace, step: int | None) -> dict[str, object]:
    """Returns how `search` is to load the model again: by its step, as a run may train on."""
    folder = pathlib.Path(options.model).expanduser()
    model = str(folder.absolute()) if folder.exists() else options.model  # a name on the hub
    return {"model": model, "weights": options.weights, "step": step}


def _print(done, file: pathlib.Path, model: str, console: rich.console.Console) -> None:
    """Prints what was done, and names what could not be."""
    from otter_jax.predict.paths import written

    count = done.new + done.changed + done.kept
    told = f"{file}: {count:,} pictures by {model}: {done.new:,} new"
    if done.changed:
        told += f", {done.changed:,} changed"
    if done.kept:
        told += f", {done.kept:,} as they were"
        told += f" ({done.elsewhere:,} of other sources)" * bool(done.elsewhere)
    console.print(told)
    if done.vanished:
        shown = ", ".join(map(written, done.vanished[:NAMED])) + _more(done.vanished)
        console.print(f"{len(done.vanished):,} no longer there, and dropped: {shown}")
    if done.unreadable:
        console.print(f"{len(done.unreadable):,} that cannot be read, and left out:")
        for path, why in done.unreadable[:NAMED]:
            console.print(f"  {written(path)}: {why}")
        if _more(done.unreadable):
            console.print(f" {_more(done.unreadable)}")


def _more(items: Sequence[object]) -> str:
    return f" and {len(items) - NAMED:,} more" * (len(items) > NAMED)


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    return start.status(lambda: run(flags.parse(parser(), argv)))
