"""Shows what a run predicts: pictures with their best classes, and what it knows best and worst."""

import collections
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from otter_jax.report import page
from otter_jax.report.predictions import OfClass, Predicted, Prediction

SHOWN = 16  # pictures of a set
ROWS = 8  # of a table of classes
Thumbnail = Callable[[int, str], str]  # (row of the table of images, key) -> HTML of its picture
STYLE = """
.guesses{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,16.5em),1fr));
gap:1.4em 1.2em;margin:1em 0}
.guess{display:grid;grid-template-columns:5.4em minmax(0,1fr);gap:.1em .8em;align-items:start}
.guess img,.guess .blank{width:5.4em;height:5.4em;object-fit:contain;background:#fff;
border-radius:4px;grid-row:1/3}
.guess .blank{background:var(--faint);color:var(--soft);display:flex;align-items:center;
justify-content:center}
.guess b{font-size:.87em;line-height:1.25;overflow-wrap:anywhere;max-height:2.5em;overflow:hidden}
.guess ol{list-style:none;margin:0;padding:0;font-size:.8em;line-height:1.35;color:var(--soft)}
.guess li{display:flex;gap:.5em;justify-content:space-between}
.guess bdi{overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
.guess .right{color:var(--good);font-weight:600}
.tables{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,22em),1fr));gap:0 3em}
"""


def grid(predicted: Predicted, thumbnail: Thumbnail) -> str:
    """Returns pictures evenly over a set, each with its labels and its best classes."""
    rows = np.linspace(0, len(predicted.images) - 1, min(SHOWN, len(predicted.images)))
    cards = (_card(predicted.images[row], thumbnail, row) for row in rows.astype(int).tolist())
    return f'<div class="guesses">{"".join(cards)}</div>'


def of_classes(predicted: Predicted) -> str:
    """Returns tables of the best and worst classes, and of what is taken for what most often."""
    parts, classes = [], predicted.classes
    if max((each.images for each in classes), default=0) > 1:
        best, worst = extremes(classes)
        parts += [_table("Best classes", _recalls(best)), _table("Worst classes", _recalls(worst))]
    wrong = confusions(classes)
    if wrong:
        rows = [
            {"class": c.name, "taken for": c.taken_for, "pictures": c.times, "of": c.images}
            for c in wrong
        ]
        parts.append(_table("Commonest confusions", rows))
    answers = [{"class": name, "pictures": n} for name, n in wrong_answers(predicted.images)]
    parts.append(_table("Commonest wrong answers", answers))
    return f'<div class="tables">{"".join(parts)}</div>'


def extremes(classes: Sequence[OfClass], rows: int = ROWS) -> tuple[list[OfClass], list[OfClass]]:
    """Returns the classes of the largest, and of the smallest recall; of equal ones the largest.

    No class is in both.
    """
    rows = min(rows, len(classes) // 2)
    best = sorted(classes, key=lambda c: (-c.recall, -c.images))[:rows]
    worst = sorted(classes, key=lambda c: (c.recall, -c.images))
    return best, [each for each in worst if each not in best][:rows]


def confusions(classes: Sequence[OfClass], rows: int = ROWS) -> list[OfClass]:
    """Returns the classes of which several pictures are taken for one other, most of them first."""
    wrong = [each for each in classes if each.times > 1]
    return sorted(wrong, key=lambda c: (-c.times, c.images))[:rows]


def wrong_answers(images: Sequence[Prediction], rows: int = ROWS) -> list[tuple[str, int]]:
    """Returns the classes that are best for several pictures of others, and for how many."""
    best = (each.best[0][0] for each in images if each.best[0][0] not in each.labels)
    return [(name, n) for name, n in collections.Counter(best).most_common(rows) if n > 1]


def _recalls(classes: Sequence[OfClass]) -> list[dict[str, Any]]:
    return [{"class": c.name, "recall@1": c.recall, "pictures": c.images} for c in classes]


def _table(title: str, rows: Sequence[dict[str, Any]]) -> str:
    return f"<div>{page.heading(title, 4)}{page.table(rows)}</div>" if rows else ""


def _card(prediction: Prediction, thumbnail: Thumbnail, row: int) -> str:
    """Returns a picture beside its labels and its best classes, the right ones marked."""
    items = "".join(
        f"<li{_mark(name in prediction.labels)}><bdi>{page.escape(name)}"
        f"{' ✓' * (name in prediction.labels)}</bdi><span>{_cosine(cosine)}</span></li>"
        for name, cosine in prediction.best
    )
    labels = page.escape(", ".join(prediction.labels))
    picture = thumbnail(row, prediction.key)
    return f'<div class="guess">{picture}<b dir="auto">{labels}</b><ol>{items}</ol></div>'


def _mark(right: bool) -> str:
    return ' class="right"' if right else ""


def _cosine(value: float) -> str:
    return f"{value:.3f}".replace("0.", ".", 1)
