"""Says how noisy the pairs of a set are, and finds those that should be left out."""

import argparse
import pathlib
import tempfile
from collections.abc import Sequence

from otter_jax.commands import flags, start
from otter_jax.errors import Stopped, UserError


def parser() -> start.Parser:
    """Returns the parser of the command line."""
    made = start.Parser(
        "noise",
        "DATA --model MODEL --out DIR [FLAGS]",
        "Says how well the captions of a prepared set match their pictures, and which match others "
        "better: by a trained model, in batches as training sees them.",
        (
            "mine --model runs/mine --out noise_mine",
            "mine --model runs/mine --out noise_mine --batch 256,1024",
        ),
    )
    made.flag("data", metavar="DATA", help="name of a set that `prepare` made, or TFDS, or a+b")
    made.flag("--model", metavar="MODEL", help="a run, what `export` wrote, or another CLIP")
    flags.add_out(made)
    made.flag(
        "--batch", default="512,1024,2048", metavar="B,B", help="pairs in a batch [%(default)s]"
    )
    made.flag("--split", default="train", metavar="NAME", help="of the set [%(default)s]")
    flags.add_data_dir(made)
    flags.add_weights(made)
    return made


def sizes(text: str) -> list[int]:
    """Returns the sizes of batches, ascending. Raises UserError for what is no list of them."""
    try:
        found = sorted({int(word) for word in text.split(",")})
    except ValueError:
        found = [0]
    if found[0] < 2:
        raise UserError(f"--batch {text!r}: sizes of 2 or more with commas, such as 512,1024.")
    return found


def run(options: argparse.Namespace) -> None:
    """Analyses the pairs as the flags say."""
    asked = sizes(options.batch)
    start.print_loading()
    from otter_jax.data.source import open_dataset
    from otter_jax.report import noise as report
    from otter_jax.run import directory, stops
    from otter_jax.run.console import make_console

    console = make_console()
    source = open_dataset(options.data_dir, options.data, options.split)
    source.check_has("caption")
    with directory.new_folder(options.out) as folder, stops.Stop() as stop:
        model = flags.load_model(options)
        console.print(f"Model: {model.name}. Data: {source.name}, {len(source):,} pairs.")
        try:
            pairs, found, judged = _analyse(model, source, asked, folder, console, stop.check)
        except Stopped:
            console.print("Stopped before the end; nothing was written.")
            raise
        console.print(report.table(found))
        report.write(folder, source, model, pairs, found, judged)
    out = options.out
    console.print(
        f"Written in {out}: noise.parquet (all pairs, the noisiest first), noise.json, "
        "histogram.png, sheet.png. To leave out the noisiest tenth, give the command that made "
        f"the set another --name, and --drop {out}/noise.parquet --share 0.1."
    )


def _analyse(model, source, asked, folder, console, check_stop):
    """Returns the pairs, the analysis for each size of batch, and what is known of each pair."""
    from otter_jax.predict import noise
    from otter_jax.predict.progress import Progress

    with (
        tempfile.TemporaryDirectory(dir=folder) as scratch,
        Progress(console, len(source)) as progress,
    ):

        def advance(count: int) -> None:
            check_stop()
            progress.advance(count)

        pairs = noise.embed(model, source, pathlib.Path(scratch), advance)
        console.print(f"Embedded {progress.told()}.")
        for key, why in pairs.unreadable[:1]:
            console.print(
                f"{len(pairs.unreadable):,} pictures cannot be read and are left out, such as "
                f"{key}: {why}."
            )
        count = len(pairs.captions)
        fitting = [size for size in asked if size <= count] or [count]
        if asked[-1] > count:
            console.print(f"There are {count:,} pairs; no larger batch is looked at.")
        found = []
        for size in fitting:
            with Progress(console, count) as progress:
                found.append(noise.matches(pairs, size, scale=model.scale, advance=advance))
        with Progress(console, count) as progress:
            judged = noise.judge(pairs, fitting[-1], scale=model.scale, advance=advance)
        return pairs, found, judged


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    return start.status(lambda: run(flags.parse(parser(), argv)))
