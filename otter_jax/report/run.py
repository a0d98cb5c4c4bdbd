"""Writes the report of a run, or of several laid over each other: one file that opens offline."""

import dataclasses
import functools
import os
import pathlib
import shlex
from collections.abc import Sequence

import rich.console

from otter_jax import files
from otter_jax.errors import UserError
from otter_jax.report import (
    classes,
    curves,
    history,
    matching,
    page,
    plots,
    predictions,
    results,
)
from otter_jax.report.history import History
from otter_jax.report.thumbnails import Thumbnails
from otter_jax.run import cluster
from otter_jax.run.console import duration

NAME = "report.html"
HITS = (
    "FH@K, flat hit, is the share of pictures that have one of their labels among the K best "
    "classes. Chance is a random order of the classes; frequency always answers the commonest. "
    "Whole lines are the student's, dashes the EMA's."
)
UNSEEN = (
    "Nothing is kept of it: an older version of the program trained this run, or `convert` made "
    "it. Training keeps the embeddings of a batch at its start and at each evaluation, in watched/."
)
Parts = list[tuple[str, page.Part]]
STYLE = """
.plots{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,23em),1fr));
gap:.6em 2em}
svg.plot{width:100%;max-width:34em;height:auto;display:block;font:11px system-ui,sans-serif}
svg.plot text{fill:var(--soft)}svg.plot .grid{stroke:var(--faint)}
svg.plot path.level{stroke:var(--soft);stroke-dasharray:2 3}
svg.plot .line{fill:none;stroke-width:1.8;stroke-linejoin:round}
svg.plot .dash1{stroke-dasharray:5 3}svg.plot .dash2{stroke-dasharray:1.5 2.5}
svg.plot .name{font-weight:600}svg.plot .name.level{font-weight:400}
.beside{display:flex;flex-wrap:wrap;gap:1em 3em}.beside>.wide{max-width:100%}
.beside>.plots{flex:1 1 36em;grid-template-columns:repeat(auto-fit,minmax(min(100%,17em),1fr))}
.beside>*,.plots>*,.tables>*,.matchings>*{min-width:0}.plots h3{margin-top:.2em}
.plots .note{font-size:.85em;margin:.1em 0 .8em}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:.3em 1.4em;padding:0;margin:.5em 0}
.legend li{overflow-wrap:anywhere}.chip{display:inline-block;width:.8em;height:.8em;
border-radius:2px;margin-right:.5em}
""" + "".join(
    f"svg.plot .line.c{n}{{stroke:var(--c{n})}}svg.plot .dot.c{n},svg.plot .name.c{n}"
    f"{{fill:var(--c{n})}}.chip.c{n}{{background:var(--c{n})}}"
    for n in range(plots.COLOURS)
)


def write(workdirs: Sequence[pathlib.Path], out: pathlib.Path | None = None) -> pathlib.Path:
    """Writes the report of one run, or of several in one; returns its path.

    By default it lies in the run's directory, that of several in the folder that holds them all.
    Raises UserError if one is no run of `train`, two are the same, or `out` cannot be written.
    """
    if len({workdir.resolve() for workdir in workdirs}) < len(workdirs):
        raise UserError("The same run is given twice: name each once.")
    runs = named([history.read(workdir) for workdir in workdirs])
    if out is None:
        home = workdirs[0] if len(runs) == 1 else common_folder(workdirs)
        out = home / NAME
    text = of_one(runs[0]) if len(runs) == 1 else of_several(runs)
    try:
        files.write_text(out, text)
    except OSError as error:
        raise UserError(
            f"The report cannot be written to {out}: {error.strerror}. Give another --out FILE."
        ) from error
    return out


def write_at_end(workdir: pathlib.Path, console: rich.console.Console) -> None:
    """Writes the report of a run that has just ended; whatever hinders it is one printed line.

    All processes may call it; the first writes.
    """
    if not cluster.is_first():
        return
    try:
        console.print(f"The report is in {write([workdir])}.")
    except Exception as error:  # a run must not end badly for want of a page
        what = str(error).strip().partition("\n")[0] or "no reason was given"
        console.print(
            f"The report could not be drawn ({type(error).__name__}: {what}). The run is whole."
        )


