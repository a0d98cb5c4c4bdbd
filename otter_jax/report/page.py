"""Makes an HTML page of text, tables and pictures under headings."""

import html
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Part = str | pathlib.Path | Sequence[Mapping[str, Any]]  # text, a picture's path, rows of a table


def page(title: str, parts: Iterable[tuple[str, Part]]) -> str:
    """Returns the HTML of parts with headings: text, a picture's relative path, a table's rows."""
    body = []
    for heading, part in parts:
        body.append(f"<h2>{html.escape(heading)}</h2>")
        if isinstance(part, pathlib.Path):
            body.append(f'<img src="{html.escape(part.as_posix())}" alt="{html.escape(heading)}">')
        elif isinstance(part, str):
            body.append(f"<p>{html.escape(part)}</p>")
        else:
            rows = [list(part[0])] + [[cell(value) for value in row.values()] for row in part]
            cells = ("".join(f"<td>{html.escape(str(c))}</td>" for c in row) for row in rows)
            body.append("<table>" + "".join(f"<tr>{row}</tr>" for row in cells) + "</table>")
    style = (
        "body{font-family:sans-serif;max-width:60em;margin:2em auto}img{max-width:100%}"
        "td{padding:.1em .8em;text-align:right}tr:first-child{font-weight:bold}"
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{style}</style><h1>{html.escape(title)}</h1>{''.join(body)}</html>"
    )


def cell(value: Any) -> str:
    """Formats a number for people: 0.123 or 1,234."""
    if isinstance(value, float):
        return f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
