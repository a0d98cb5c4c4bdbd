"""Conducts a study: chooses each method's values on validation, then runs the main cells."""

import itertools
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

from otter_jax import files
from otter_jax.errors import Stopped, UserError
from otter_jax.study import cells as cell_files
from otter_jax.study import plots, results, tables
from otter_jax.study.cells import Cell, Run
from otter_jax.study.fields import differences
from otter_jax.study.lines import Line, chosen, lines, validation
from otter_jax.study.plan import Study

ABOUT = "study.json"  # in a study's folder: what makes it another one

QUIET = 60  # seconds after which a run is told of, though its cell is not finished

Tell = Callable[[str], None]


@runtime_checkable
class Runner(Protocol):
    """Makes the runs of cells, on kept features (`running`) or whole (`whole`).

    Attributes:
      device: what the runs are made on.
      done, seconds, compiling: runs so far, and the time that they, and compiling, have taken.
    """

    device: str
    done: int
    seconds: float
    compiling: float

    def __call__(self, runs: Iterable[Run]) -> Iterator[tuple[Cell, dict[str, Any]]]:
        """Makes all runs, in any order; yields each one's cell and result, as JSON has it."""

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
            tell("Stopped. Finished runs are kept; the same command goes on with the others.")
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
        choose = [_missing(study, cell, out) for grid in grids for cell in grid]
        main = [_missing_main(study, grid, out) for grid in grids]
        runs = sum(choose) + sum(main)
        seconds = runner.probe(grids[0][0])
        whole += seconds * runs if runs else 0
        each = f"{seconds:.2f} s" if seconds == seconds else "nobody knows how many seconds yet"
        tell(
            f"batch {batch}: {len(grids)} lines; {len(choose):,} cells of {study.choose.seeds} "
            f"runs to choose, {choose.count(0):,} finished; {len(main)} main cells of "
            f"{study.seeds} runs, {main.count(0)} finished; {runs:,} runs are left, of {each}"
        )
    if whole == whole:
        tell(f"About {whole / 3600:.1f} h on {runner.device}, compiling and closed forms apart.")


def _missing(study: Study, cell: Cell, out: pathlib.Path | None) -> int:
    """Returns how many runs of a cell are left."""
    if out is None:
        return len(cell.seeds)
    if cell_files.load(cell, study, out):
        return 0
    return len(cell.seeds) - len(cell_files.load_part(cell, study, out))


def _missing_main(study: Study, grid: Sequence[Cell], out: pathlib.Path | None) -> int:
    """Returns how many main runs of a line are left, whichever of its cells was chosen."""
    return min(_missing(study, cell_files.main_cell(study, cell), out) for cell in grid)


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
    """Makes the runs that are missing, each kept once it is made; adds all results to `found`."""
    made: dict[Cell, list[dict[str, Any]]] = {}  # of cells that are not finished
    for cell in wanted:
        results = cell_files.load(cell, study, out)
        if results is None:
            made[cell] = cell_files.load_part(cell, study, out)
        else:
            found[cell] = results
    if not made:
        return
    kept = {(cell, run["seed"]) for cell, runs in made.items() for run in runs}
    missing = [(cell, seed) for cell in made for seed in cell.seeds if (cell, seed) not in kept]
    tell(
        f"{len(made):,} cells to {wanted[0].stage}, {len(wanted) - len(made):,} finished"
        + (f"; {len(kept)} of their runs are made" if kept else "")
    )
    done, before, begun = 0, runner.done, time.perf_counter()
    told = begun
    for cell, result in runner(missing):
        made[cell].append(result)
        content = cell_files.save_run(cell, made[cell], study, out)
        now = time.perf_counter()
        ended = runner.done - before  # those made side by side are yielded one by one
        left = f"left {(now - begun) / ended * (len(missing) - ended) / 60:.1f} min"
        if len(made[cell]) == len(cell.seeds):
            done, found[cell] = done + 1, content
            value = f"validation {validation(study, content):.4f}"
            tell(f"{cell.stage} {done}/{len(made)} {cell} | {value} | {left}")
        elif now - told > QUIET:
            tell(f"{cell.stage} {cell} | {len(made[cell])} of {len(cell.seeds)} runs | {left}")
        else:
            continue
        told = now