def of_one(run: History) -> str:
    """Returns the page of one run."""
    thumbnails = Thumbnails(run)
    parts: Parts = [("", page.Markup(_lead(run)))]
    parts += _results([run])
    parts += _predictions(run, thumbnails)
    found = matching.of_run(run, thumbnails.of_pair)
    parts += [("What the teacher matches", found[0] if found else UNSEEN)]
    parts += [("", found[1])] if found else []
    parts += [("Training", curves.of_log([run]))]
    parts += [("The run", results.about(run))]
    parts += [("", note) for note in [*run.notes, *thumbnails.notes]]
    return page.page(f"Run {run.name}", parts, style=STYLE + classes.STYLE + matching.STYLE)


def of_several(runs: Sequence[History]) -> str:
    """Returns the page of several runs: a table, and their plots laid over each other."""
    parts: Parts = [("", page.Markup(plots.legend(r.name for r in runs)))]
    parts += _results(runs)
    parts += [("Training", curves.of_log(runs))]
    differing = results.differences(runs)
    parts += [("What differs", differing or "Their configs are the same.")]
    parts += [("", f"{run.name}: {note}") for run in runs for note in run.notes]
    return page.page(f"{len(runs)} runs", parts, style=STYLE)


def named(runs: Sequence[History]) -> list[History]:
    """Returns the runs with names that tell them apart: as much of their paths as that needs."""
    paths = [run.workdir.absolute() for run in runs]
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            break
    return [dataclasses.replace(run, name=name) for run, name in zip(runs, names, strict=True)]


def common_folder(workdirs: Sequence[pathlib.Path]) -> pathlib.Path:
    """Returns the folder that holds all runs."""
    return pathlib.Path(os.path.commonpath([path.absolute().parent for path in workdirs]))


def _lead(run: History) -> str:
    """Returns a line on method, data and how far the run is."""
    config, epochs = run.config, run.numbers.get("epoch", [])
    left = run.numbers.get("seconds_left", [(0, 0.0)])[-1][1]
    facts = [config.method, f"{config.data.name} {config.data.split}", f"step {run.step:,}"]
    facts += [f"epoch {epochs[-1][1]:.1f} of {config.train.epochs:g}"] if epochs else []
    facts += [f"not at its end: {duration(left)} of training left"] if left > 0 else []
    return f'<p class="note">{page.escape(" | ".join(facts))}</p>'


def _results(runs: Sequence[History]) -> Parts:
    """Returns a table and plots of each set."""
    names = curves.sets_of(runs)
    if not names:
        where = shlex.join(["eval", "--workdir", str(runs[0].workdir)])
        return [("Zero-shot recognition", f"There is no evaluation yet. This makes one: {where}")]
    steps = {latest[0] for run in runs if (latest := run.latest())}
    step = f" after step {steps.pop()}" if len(steps) == 1 else ""
    parts: Parts = [(f"Zero-shot recognition{step}", page.Markup(f'<p class="note">{HITS}</p>'))]
    for name in names:
        size = results.size_of(runs, name)
        rows = results.hits(runs, name)
        title = page.heading(f"{name}: {size}" if size else name, 3)
        table = page.table(rows) if rows else ""
        drawn = curves.grid(curves.of_hits(runs, name))
        parts.append(("", page.Markup(f'{title}<div class="beside">{table}{drawn}</div>')))
    return parts


def _predictions(run: History, thumbnails: Thumbnails) -> Parts:
    """Returns pictures of each set with what was predicted, and tables of its classes."""
    parts: Parts = []
    for name in curves.sets_of([run]):
        found = predictions.read(run, name)
        if not found:
            continue
        rows = len(found.images)
        thumbnail = functools.partial(thumbnails.of_image, name, rows)
        drawn = classes.grid(found, thumbnail)
        text = (
            f"Pictures evenly over the set, not chosen: their labels, and the best classes of the "
            f"{found.weights} weights after step {found.step} with their cosines."
        )
        markup = page.Markup(drawn + classes.of_classes(found))
        parts += [(f"Predictions on {name}", text), ("", markup)]
    if not parts and run.evaluations:
        where = shlex.join(["eval", "--workdir", str(run.workdir)])
        text = f"No predictions are stored with the evaluation. This stores them: {where}"
        parts = [("Predictions", text)]
    return parts
