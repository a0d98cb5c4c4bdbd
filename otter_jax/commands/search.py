"""Finds the pictures of an index that fit a text best, or look most like a picture."""

import argparse
import os
import pathlib
import sys
from collections.abc import Sequence

from otter_jax.commands import flags, start
from otter_jax.errors import UserError

FORMATS = ("table", "csv", "jsonl")


def parser() -> start.Parser:
    """Returns the parser of the command line."""
    made = start.Parser(
        "search",
        "INDEX TEXT... [FLAGS]",
        "Finds the pictures of an index, made by `embed`, that fit a text best, or with --image "
        "look most like a picture. All pictures are compared, exactly.",
        (
            'photos.parquet "a red bicycle" --sheet found.png',
            "photos.parquet --image bicycle.jpg --top 100 -f",
        ),
    )
    made.flag("index", type=pathlib.Path, metavar="INDEX", help="a file that `embed` wrote")
    made.flag("texts", nargs="*", metavar="TEXT", help="what to look for, or several in turn")
    made.flag(
        "--image",
        nargs="+",
        default=[],
        metavar="PICTURE",
        help="looks for pictures like this one, or each of several",
    )
    made.flag("--top", type=int, default=10, metavar="N", help="pictures for each [%(default)s]")
    made.flag(
        "-f", action="store_true", dest="files", help="prints paths alone, a line each; -0: for "
        "xargs -0, which takes any path"
    )  # fmt: skip
    made.flag("-0", action="store_true", dest="null", beside="-f")
    made.flag("--format", choices=FORMATS, help="[table on a terminal, else csv]")
    flags.add_sheet(made)
    made.flag(
        "--model",
        dest="moved",
        metavar="MODEL",
        help="where the index's model is now, if it was moved; and its weights, as for embed",
    )
    made.flag("--weights", choices=("student", "ema"), beside="--model")
    made.flag("--step", type=int, metavar="N", beside="--model")
    made.set_defaults(batch_size=None)
    return made


def run(options: argparse.Namespace) -> None:
    """Searches as the flags say."""
    if bool(options.texts) == bool(options.image):
        raise UserError('Give a TEXT, such as "a red bicycle", or --image PICTURE: one of both.')
    if any(not text.strip() for text in options.texts):
        raise UserError('A TEXT is empty: give what to look for, such as "a red bicycle".')
    if options.top < 1:
        raise UserError(f"--top={options.top}: how many pictures are to be found, from 1.")
    from otter_jax.predict import sheet
    from otter_jax.predict.index import Index

    if options.sheet:
        sheet.check_out(options.sheet)
    index = Index(options.index)
    if not index.count:
        raise UserError(f"{index.file} is an index of no picture.")
    found = _found(options, index)
    shown = {row: _shown(path) for row, path in index.paths(r for r, *_ in found).items()}
    _write(options, [(query, rank, shown[row], cosine) for row, query, rank, cosine in found])
    if options.sheet:
        queries = options.texts or [os.path.basename(path) for path in options.image]
        title = " · ".join(queries)
        cells = [
            sheet.Cell(shown[row], shown[row], [sheet.Line(query, f"{cosine:.3f}")])
            for row, query, _, cosine in found
        ]
        count = sheet.draw(
            cells,
            options.sheet,
            title=title,
            note=f"{index.file.name}, {index.count:,} pictures",
            columns=options.top if len(queries) > 1 else sheet.WIDEST,  # a row for each query
        )
        left = f", the first {count:,} of {len(cells):,}" * (count < len(cells))
        print(f"{options.sheet}: {count:,} pictures{left}", file=sys.stderr)


def _found(options: argparse.Namespace, index) -> list[tuple[int, str, int, float]]:
    """Returns (row of the index, query, rank, cosine) of what is found for each query."""
    from otter_jax.predict.neighbours import nearest
    from otter_jax.zeroshot import prompts

    model = _model(options, index)
    if model.identity != index.model:
        raise UserError(
            f"{index.file} was made by another model, {index.load['name']}; this one is "
            f"{model.name}. Vectors of two models cannot be compared: give the index's as --model "
            "MODEL, with --weights and --step, or make an index by this one, with another --out."
        )
    for note in prompts.cut(model.tokenizer, options.texts):
        print(f"Note: {note}.", file=sys.stderr)
    queries = options.texts or options.image
    vectors = model.embed_images(queries) if options.image else model.embed_texts(queries)
    best = nearest(vectors, index.blocks(), min(options.top, index.count))
    return [
        (int(row), query, rank, min(1.0, float(cosine)))  # float16 may give 1.00003
        for query, rows, cosines in zip(queries, *best, strict=True)
        for rank, (row, cosine) in enumerate(zip(rows, cosines, strict=True), start=1)
        if row >= 0
    ]


def _model(options: argparse.Namespace, index):
    """Loads the model of the index, or the one that the flags name."""
    if options.moved:
        return flags.load_model(options, model=options.moved)
    weights = options.weights or index.load["weights"]
    step = index.load["step"] if options.step is None else options.step
    try:
        return flags.load_model(options, model=index.load["model"], weights=weights, step=step)
    except UserError as error:
        raise UserError(
            f"{error} {index.file} was made by it: if it was moved, give --model MODEL."
        ) from None


def _shown(path: str) -> str:
    """Returns a path from here, if it lies below."""
    here = os.getcwd().rstrip("/") + "/"
    return path.removeprefix(here)


def _write(options: argparse.Namespace, rows: list[tuple[str, int, str, float]]) -> None:
    """Writes what was found to stdout."""
    from otter_jax.predict import tables

    if options.files or options.null:
        paths = dict.fromkeys(path for _, _, path, _ in rows)
        end = b"\0" if options.null else b"\n"
        tables.write_to(sys.stdout.buffer, b"".join(os.fsencode(path) + end for path in paths))
        return
    format = tables.format_of(options.format, None, sys.stdout.isatty())
    columns = {"query": str, "rank": int, "path": str, "cosine": float}
    with tables.table(format, columns, {}) as table:
        table.add(rows)


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    return start.status(lambda: run(flags.parse(parser(), argv)))
