"""Makes an HTML page of text, tables, plots and pictures under headings: one file, no script."""

import base64
import html
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

LIGHT = ["#2563eb", "#c2410c", "#15803d", "#9333ea", "#be123c", "#0f766e", "#854d0e", "#475569"]
DARK = ["#7cb0ff", "#fb923c", "#4ade80", "#d0a2ff", "#fb7f92", "#2dd4bf", "#facc15", "#a9b6c8"]
# Nothing is fetched and nothing runs, whatever a caption might hold; the pictures of a transfer lie
# beside its page.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src 'self' file: data:"
STYLE = """
:root{color-scheme:light dark;--ink:#1b2430;--soft:#5b6675;--faint:#e3e7ec;--paper:#fff;
--card:#f6f7f9;--good:#15803d;--bad:#b4232f;COLOURS}
@media(prefers-color-scheme:dark){:root{--ink:#e6eaf0;--soft:#9fabba;--faint:#323b47;
--paper:#12161c;--card:#1a2028;--good:#4ade80;--bad:#ff8d8d;DARK_ONES}}
body{font:15px/1.5 system-ui,sans-serif;max-width:82em;margin:0 auto;padding:1.5em 1em 4em;
color:var(--ink);background:var(--paper)}
h1{font-size:1.7em;line-height:1.2;margin:.4em 0}
h1,h2,h3,h4{overflow-wrap:anywhere}
h2{font-size:1.25em;margin:2.2em 0 .5em;padding-top:.6em;border-top:1px solid var(--faint)}
h3{font-size:1em;margin:1.2em 0 .4em}
p{max-width:48em;margin:.4em 0;overflow-wrap:anywhere}.none,.note{color:var(--soft)}
img{max-width:100%}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.93em}
td{padding:.2em .9em .2em 0;vertical-align:top;border-bottom:1px solid var(--faint);
overflow-wrap:break-word}
td.n{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums;padding-left:.6em}
td:last-child{overflow-wrap:anywhere}tr:first-child{font-weight:bold}
.gallery{display:grid;grid-template-columns:repeat(auto-fill,minmax(8.5em,1fr));gap:1.2em 1em}
figure{margin:0}.gallery img{height:8em;max-width:100%;object-fit:contain;display:block}
.gallery figcaption{font-size:.8em;line-height:1.3;margin-top:.4em;max-height:7.8em;overflow:hidden;
overflow-wrap:anywhere}
"""


class Shown(NamedTuple):
    """Holds a picture, the bytes of a JPEG, and the text below it."""

    picture: bytes
    text: str


class Markup(NamedTuple):
    """Holds HTML that becomes part of the page as it is: whoever makes it escapes all texts."""

    html: str


# Text, a picture's path, a PNG that becomes part of the page, rows of a table, pictures with texts.
Part = str | pathlib.Path | bytes | Markup | Sequence[Mapping[str, Any]] | Sequence[Shown]


def page(title: str, parts: Iterable[tuple[str, Part]], *, style: str = "") -> str:
    """Returns the HTML of parts with headings. Whatever a text holds, it is shown as text.

    A part with the heading "" goes on below the one before it. `style` is added to the page's own.
    """
    sections = (f"{heading(name)}{_html(name, part)}" for name, part in parts)
    body = "".join(sections)
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_style()}{style}</style>"
        f'<body><h1 dir="auto">{html.escape(title)}</h1>{body}</body></html>'
    )


def escape(text: str) -> str:
    """Returns HTML that shows a text, whatever it holds."""
    return html.escape(text)


def heading(name: str, level: int = 2) -> str:
    """Returns a heading, nothing for ""."""
    return f'<h{level} dir="auto">{html.escape(name)}</h{level}>' if name else ""


def cell(value: Any) -> str:
    """Formats a number for people: 0.123 or 1,234; nothing for None."""
    if isinstance(value, float):
        return f"{value:.3f}"
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns a table of rows, which have the same keys; the first row tells what is a number."""
    numbers = [isinstance(value, int | float) for value in rows[0].values()]
    cells = [list(rows[0])] + [[cell(value) for value in row.values()] for row in rows]
    lines = "".join(_row(row, numbers) for row in cells)
    return f'<div class="wide"><table>{lines}</table></div>'


def image(data: bytes, format: str, alt: str) -> str:
    """Returns a picture that is part of the page."""
    source = f"data:image/{format};base64,{base64.b64encode(data).decode()}"
    return f'<img src="{source}" alt="{html.escape(alt)}">'


def _style() -> str:
    def of(colours):
        return "".join(f"--c{number}:{colour};" for number, colour in enumerate(colours))

    return re.sub(r"\n", "", STYLE.replace("COLOURS", of(LIGHT)).replace("DARK_ONES", of(DARK)))


def _html(name: str, part: Part) -> str:
    if isinstance(part, Markup):
        return part.html
    if isinstance(part, str):
        return f"<p>{html.escape(part)}</p>"
    if isinstance(part, pathlib.Path):
        return f'<img src="{html.escape(part.as_posix())}" alt="{html.escape(name)}">'
    if isinstance(part, bytes):
        return image(part, "png", name)
    if isinstance(part[0], Shown):
        figures = (
            # The direction is that of the text; what it begins with ends with the caption.
            f"<figure>{image(picture, 'jpeg', '')}"
            f'<figcaption dir="auto">{html.escape(text)}</figcaption></figure>'
            for picture, text in part
        )
        return f'<div class="gallery">{"".join(figures)}</div>'
    return table(part)


def _row(cells: Sequence[str], numbers: Sequence[bool]) -> str:
    tags = (' class="n"' if number else ' dir="auto"' for number in numbers)
    row = (f"<td{tag}>{html.escape(text)}</td>" for tag, text in zip(tags, cells, strict=True))
    return f"<tr>{''.join(row)}</tr>"
