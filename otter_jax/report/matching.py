"""Draws what a teacher matches with what: pictures, captions and the transport between them."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from otter_jax.objective import METHODS, Objective
from otter_jax.report import page
from otter_jax.report.history import History
from otter_jax.run import watched
from otter_jax.run.watched import Watched

ROWS = 12  # pairs that are drawn
LEAST = 0.03  # probability of a match that is drawn
MANY = 0.2  # probability from which matches are counted, as in the paper
ROW = 60  # pixels
Target = Float[np.ndarray, "N N"]  # of the pictures over the captions
Thumbnail = Callable[[int, str], str]  # (number of a record, its caption) -> HTML of its picture
STYLE = f"""
.matchings{{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,31em),1fr));
gap:1.5em 3em;margin-top:1em}}
.match{{display:grid;grid-template-columns:{ROW - 8}px minmax(70px,1fr) minmax(0,11em);
column-gap:8px;max-width:44em}}
.match>div>*{{height:{ROW}px;display:flex;align-items:center;box-sizing:border-box}}
.match img{{width:{ROW - 8}px;height:{ROW - 8}px;object-fit:contain;background:#fff;
border-radius:4px}}
.match .blank{{width:{ROW - 8}px;height:{ROW - 8}px;margin:4px 0;background:var(--faint);
border-radius:4px;justify-content:center;color:var(--soft)}}
.match .middle{{position:relative}}.match svg{{position:absolute;inset:0;width:100%;height:100%;
overflow:visible}}
.match .caption span{{font-size:.87em;line-height:1.25;overflow:hidden;overflow-wrap:anywhere;
max-height:3.75em}}
.match .trust{{position:relative;flex:none;width:2.3em;height:{ROW - 16}px;margin-right:8px;
background:var(--faint);border-radius:3px;display:flex;align-items:center;justify-content:center;
font:600 11px/1 system-ui,sans-serif}}
.match .trust s{{position:absolute;left:0;right:0;bottom:0;background:var(--c0);opacity:.3;
border-radius:3px}}
.match path{{fill:none;vector-effect:non-scaling-stroke;stroke-linecap:round}}
.match .given{{stroke:var(--soft);opacity:.45;stroke-dasharray:1 5;stroke-width:1.5}}
.match .found{{stroke:var(--c0)}}
.match i{{position:absolute;height:auto;transform:translate(-50%,-50%);font:600 11px/1.1 system-ui,
sans-serif;background:var(--paper);color:var(--c0);padding:1px 3px;border-radius:3px}}
"""


class Seen(NamedTuple):
    """Holds what a teacher saw in the watched pairs after one step, and how it is called."""

    watched: Watched
    target: Target
    trust: Float[np.ndarray, " N"]  # in each pair, 0 to 1
    when: str


def of_run(run: History, thumbnail: Thumbnail) -> tuple[str, page.Markup] | None:
    """Returns what there is to know of a run's matching, and its drawing; None without any."""
    found, objective, note = _kept(run), *_objective(run)
    if not found:
        return None
    trusting = dataclasses.replace(objective, trust=objective.trust or METHODS["trust"].trust)
    look = jax.jit(trusting.teacher_targets)  # op by op it would take seconds to compile
    seen = [_seen(each, jax.device_get(look(each.image, each.text))) for each in found]
    rows = chosen([one.target for one in seen])
    drawn = "".join(_figure(one, rows, thumbnail) for one in seen)
    return _text(run, seen, note), page.Markup(f'<div class="matchings">{drawn}</div>')


def chosen(targets: Sequence[Target], rows: int = ROWS) -> list[int]:
    """Returns the pairs to draw: those of the strongest matches off the diagonal, by turns.

    The strongest match of the last target is first, then that of the one before, and so on; a
    match needs both its pairs.
    """
    N = len(targets[0])
    rows = min(rows, N)
    off = [np.where(np.eye(N, dtype=bool), -1.0, target) for target in reversed(targets)]
    orders = [iter(np.argsort(-each, axis=None, kind="stable")) for each in off]
    found: list[int] = []
    while len(found) < rows:
        for order in orders:
            for at in order:
                new = [n for n in dict.fromkeys(divmod(int(at), N)) if n not in found]
                if new and len(found) + len(new) <= rows:
                    found += new
                    break
            else:  # one place is left, or none of the pairs is
                return found
    return found


def edges(target: Target, rows: Sequence[int]) -> list[tuple[int, int, float]]:
    """Returns (row of a picture, row of a caption, probability) of the matches that are drawn."""
    part = target[np.ix_(rows, rows)]
    pairs = zip(*np.nonzero(part >= LEAST), strict=True)
    return sorted(((int(i), int(j), float(part[i, j])) for i, j in pairs), key=lambda edge: edge[2])


def facts(target: Target) -> dict[str, float]:
    """Returns means over pictures: matches in effect, the strongest, and counts of strong ones."""
    off = target * (1 - np.eye(len(target)))
    entropy = -(target * np.log(np.where(target > 0, target, 1))).sum(axis=1)
    return {
        "own": float(np.diagonal(target).mean()),
        "effective": float(np.exp(entropy).mean()),
        "strongest": float(off.max(axis=1).mean()),
        "many": int((off > MANY).sum()),
    }


def _kept(run: History) -> list[Watched]:
    """Returns what was kept at the first and the last step; of a fixed teacher the last alone."""
    found = []
    for path in watched.kept(run.workdir):
        try:
            found.append(watched.read(path))
        except ValueError:
            where = pathlib.Path(watched.FOLDER) / path.name
            run.notes.append(f"{where} is damaged and left out.")
    found = found if not run.config.teacher.checkpoint else found[-1:]
    return [each for each in found if len(each.numbers) > 1]


