"""Conducts a study: chooses each method's values on validation, then runs the main cells."""

import contextlib
import functools
import itertools
import json
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol, runtime_checkable

from otter_jax import files
from otter_jax.errors import Stopped, UserError
from otter_jax.study import cells as cell_files
from otter_jax.study import plots, results, tables
from otter_jax.study.cells import Cell, Outcome, Run
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

    def __call__(self, runs: Iterable[Run]) -> Iterator[tuple[Cell, Outcome]]:
        """Makes all runs, in any order; yields each one's cell and outcome."""

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
        if not isinstance(before, dict):
            raise ValueError("no table")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
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
    """Makes all runs of a study, or of part K of N, that are not made.

    The runner is made once it is clear that the study may be run here.

    Raises UserError for runs that were defined otherwise, and if another study is in this folder,
    or the same is being run there; Stopped for Ctrl-C.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = "it is a file" if out.exists() else error.strerror
        raise UserError(f"--out {out} cannot be a study's folder: {why}.") from error
    with _alone(out, only):
        check_same(study, out)
        own = lines(study, only)
        made = _kept(study, own, out)
        if not own:
            tell(_empty(study, only))
            return
        runner = make_runner()
        files.write_text(out / ABOUT, json.dumps(study.about()))
        files.write_text(out / "baselines.json", json.dumps(runner.baselines()))
        tell(
            f"{len(own)} lines of {len(study.methods)} methods in {len(study.settings)} settings, "
            f"on {runner.device}"
        )
        try:
            _run_lines(study, own, made, runner, out, tell)
        except KeyboardInterrupt:
            tell("Stopped. Finished runs are kept; the same command goes on with the others.")
            raise Stopped from None
        tell(
            f"{runner.done:,} runs took {runner.seconds:.0f} s, compiling {runner.compiling:.0f} s."
        )
    report(study, out, tell)


@contextlib.contextmanager
def _alone(out: pathlib.Path, only: tuple[int, int] | None) -> Iterator[None]:
    """Holds the lock of a study, or of part K of N, beside which other parts of N may be run.

    Raises UserError if another process holds that lock, or one of the whole or of another N.
    """
    part = "part {} of {}".format(*only) if only else "whole"
    with files.locked(out / f".lock {part}", lambda: _taken(out, part)):
        for path in sorted(out.glob(".lock *")):
            other = path.name.removeprefix(".lock ")
            beside = only and other.endswith(f" of {only[1]}")
            if other != part and not beside:
                # Shared, as parts that start at once look at the same files.
                with files.locked(path, functools.partial(_taken, out, other), shared=True):
                    pass
        yield


def _taken(out: pathlib.Path, part: str) -> str:
    return (
        f"The study in {out} ({part}) is being run by another process. Wait for its end, stop it, "
        "or give another --out."
    )


def _kept(study: Study, own: Sequence[Line], out: pathlib.Path | None) -> dict[Cell, list[Outcome]]:
    """Returns the runs so far of all cells of these lines, whatever is chosen.

    Raises UserError, with their number, if some cells were defined otherwise.
    """
    found: dict[Cell, list[Outcome]] = {}
    redefined: list[cell_files.Redefined] = []
    for line in own:
        grid = cell_files.grid(study, *line)
        for cell in (*grid, *(cell_files.main_cell(study, each) for each in grid)):
            try:
                found[cell] = cell_files.load(cell, study, out) if out else []
            except cell_files.Redefined as error:
                redefined.append(error)
    if redefined:
        more = len(redefined) - 1
        other = "Another cell's definition has" if more == 1 else f"Those of {more:,} others have"
        raise UserError(f"{redefined[0]}{f' {other} changed, too.' if more else ''}")
    return found


def _run_lines(
    study: Study,
    own: Sequence[Line],
    made: dict[Cell, list[Outcome]],
    runner: Runner,
    out: pathlib.Path,
    tell: Tell,
) -> None:
    """Runs the cells of these lines: those to choose by, then the main ones."""
    groups = itertools.groupby(own, key=lambda line: (line[0].batch, line[1]))
    for _, group in groups:  # of one program, so that results come method by method
        grids = [cell_files.grid(study, *line) for line in group]
        _stage(study, [cell for grid in grids for cell in grid], made, runner, out, tell)
        main = [cell_files.main_cell(study, chosen(study, grid, made)) for grid in grids]
        _stage(study, main, made, runner, out, tell)


def _stage(
    study: Study,
    wanted: Sequence[Cell],
    made: dict[Cell, list[Outcome]],
    runner: Runner,
    out: pathlib.Path,
    tell: Tell,
) -> None:
    """Makes the runs that are missing, each kept once it is made; adds them to `made`."""
    for cell in wanted:
        validation(study, made[cell])  # says now if kept runs lack a measure
    kept = {(cell, run["seed"]) for cell in wanted for run in made[cell]}
    missing = [(cell, seed) for cell in wanted for seed in cell.seeds if (cell, seed) not in kept]
    if not missing:
        return
    unfinished = {cell for cell, _ in missing}
    rest, begun = len(unfinished), sum(len(made[cell]) for cell in unfinished)
    kind = {"choose": "Cells to choose from", "main": "Main cells"}[wanted[0].stage]
    tell(
        f"{kind}: {rest:,} to run, {len(wanted) - rest:,} finished"
        + (f"; {begun} of their runs are made" if begun else "")
    )
    done, before, started = 0, runner.done, time.perf_counter()
    told = started
    for cell, outcome in runner(missing):
        made[cell].append(outcome)
        cell_files.save(cell, made[cell], study, out)
        now = time.perf_counter()
        ended = runner.done - before  # those made side by side are yielded one by one
        value = _found(study, made[cell])
        left = f"left {(now - started) / ended * (len(missing) - ended) / 60:.1f} min"
        if cell_files.is_finished(cell, made[cell]):
            done += 1
            tell(f"{cell.stage} {done}/{rest} {cell} | {value} | {left}")
        elif now - told > QUIET:
            tell(f"{cell.stage} {cell} | {len(made[cell])} of {len(cell.seeds)} runs | {left}")
        else:
            continue
        told = now


def _found(study: Study, runs: Sequence[Outcome]) -> str:
    """Returns the mean on validation as text, and how many runs diverged."""
    diverged = sum("diverged_at" in run for run in runs)
    if diverged == len(runs):
        return "diverged"
    value = f"validation {validation(study, runs):.4f}"
    return value + (f", {diverged} of {len(runs)} runs diverged" if diverged else "")


def cost(
    study: Study,
    make_runner: Callable[[], Runner],
    out: pathlib.Path | None,
    *,
    only: tuple[int, int] | None = None,
    tell: Tell,
) -> None:
    """Tells how many cells and runs a study has, how many are finished, and how long the rest is.

    That is from a few steps of the first method with each size of a batch and each length of a
    run, on this device.
    """
    own = [line for line in lines(study, only) if not study.methods[line[1]].is_linear]
    made = _kept(study, own, out)
    if not own:
        none = not lines(study, only)
        tell(_empty(study, only) if none else "All lines are closed forms, of seconds each.")
        return
    runner, whole = make_runner(), 0.0

    def size(line: Line) -> tuple[int, int]:
        return line[0].batch, study.methods[line[1]].length

    for (batch, length), group in itertools.groupby(sorted(own, key=size), key=size):
        grids = [cell_files.grid(study, *line) for line in group]
        choose = [_missing(cell, made) for grid in grids for cell in grid if cell.seeds]
        main = [_missing_main(study, grid, made) for grid in grids]
        runs = sum(choose) + sum(main)
        seconds = runner.probe(cell_files.main_cell(study, grids[0][0])) if runs else 0.0
        whole += seconds * runs
        shown = f", {length:,} pairs a run" if length else ""
        each = f"of {seconds:.2f} s each" if seconds == seconds else "each of unknown length"
        tell(
            f"batch {batch or 'of the config'}{shown}: {len(grids)} lines; {len(choose):,} cells "
            f"of {study.choose.seeds} runs to choose from, {choose.count(0):,} finished; "
            f"{len(main)} main cells of {study.seeds} runs, {main.count(0)} finished; {runs:,} "
            f"runs are left{f', {each}' if runs else ''}"
        )
    if whole > 0:
        tell(f"About {whole / 3600:.1f} h on {runner.device}, compiling and closed forms apart.")


def _empty(study: Study, only: tuple[int, int]) -> str:
    return f"Part {only[0]} of {only[1]} is empty: there are {len(lines(study))} lines."


def _missing(cell: Cell, made: Mapping[Cell, Sequence[Outcome]]) -> int:
    """Returns how many runs of a cell are left."""
    return len(cell.seeds) - len(made[cell])


def _missing_main(
    study: Study, grid: Sequence[Cell], made: Mapping[Cell, Sequence[Outcome]]
) -> int:
    """Returns how many main runs of a line are left; all, if its values are not chosen yet."""
    if any(_missing(cell, made) for cell in grid):
        return study.seeds
    return _missing(cell_files.main_cell(study, chosen(study, grid, made)), made)


def report(study: Study, out: pathlib.Path, tell: Tell) -> None:
    """Writes tables and plots of the lines that are finished. Raises UserError if none is."""
    finished = results.read(study, out)
    tables.write(finished, files.read_json(out / "baselines.json"), out)
    drawn = plots.draw(finished, out)
    tell(
        f"{len(finished.main)} finished lines of {len(lines(study))} are in {out / 'table.md'}; "
        f"beside it: table.csv, table.json, runs.csv, chosen.csv and {len(drawn)} plots."
    )
