"""Conducts a study: chooses each method's values on validation, then runs the main cells."""

import itertools
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

from otter_jax import files
from otter_jax.errors import UserError
from otter_jax.study import cells as cell_files
from otter_jax.study import plots, results, tables
from otter_jax.study.cells import Cell
from otter_jax.study.features import Features
from otter_jax.study.lines import chosen, lines, validation
from otter_jax.study.plan import Study
from otter_jax.study.running import Runner

Tell = Callable[[str], None]


def check_same(study: Study, out: pathlib.Path) -> None:
    """Writes study.json, or raises UserError where another study is in this folder."""
    path = out / "study.json"
    now = study.about()
    if not path.exists():
        cell_files.save(path, now)
        return
    try:
        before = files.read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}). Remove it.") from error
    if changed := cell_files.differences(before, now):
        raise UserError(f"{out} holds another study: {'; '.join(changed[:6])}. Take another --out.")


def check_features(study: Study, features: Features, path: pathlib.Path) -> None:
    """Raises UserError unless features were made of what the study says."""
    about = {name: features.about[name] for name in study.about()}
    if changed := cell_files.differences(about, study.about()):
        raise UserError(
            f"{path} was made of something else than {study.path} says: {'; '.join(changed[:6])}. "
            f"Make it again: otter-jax study {study.path} --prepare {path}"
        )


def run(
    study: Study,
    features: Features,
    out: pathlib.Path,
    *,
    only: tuple[int, int] | None = None,
    together: int | None = None,
    tell: Tell,
) -> None:
    """Runs all cells of a study, or of part K of N, that are not finished.

    Raises UserError for finished cells that were defined otherwise, and if another study is in this
    folder, or the same is being run there.
    """
    out.mkdir(parents=True, exist_ok=True)
    part = f"part {only[0]} of {only[1]}" if only else "whole"
    with files.locked(out / f".lock {part}", lambda: _taken(out, part)):
        check_same(study, out)
        own = lines(study, only)
        runner = Runner(study, features, together)
        tell(
            f"{len(own)} lines of {len(study.methods)} methods in {len(study.settings)} settings, "
            f"on {runner.device}"
        )
        found: dict[Cell, Any] = {}
        groups = itertools.groupby(own, key=lambda line: (line[0].batch, line[1]))
        for _, group in groups:  # of one program, so that results come method by method
            grids = [cell_files.grid(study, *line) for line in group]
            _stage(study, [cell for grid in grids for cell in grid], found, runner, out, tell)
            main = [cell_files.main_cell(study, chosen(study, grid, found)) for grid in grids]
            _stage(study, main, found, runner, out, tell)
        tell(
            f"{runner.done:,} runs took {runner.seconds:.0f} s, compiling {runner.compiling:.0f} s."
        )
        baselines: dict[str, dict[str, float]] = {}
        for search in runner.searches:
            for kind, values in search.baselines().items():
                baselines.setdefault(kind, {}).update(values)
        cell_files.save(out / "baselines.json", baselines)
    report(study, out, tell)


def report(study: Study, out: pathlib.Path, tell: Tell) -> None:
    """Writes tables and plots of the lines that are finished. Raises UserError if none is."""
    finished = results.read(study, out)
    tables.write(finished, files.read_json(out / "baselines.json"), out)
    drawn = plots.draw(finished, out)
    tell(
        f"{len(finished.main)} finished lines of {len(lines(study))} are in {out / 'table.md'}; "
        f"beside it: table.csv, table.json, runs.csv, chosen.csv and {len(drawn)} plots."
    )


def _taken(out: pathlib.Path, part: str) -> str:
    return (
        f"The study in {out} ({part}) is being run by another process. Wait for its end, stop it, "
        "or give another --out."
    )


def _stage(
    study: Study,
    wanted: Sequence[Cell],
    found: dict[Cell, Any],
    runner: Runner,
    out: pathlib.Path,
    tell: Tell,
) -> None:
    """Runs the cells that are not finished; adds the results of all to `found`."""
    for cell in wanted:
        results = cell_files.load(cell, study, out)
        if results is not None:
            found[cell] = results
    missing = [cell for cell in wanted if cell not in found]
    begun, done = time.perf_counter(), 0

    def finished(cell, results):
        nonlocal done
        done += 1
        content = {"definition": cell.definition(study), **results}
        cell_files.save(cell.path(out), content)
        found[cell] = content
        left = (time.perf_counter() - begun) / done * (len(missing) - done)
        value = validation(study, results)
        tell(
            f"{cell.stage} {done}/{len(missing)} {cell} | validation {value:.4f} | left "
            f"{left / 60:.1f} min"
        )

    if missing:
        tell(
            f"{len(missing):,} cells to {missing[0].stage}, {len(wanted) - len(missing):,} finished"
        )
        runner(missing, finished)
