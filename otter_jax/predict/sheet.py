"""Draws a contact sheet: a grid of pictures with lines of text and bars, in one PNG."""

import functools
import math
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from otter_jax.data import images
from otter_jax.data.captions import clean
from otter_jax.errors import UserError
from otter_jax.files import written_whole
from otter_jax.predict.outputs import check_place
from otter_jax.predict.paths import written
from otter_jax.predict.pictures import content_of

MOST = 200  # pictures on a sheet, 100 MB of pixels at most
WIDTH = 300  # pixels of a picture's cell, and of its height
GAP, MARGIN = 24, 40
LINE, SIZE, TITLE = 31, 20, 30  # height of a line, and sizes of letters
BAR = 5  # height
WIDEST = 6  # cells side by side
PAPER, INK, FAINT, ACCENT, TRACK = "#ffffff", "#1d2530", "#76808c", "#2a6fdb", "#e4e9ef"


class Line(NamedTuple):
    """Is a line of text under a picture.

    Attributes:
      text: on the left, cut where there is no room for it.
      value: on the right.
      share: length of the bar below, 0 to 1; None draws none.
    """

    text: str
    value: str = ""
    share: float | None = None


class Cell(NamedTuple):
    """Is a picture with its name and lines."""

    picture: str | pathlib.Path | UInt8[np.ndarray, "H W 3"]
    name: str
    lines: Sequence[Line] = ()


def check_out(out: pathlib.Path) -> None:
    """Raises UserError for a sheet that cannot be written, before time is spent."""
    if out.suffix.lower() != ".png":
        raise UserError(f"--sheet {out}: a sheet is a PNG, so give it the ending .png.")
    check_place(out, "--sheet")


