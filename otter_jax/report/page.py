"""Makes an HTML page of text, tables and pictures under headings."""

import base64
import html
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

STYLE = (
    "body{font-family:sans-serif;max-width:60em;margin:2em auto;padding:0 1em}img{max-width:100%}"
    "table{border-collapse:collapse}td{padding:.15em .8em;vertical-align:top}"
    "td.n{text-align:right;white-space:nowrap}td{overflow-wrap:break-word}"
    "td:last-child{overflow-wrap:anywhere}"
    "tr:first-child{font-weight:bold}"
    ".gallery{display:grid;grid-template-columns:repeat(auto-fill,minmax(8.5em,1fr));gap:1.2em 1em}"
    "figure{margin:0}figure img{height:8em;max-width:100%;object-fit:contain;display:block}"
    "figcaption{font-size:.75em;line-height:1.3;margin-top:.4em;max-height:7.8em;overflow:hidden;"
    "overflow-wrap:anywhere}"
)


class Shown(NamedTuple):
    """Holds a picture, the bytes of a JPEG, and the text below it."""

    picture: bytes
    text: str


# Text, a picture's path, a PNG that becomes part of the page, rows of a table, pictures with texts.
Part = str | pathlib.Path | bytes | Sequence[Mapping[str, Any]] | Sequence[Shown]


def page(title: str, parts: Iterable[tuple[str, Part]]) -> str:
    """Returns the HTML of parts with headings. Whatever a text holds, it is shown as text."""
    sections = (f"<h2>{html.escape(name)}</h2>{_html(name, part)}" for name, part in parts)
    body = "".join(sections)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}</style><h1>{html.escape(title)}</h1>{body}</html>"
    )


def cell(value: Any) -> str:
    """Formats a number for people: 0.123 or 1,234."""
    if isinstance(value, float):
        return f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _html(heading: str, part: Part) -> str:
    if isinstance(part, str):
        return f"<p>{html.escape(part)}</p>"
    if isinstance(part, pathlib.Path):
        return f'<img src="{html.escape(part.as_posix())}" alt="{html.escape(heading)}">'
    if isinstance(part, bytes):
        return _image(part, "png", heading)
    if isinstance(part[0], Shown):
        figures = (
            # The direction is that of the text; what it begins with ends with the caption.
            f"<figure>{_image(picture, 'jpeg', '')}"
            f'<figcaption dir="auto">{html.escape(text)}</figcaption></figure>'
            for picture, text in part
        )
        return f'<div class="gallery">{"".join(figures)}</div>'
    numbers = [isinstance(value, int | float) for value in part[0].values()]
    rows = [list(part[0])] + [[cell(value) for value in row.values()] for row in part]
    return "<table>" + "".join(_row(row, numbers) for row in rows) + "</table>"


def _row(cells: Sequence[str], numbers: Sequence[bool]) -> str:
    tags = (' class="n"' if number else ' dir="auto"' for number in numbers)
    row = (f"<td{tag}>{html.escape(text)}</td>" for tag, text in zip(tags, cells, strict=True))
    return f"<tr>{''.join(row)}</tr>"


def _image(data: bytes, format: str, alt: str) -> str:
    source = f"data:image/{format};base64,{base64.b64encode(data).decode()}"
    return f'<img src="{source}" alt="{html.escape(alt)}">'