def _objective(run: History) -> tuple[Objective, str]:
    """Returns the objective whose teacher is drawn, and what is other in it than in training."""
    own = Objective(**run.config.objective)
    trust = {name: getattr(own, name) for name in ("trust", "trust_epsilon")}
    if own.teacher == "none":
        return dataclasses.replace(METHODS["otter"], **trust), (
            f"The method {run.config.method} has no {'targets of a ' if own.trust else ''}teacher; "
            "here is what OTTER's would see in the average of this run's weights."
        )
    if own.diagonal == "per_process":
        note = "The diagonal is left out on all rows, not by objective.diagonal=per_process."
        return dataclasses.replace(own, diagonal="remove"), note
    return own, ""


def _seen(each: Watched, targets: dict[str, np.ndarray]) -> Seen:
    """Returns the teacher's target for the pictures, and its trust in the pairs."""
    when = "" if each.step else "before the first step"
    return Seen(each, targets["image"], targets["trust"], when)


def _text(run: History, seen: Sequence[Seen], note: str) -> str:
    N = len(seen[0].target)
    given = (
        "the given pairs (dotted) are out of it, as in training"
        if not (facts(seen[0].target)["own"])
        else "dotted lines are the given pairs"
    )
    alone = (
        ""
        if len(seen) > 1 or run.config.teacher.checkpoint
        else (
            " Only one step is here: "
            + (
                "no evaluation has followed yet."
                if not seen[0].watched.step
                else "an older version of the program, or another folder, began the run."
            )
        )
    )
    fixed = " The teacher is fixed, so it sees the same at every step."
    return (
        f"A line joins a picture to a caption that the teacher's target gives it; beside it is the "
        f"probability, and {given}. The teacher looked at {N} pairs of the training set as one "
        f"batch, evenly over the set, as evaluation sees pictures; drawn are the "
        f"{min(ROWS, N)} with the strongest matches, and lines of {LEAST:g} or more. What is "
        f"missing to 1 is on pairs that are not drawn. Before a caption stands the trust in its "
        f"given pair: what the teacher, matching all {N} pairs, leaves on it. {note}"
        f"{alone}{fixed if run.config.teacher.checkpoint else ''}"
    ).strip()


def _figure(one: Seen, rows: Sequence[int], thumbnail: Thumbnail) -> str:
    """Returns one drawing: pictures at the left, captions at the right, lines between."""
    own, of = one.watched, facts(one.target)
    pictures = "".join(
        f"<div>{thumbnail(int(own.numbers[row]), own.captions[row])}</div>" for row in rows
    )
    captions = "".join(
        f'<div class="caption">{_trust(float(one.trust[row]))}'
        f'<span dir="auto">{page.escape(own.captions[row][:120])}</span></div>'
        for row in rows
    )
    paths = [f'<path class="given" d="{_curve(i, i)}"/>' for i in range(len(rows))]
    labels, drawn = [], [0] * len(rows)
    for i, j, probability in reversed(edges(one.target, rows)):
        width, opacity = 1.2 + 5 * probability, min(1.0, 0.3 + 1.4 * probability)
        paths.append(
            f'<path class="found" d="{_curve(i, j)}" stroke-width="{width:.1f}" '
            f'opacity="{opacity:.2f}"/>'
        )
        if drawn[i] < 2:
            x, y = _on_curve(i, j, 0.2 + 0.2 * drawn[i])
            shown = f"{probability:.2f}".lstrip("0")
            labels.append(f'<i style="left:{x:.1f}%;top:{y:.1f}px">{shown}</i>')
            drawn[i] += 1
    when = f"Step {own.step}" + (f", {one.when}" if one.when else "")
    note = (
        f"A picture has {of['effective']:.0f} matches in effect (e to the entropy), its strongest "
        f"has {of['strongest']:.2f} on average, and {of['many']} matches are over {MANY:g}."
    )
    height = ROW * len(rows)
    svg = (
        f'<svg viewBox="0 0 100 {height}" preserveAspectRatio="none" aria-hidden="true">'
        f"{''.join(reversed(paths))}</svg>"
    )
    return (
        f'<figure>{page.heading(when, 3)}<div class="match"><div>{pictures}</div>'
        f'<div class="middle">{svg}{"".join(labels)}</div><div>{captions}</div></div>'
        f'<p class="note">{page.escape(note)}</p></figure>'
    )


def _trust(value: float) -> str:
    """Returns a number from 0 to 1 as a bar of so much of its height."""
    shown = f"{value:.2f}"
    return (
        f'<b class="trust" title="trust in the given pair: {shown}">'
        f'<s style="height:{100 * value:.0f}%"></s>{shown.removeprefix("0")}</b>'
    )


def _curve(i: int, j: int) -> str:
    """Returns the path from the picture of row i to the caption of row j."""
    a, b = ROW * (i + 0.5), ROW * (j + 0.5)
    return f"M0 {a:g}C50 {a:g} 50 {b:g} 100 {b:g}"


def _on_curve(i: int, j: int, t: float) -> tuple[float, float]:
    """Returns the point t = 0 to 1 of `_curve`: x in percent, y in pixels."""
    a, b = ROW * (i + 0.5), ROW * (j + 0.5)
    rest = 1 - t
    x = 3 * 50 * rest**2 * t + 3 * 50 * rest * t**2 + 100 * t**3
    return x, a * (rest**3 + 3 * rest**2 * t) + b * (3 * rest * t**2 + t**3)
