"""Names what pictures show, of classes that are known by their names alone."""

import argparse
import functools
from collections.abc import Sequence

from otter_jax.commands import flags, start
from otter_jax.errors import UserError


def parser() -> start.Parser:
    """Returns the parser of the command line."""
    made = start.Parser(
        "predict",
        "MODEL SOURCE... --classes NAMES [FLAGS]",
        "Names what pictures show, and how probably. Exit status "
        f"{start.PARTLY}: but for unreadable files.",
        (
            'runs/first photo.jpg --classes "dog,sofa"',
            "exported photos --classes names.txt --out found.csv --sheet found.png",
        ),
    )
    flags.add_model(made)
    flags.add_batch_size(made)
    flags.add_sources(made)
    made.flag(
        "--classes",
        metavar="NAMES",
        help="with commas between them, or a file: a line is NAME or NAME<TAB>SYNONYM;SYNONYM",
    )
    made.flag(
        "--templates",
        metavar="T",
        help='a text with {} where the name goes, or a file of such ["a photo of {}."]',
    )
    made.flag("--top", type=int, default=5, metavar="K", help="classes for each picture [5]")
    made.flag(
        "--threshold",
        type=float,
        metavar="P",
        help='leave out less probable classes; where none is left: "none of them"',
    )
    made.flag(
        "--multi",
        action="store_true",
        help='judge each class on its own, against "something", not against the others',
    )
    flags.add_format(made)
    flags.add_file(made, help="write there; after a stop the same command goes on [stdout]")
    flags.add_sheet(made)
    return made


def run(options: argparse.Namespace) -> int:
    """Predicts as the flags say; returns the exit status."""
    if options.classes is None:
        raise UserError('--classes is missing: names, --classes "dog,sofa", or a file of them.')
    if not options.sources:
        raise UserError("SOURCE is missing: pictures, folders, globs, or - for paths on stdin.")
    if options.top < 1:
        raise UserError(f"--top {options.top}: give 1 or more.")
    if options.threshold is not None and not 0 <= options.threshold <= 1:
        raise UserError(f"--threshold {options.threshold}: a probability is from 0 to 1.")
    from otter_jax.predict import predicting

    unreadable = predicting.run(
        functools.partial(flags.load_model, options),
        options.sources,
        classes=options.classes,
        templates=options.templates,
        top=options.top,
        threshold=options.threshold,
        multi=options.multi,
        format=options.format,
        out=options.file,
        sheet=options.sheet,
    )
    return start.PARTLY if unreadable else 0


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    return start.status(lambda: run(flags.parse(parser(), argv)))
