"""Shares the units of a plan among processes, or Apache Beam, until all have their parts."""

import concurrent.futures.process
import functools
import math
import multiprocessing
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from otter_jax.data import worker
from otter_jax.data.build.parts import Done, is_made, make_unit, parts_of
from otter_jax.data.build.pieces import count_records
from otter_jax.data.build.plan import Plan, Unit
from otter_jax.errors import UserError

TICK = 0.5  # seconds between looks at what the workers tell

Missing = Sequence[tuple[Unit, pathlib.Path]]  # units without all parts, and their parts' stems


def stems(plan: Plan, folder: pathlib.Path) -> dict[str, list[pathlib.Path]]:
    """Returns the stems of the parts in `folder`, of each unit of each split."""
    return {
        split: [folder / f"{split}-{number:06}" for number in range(len(units))]
        for split, units in plan.units.items()
    }


def make_parts(
    plan: Plan,
    folder: pathlib.Path,
    workers: int,
    beam_options: Any,
    done: Done,
) -> int:
    """Makes the parts that are missing, and returns how many records these have.

    Args:
      plan: of the set.
      folder: of its parts. Temporary files in it are of processes that are dead: one at a time.
      workers: processes that read units; 1 is this one.
      beam_options: PipelineOptions of Apache Beam, which then reads them; None for no Beam.
      done: called as `parts.make_unit` says, and for each unit that has all parts with its size
        and None.

    Raises UserError if a worker dies.
    """
    for leftover in folder.glob("*.tmp"):
        leftover.unlink()
    missing, there = [], 0
    for split, of_split in stems(plan, folder).items():
        for unit, stem in zip(plan.units[split], of_split, strict=True):
            made = is_made(stem)
            there += sum(map(count_records, parts_of(stem)))
            if made:
                done(unit.size, None)
            else:
                missing.append((unit, stem))
    if there:
        print(f"Going on: {there:,} {plan.records} were checked before.", flush=True)
    make = functools.partial(make_unit, options=plan.options)
    if beam_options is not None:
        import apache_beam

        with apache_beam.Pipeline(options=beam_options) as pipeline:
            units = pipeline | apache_beam.Create(missing, reshuffle=True)
            # Runners may try a unit twice at once: a single part replaces another as a whole.
            _ = units | apache_beam.MapTuple(functools.partial(make, seconds=math.inf))
        return sum(count_records(part) for _, stem in missing for part in parts_of(stem))
    try:
        return _run(make, missing, workers, done)
    except concurrent.futures.process.BrokenProcessPool as error:
        raise UserError(
            f"A process that prepared {plan.name} was killed, perhaps for want of memory. What is "
            "done is kept; the same command goes on from there, in less memory with fewer workers."
        ) from error


def _run(
    make: Callable[..., int],
    missing: Missing,
    workers: int,
    done: Done,
) -> int:
    """Makes the parts of all units, and returns how many records they have."""
    if min(workers, len(missing)) <= 1:
        return sum(make(unit, stem, done=done) for unit, stem in missing)
    context = multiprocessing.get_context("spawn")
    told = context.SimpleQueue()
    with concurrent.futures.ProcessPoolExecutor(
        min(workers, len(missing)), mp_context=context, initializer=_begin, initargs=(told,)
    ) as pool:
        running = {pool.submit(make, unit, stem, done=_tell) for unit, stem in missing}
        made = 0
        try:
            while running:
                ended, running = concurrent.futures.wait(
                    running, TICK, return_when=concurrent.futures.FIRST_COMPLETED
                )
                while not told.empty():
                    done(*told.get())
                made += sum(future.result() for future in ended)
        except BaseException:  # end at once, without waiting for the units being read
            pool.shutdown(wait=False, cancel_futures=True)
            for child in multiprocessing.active_children():
                child.kill()
            raise
        return made


def _begin(told: Any) -> None:
    """Begins a worker process, which tells its progress through a queue."""
    global _told
    _told = told
    worker.begin()


def _tell(size: int, records: int | None) -> None:
    """Tells the parent process what a worker has done."""
    _told.put((size, records))
