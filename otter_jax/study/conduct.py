"""Conducts a study: chooses each method's values on validation, then runs the main cells."""

import itertools
import pathlib
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

from otter_jax import files
from otter_jax.errors import Stopped, UserError
from otter_jax.study import cells as cell_files
from otter_jax.study import plots, results, tables
from otter_jax.study.cells import Cell
from otter_jax.study.fields import differences
from otter_jax.study.lines import Line, chosen, lines, validation
from otter_jax.study.plan import Study

ABOUT = "study.json"  # in a study's folder: what makes it another one

Tell = Callable[[str], None]
Finished = Callable[[Cell, dict[str, Any]], None]


@runtime_checkable
class Runner(Protocol):
    """Runs cells, on kept features (`running`) or whole (`whole`).

    Attributes:
      device: what the runs are made on.
      done, seconds, compiling: runs so far, and the time that they, and compiling, have taken.
    """

    device: str
    done: int
    seconds: float
    compiling: float

    def __call__(self, cells: Iterable[Cell], finished: Finished) -> None:
        """Runs all cells; calls `finished` with each cell and its results, as JSON has them."""

    def probe(self, cell: Cell) -> float:
        """Returns the seconds that a run of a cell takes, from a few steps; NaN if unknown."""

    def baselines(self) -> dict[str, dict[str, float]]:
        """Returns the measures of chance, and of always answering the most frequent names."""


def check_same(study: Study, out: pathlib.Path) -> None:
    """Raises UserError if another study is in this folder."""
    path = out / ABOUT
    if not path.exists():
        return
    try:
        before = files.read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}). Remove it.") from error
    if changed := differences(before, study.about()):
        raise UserError(f"{out} holds another study: {'; '.join(changed[:6])}. Take another --out.")


def run(
    study: Study,
    make_runner: Callable[[], Runner],
    out: pathlib.Path,
    *,
    only: tuple[int, int] | None = None,
    tell: Tell,
) -> None:
    """Runs all cells of a study, or of part K of N, that are not finished.

    The runner is made once it is clear that the study may be run here.

    Raises UserError for finished cells that were defined otherwise, and if another study is in this
    folder, or the same is being run there; Stopped for Ctrl-C.
    """
    out.mkdir(parents=True, exist_ok=True)
    part = f"part {only[0]} of {only[1]}" if only else "whole"
    with files.locked(out / f".lock {part}", lambda: _taken(out, part)):
        check_same(study, out)
        own = lines(study, only)
        runner = make_runner()
        cell_files.save(out / ABOUT, study.about())
        cell_files.save(out / "baselines.json", runner.baselines())
        tell(
            f"{len(own)} lines of {len(study.methods)} methods in {len(study.settings)} settings, "
            f"on {runner.device}"
        )
        try:
            _run_lines(study, own, runner, out, tell)
        except KeyboardInterrupt:
            tell("Stopped. Finished cells are kept; the same command goes on with the others.")
            raise Stopped from None
        tell(
            f"{runner.done:,} runs took {runner.seconds:.0f} s, compiling {runner.compiling:.0f} s."
        )
    report(study, out, tell)


def _run_lines(
    study: Study, own: Sequence[Line], runner: Runner, out: pathlib.Path, tell: Tell
) -> None:
    """Runs the cells of these lines: those to choose by, then the main ones."""
    found: dict[Cell, Any] = {}
    groups = itertools.groupby(own, key=lambda line: (line[0].batch, line[1]))
    for _, group in groups:  # of one program, so that results come method by method
        grids = [cell_files.grid(study, *line) for line in group]
        _stage(study, [cell for grid in grids for cell in grid], found, runner, out, tell)
        main = [cell_files.main_cell(study, chosen(study, grid, found)) for grid in grids]
        _stage(study, main, found, runner, out, tell)


def cost(
    study: Study,
    make_runner: Callable[[], Runner],
    out: pathlib.Path | None,
    *,
    only: tuple[int, int] | None = None,
    tell: Tell,
) -> None:
    """Tells how many cells and runs a study has, how many are finished, and how long the rest is.

    That is from a few steps of the first method with each size of a batch, on this device.
    """
    runner, whole = make_runner(), 0.0
    own = [line for line in lines(study, only) if not study.methods[line[1]].is_linear]
    for batch, group in itertools.groupby(own, key=lambda line: line[0].batch):
        grids = [cell_files.grid(study, *line) for line in group]
        cells = [cell for grid in grids for cell in grid]
        done = [cell for cell in cells if out and cell_files.load(cell, study, out)]
        main = sum(1 for grid in grids if out and _has_main(study, grid, out))
        runs = (len(cells) - len(done)) * study.choose.seeds + (len(grids) - main) * study.seeds
        seconds = runner.probe(cells[0])
        whole += seconds * runs if runs else 0
        each = f"{seconds:.2f} s" if seconds == seconds else "nobody knows how many seconds yet"
        tell(
            f"batch {batch}: {len(grids)} lines; {len(cells):,} cells of {study.choose.seeds} runs "
            f"to choose, {len(done):,} finished; {len(grids)} main cells of {study.seeds} runs, "
            f"{main} finished; {runs:,} runs are left, of {each}"
        )
    if whole == whole:
        tell(f"About {whole / 3600:.1f} h on {runner.device}, compiling and closed forms apart.")


def _has_main(study: Study, grid: Sequence[Cell], out: pathlib.Path) -> bool:
    """Tells whether the main cell of a line is finished, whichever was chosen."""
    return any(cell_files.load(cell_files.main_cell(study, cell), study, out) for cell in grid)


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