def draw(
    cells: Iterable[Cell],
    out: pathlib.Path,
    *,
    title: str = "",
    note: str = "",
    columns: int = WIDEST,
) -> int:
    """Writes a sheet of the first MOST cells, and returns how many are on it.

    Args:
      cells: with pictures or their paths; one that cannot be read is an empty frame that says why.
      out: the PNG; it is there when it is whole.
      title: above the grid.
      note: a smaller line below the title.
      columns: cells side by side; WIDEST or more: as many as make a good shape.
    """
    taken = [cell for cell, _ in zip(cells, range(MOST), strict=False)]
    if not 0 < columns < WIDEST:
        columns = max(1, min(WIDEST, round((1.5 * len(taken)) ** 0.5), len(taken)))
    lines = max((len(cell.lines) for cell in taken), default=0)
    barred = any(line.share is not None for cell in taken for line in cell.lines)
    step = LINE + (BAR + 5) * barred
    height = WIDTH + LINE + 8 + lines * step
    head = MARGIN + (TITLE + 18) * bool(title) + (SIZE + 18) * bool(note)
    rows = -(-len(taken) // columns)
    shape = (
        2 * MARGIN + columns * (WIDTH + GAP) - GAP,
        head + rows * (height + GAP) - GAP * bool(rows) + MARGIN,
    )
    sheet = Image.new("RGB", shape, PAPER)
    pen = ImageDraw.Draw(sheet)
    room = shape[0] - 2 * MARGIN
    if title:
        _text(pen, MARGIN, MARGIN - 8, title, room, size=TITLE, bold=True)
    if note:
        _text(pen, MARGIN, head - SIZE - 22, note, room, colour=FAINT)
    for number, cell in enumerate(taken):
        left = MARGIN + number % columns * (WIDTH + GAP)
        top = head + number // columns * (height + GAP)
        _cell(sheet, pen, cell, left, top, step)
    try:
        with written_whole(out) as scratch:
            sheet.save(scratch, "PNG")
    except OSError as error:
        raise UserError(f"--sheet {out} cannot be written: {error.strerror}.") from None
    return len(taken)


def _cell(
    sheet: Image.Image, pen: ImageDraw.ImageDraw, cell: Cell, left: int, top: int, step: int
) -> None:
    """Draws a picture at the bottom of its square, and its lines below."""
    pen.rounded_rectangle((left, top, left + WIDTH - 1, top + WIDTH - 1), 6, fill="#f4f6f8")
    try:
        small = _small(cell.picture)
        sheet.paste(small, (left + (WIDTH - small.width) // 2, top + (WIDTH - small.height) // 2))
    except images.UnreadableImage as error:
        _text(pen, left + 12, top + WIDTH // 2 - LINE // 2, str(error), WIDTH - 24, colour=FAINT)
    y = top + WIDTH + 6
    _text(pen, left, y, written(cell.name), WIDTH, size=SIZE - 4, colour=FAINT, cut="start")
    y += LINE
    for number, line in enumerate(cell.lines):
        bold = not number
        value = clean(line.value)
        taken = math.ceil(_font(value, SIZE, bold).getlength(value))
        _text(pen, left, y, line.text, WIDTH - taken - 10 * bool(value), bold=bold)
        _text(pen, left + WIDTH - taken, y, value, taken + 1, bold=bold)
        if line.share is not None:
            below = y + LINE - 3
            box = (left, below, left + WIDTH - 1, below + BAR)
            pen.rounded_rectangle(box, BAR / 2, fill=TRACK)
            length = round(min(max(line.share, 0.0), 1.0) * (WIDTH - 1))
            if length:
                right = left + max(length, BAR)
                colour = FAINT if number else ACCENT
                pen.rounded_rectangle((left, below, right, below + BAR), BAR / 2, fill=colour)
        y += step


def _small(picture: str | pathlib.Path | UInt8[np.ndarray, "H W 3"]) -> Image.Image:
    """Returns a picture that fits a cell. Raises UnreadableImage."""
    if not isinstance(picture, np.ndarray):
        picture = images.decode(content_of(picture))
    img = Image.fromarray(picture)
    scale = WIDTH / max(img.size)
    size = tuple(max(1, round(side * scale)) for side in img.size)
    return img.resize(size, Image.Resampling.LANCZOS, reducing_gap=3)


def _text(
    pen: ImageDraw.ImageDraw,
    x: int,
    y: int,
    text: str,
    room: int,
    *,
    size: int = SIZE,
    bold: bool = False,
    colour: str = INK,
    cut: str = "end",
) -> None:
    """Draws one line, cut at its end or its start so that it fits."""
    text = clean(text)
    font = _font(text, size, bold)
    if font.getlength(text) > room:
        most = 4 * WIDEST * WIDTH // size  # letters that may fit at all
        text = text[-most:] if cut == "start" else text[:most]
        while text and font.getlength(f"{text}…") > room:
            text = text[1:] if cut == "start" else text[:-1]
        text = f"…{text.lstrip()}" if cut == "start" else f"{text.rstrip()}…"
    pen.text((x, y + round(1.05 * size)), text, fill=colour, font=font, anchor="ls")


def _font(text: str, size: int, bold: bool) -> ImageFont.FreeTypeFont:
    """Returns a font for a text, in pixels."""
    return _loaded(_best(frozenset(ord(c) for c in text if not c.isspace()), bold), size)


@functools.lru_cache(4096)
def _best(characters: frozenset[int], bold: bool) -> str:
    """Returns the font that has most of the characters: matplotlib's DejaVu, or a system's."""
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    usual = str(pathlib.Path(matplotlib.get_data_path(), "fonts", "ttf", name))
    if characters <= _characters(usual):
        return usual
    return max((usual, *_installed(bold)), key=lambda path: len(characters & _characters(path)))


@functools.cache
def _installed(bold: bool) -> list[str]:
    """Returns the files of the system's fonts, upright and of this weight before others."""
    from matplotlib import font_manager

    def order(path: str) -> tuple:
        name = pathlib.Path(path).stem.lower()
        slanted = "italic" in name or "oblique" in name
        return slanted, ("bold" in name) != bold, "mono" in name or "serif" in name, name

    # Emoji are bitmaps of one size, and a last resort has a box for every character.
    fonts = font_manager.findSystemFonts()
    return sorted((f for f in fonts if not re.search("emoji|last.?resort", f, re.I)), key=order)


@functools.lru_cache(64)
def _characters(path: str) -> frozenset[int]:
    """Returns the characters that a font has; none of one that cannot be read."""
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()


@functools.lru_cache(64)
def _loaded(path: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size)
