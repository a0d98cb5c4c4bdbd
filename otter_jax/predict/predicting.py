"""Names what many pictures show, as rows of a table and on a contact sheet."""

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import rich.console

from otter_jax.errors import Stopped
from otter_jax.predict import pictures, tables
from otter_jax.predict import sheet as sheets
from otter_jax.predict.classes import Classes, alone, read_classes
from otter_jax.predict.model import TEMPLATES, Model
from otter_jax.predict.paths import written
from otter_jax.predict.pictures import Batch, Pictures
from otter_jax.predict.progress import Progress
from otter_jax.predict.ranking import Ranked, rank
from otter_jax.run.console import make_console
from otter_jax.zeroshot.bank import templates_of

COLUMNS = {"path": str, "rank": int, "class": str, "probability": float, "cosine": float}
NONE = "none of them"  # where no class is as probable as the threshold
NAMED = 20  # files that cannot be read and are named; the others are counted


def run(
    load: Callable[[], Model],
    sources: Sequence[str],
    *,
    classes: str,
    templates: str | None = None,
    top: int = 5,
    threshold: float | None = None,
    multi: bool = False,
    format: str | None = None,
    out: Path | None = None,
    sheet: Path | None = None,
) -> int:
    """Writes the `top` classes of each picture; returns how many files could not be read.

    `load` loads the model, once the others, which are the flags of `commands.predict`, are known to
    be right. Raises UserError for what is wrong with them, before a picture is read.
    """
    console = make_console(stderr=True)
    format = tables.format_of(format, out, sys.stdout.isatty())
    if sheet:
        sheets.check_out(sheet)
    asked = read_classes(classes)
    prompts = templates_of(TEMPLATES if templates is None else templates, "--templates")
    found = Pictures.of(sources)
    loaded = load()
    about = {
        "command": "predict",
        "model": loaded.identity[:16],
        "classes": hashlib.sha256(json.dumps(asked.names).encode()).hexdigest()[:16],
        "templates": list(prompts),
        "top": top,
        "threshold": threshold,
        "multi": multi,
    }
    try:
        with tables.table(format, COLUMNS, about, out) as table:
            loaded.prepare(len(found.paths))  # while the classes are embedded
            namer = Namer(loaded, asked, prompts, top, threshold, multi, console)
            return name_all(namer, found, table, sheet, console)
    except KeyboardInterrupt:
        if out is None:
            raise
        console.print(f"Stopped. What is done is in {out}; the same command goes on from there.")
        raise Stopped from None


class Namer:
    """Names pictures of one model and one set of classes."""

    def __init__(
        self,
        model: Model,
        classes: Classes,
        templates: Sequence[str],
        top: int,
        threshold: float | None,
        multi: bool,
        console: rich.console.Console,
    ):
        """Embeds the classes, or takes them from the cache; says what is wrong with them."""
        self.model, self._names = model, classes.first
        self._top, self._threshold = top, threshold
        console.print(
            f"{model.name}; {len(classes.names):,} class{'es' * (len(classes.names) > 1)} in "
            f"{len(templates)} template{'s' * (len(templates) > 1)}, such as {templates[0]!r}"
        )

        def tell(note):
            console.print(f"Note: {note}")

        certain = alone(classes) if multi and len(classes.names) == 1 else None
        for note in classes.notes:
            if not (certain and note.startswith(certain)):
                tell(f"{note}.")
        with Progress(console, len(classes.names), what="classes") as progress:
            self._bank = model.bank(classes.names, templates, tell=tell, advance=progress.advance)
        self._floor = model.floor(templates) if multi else None

    def __call__(self, batch: Batch) -> Iterator[list[tuple]]:
        """Yields the rows of each picture of a batch: of `COLUMNS`, best first."""
        if not batch.paths:
            return
        ranked: Ranked = rank(
            self.model.embed_pixels(batch.pixels),
            self._bank,
            scale=self.model.scale,
            top=self._top,
            floor=self._floor,
        )
        for path, *best in zip(batch.paths, *ranked, strict=True):
            rows = [
                (path, place, self._names[number], float(probability), float(cosine))
                for place, (number, probability, cosine) in enumerate(zip(*best, strict=True), 1)
                if self._threshold is None or probability >= self._threshold
            ]
            yield rows or [(path, 0, NONE, None, None)]


def name_all(
    namer: Namer,
    found: Pictures,
    table: tables.Table,
    sheet: Path | None,
    console: rich.console.Console,
) -> int:
    """Names all pictures that have no rows yet; returns how many files could not be read."""
    drawn = set(found.paths[: sheets.MOST] if sheet else ())
    todo = [path for path in found.paths if path not in table.done or path in drawn]
    before = len(found.paths) - len(todo)
    if table.done:
        console.print(f"{_pictures(len(table.done), 'has its', 'have their')} rows already")
    cells, unreadable = [], 0
    with Progress(console, len(found.paths), before) as progress:
        read = pictures.read(namer.model.read, todo, batch=namer.model.batch_size)
        for batch in progress.waiting(read):
            for path, why in batch.unreadable:
                unreadable += 1
                if unreadable <= NAMED:
                    console.print(f"Cannot be read: {written(path)}: {why}")
            rows = []
            for of_one in namer(batch):
                path = of_one[0][0]
                rows += of_one if path not in table.done else []
                if path in drawn:
                    cells.append(_cell(of_one))
            table.add(rows)
            progress.advance(len(batch))
        if len(todo) > 1:
            console.print(f"{found.told()}; {progress.told()}")
    if unreadable:
        told = "1 file could not be read, and has" if unreadable == 1 else (
            f"{unreadable:,} files could not be read, and have")  # fmt: skip
        console.print(f"{told} no rows: exit status 3")
    if sheet:
        count = sheets.draw(cells, sheet, title=_pictures(len(cells)), note=namer.model.name)
        rest = f", of the first {len(drawn):,}" if len(drawn) < len(found.paths) else ""
        console.print(f"{sheet} shows {_pictures(count)}{rest}")
    return unreadable


def _cell(rows: list[tuple]) -> sheets.Cell:
    """Returns a picture for the sheet, with its classes below it."""
    lines = [
        sheets.Line(name) if probability is None else
        sheets.Line(name, f"{probability:.1%}", probability)
        for _, _, name, probability, _ in rows
    ]  # fmt: skip
    return sheets.Cell(rows[0][0], Path(rows[0][0]).name, lines)


def _pictures(count: int, one: str = "", several: str = "") -> str:
    """Returns how many pictures, with a verb."""
    return f"1 picture {one}".rstrip() if count == 1 else f"{count:,} pictures {several}".rstrip()
