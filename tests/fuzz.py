"""Damages files of every kind that is read, and watches that whatever reads them ends well.

    PYTHONPATH=. python tests/fuzz.py --inputs 100000

Each input is made from its number alone. It ends well if it is read, tallied or refused by a
UserError within SECONDS of computing and with at most MEMORY in its process; all else is printed,
and kept.
"""

import argparse
import collections
import contextlib
import io
import multiprocessing
import os
import pathlib
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback

SECONDS = 5.0  # of computing
WAIT = 120.0  # seconds after which it is taken to wait for ever
MEMORY = 1 << 30  # bytes of a process, with all that it has imported
TICK = 0.05  # seconds between looks at the workers
WELL = ("read", "tallied", "refused")


def make(number: int, folder: pathlib.Path):
    """Makes an input in an empty folder; returns the name of its kind, and what reads it."""
    import samples

    rng = random.Random(number)
    (sample,) = rng.choices([*samples.SAMPLES], [*samples.SAMPLES.values()])
    return sample.__name__, sample(folder, rng)


def outcome(number: int, folder: pathlib.Path) -> tuple[str, str, str]:
    """Reads an input; returns its kind, what came of it, and why if that is none of WELL."""
    from otter_jax.commands.start import REFUSALS
    from otter_jax.errors import UserError
    from otter_jax.files import Refused

    kind, read = make(number, folder)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return kind, "tallied" if read(folder) else "read", ""
    except (UserError, Refused):  # every command makes a paragraph of both
        return kind, "refused", ""
    except Exception as error:
        if isinstance(error, OSError) and error.errno in REFUSALS and error.filename:
            return kind, "refused", ""  # and of what a disk says
        return kind, "traceback", traceback.format_exc(limit=-6)


def emptied(folder: pathlib.Path) -> pathlib.Path:
    """Returns the folder, made anew."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def work(connection, folder: pathlib.Path) -> None:
    """Reads the inputs whose numbers come in, until None does."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what C libraries say of broken pictures
    import warnings

    warnings.simplefilter("ignore")
    import samples  # noqa: F401
    import transformers

    assert transformers.AutoTokenizer, "what tokenizers import is imported before time is counted"
    os.chdir(emptied(folder))
    connection.send(("", "begun", ""))
    while (number := connection.recv()) is not None:
        connection.send(outcome(number, emptied(folder / "input")))


class Worker:
    """A process that reads inputs one by one, and is killed where one takes too much.

    Attributes:
      number: of the input that it reads; None while it has none.
    """

    def __init__(self, folder: pathlib.Path):
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=work, args=(theirs, folder), daemon=True)
        self._process.start()
        self.number, self._since, self._before = -1, time.monotonic() + 120, 120.0  # it imports

    def begin(self, number: int) -> None:
        """Gives it an input."""
        self.number, self._since, self._before = number, time.monotonic(), self._computed()
        self.connection.send(number)

    def ended(self) -> tuple[str, str, str] | None:
        """Returns what came of the input; None while it is read."""
        if self.connection.poll():
            try:
                found = self.connection.recv()
            except (EOFError, ConnectionError):
                self._process.join()
                return "?", "crash", f"exit status {self._process.exitcode}"
            self.number = None
            return found
        waited, spent = time.monotonic() - self._since, self._computed() - self._before
        held = self._memory()
        if spent > SECONDS or waited > WAIT:
            return "?", "slow", f"{spent:.1f} s of computing, {waited:.1f} s in all"
        if held > MEMORY:
            return "?", "memory", f"{held >> 20} MiB"
        return None

    def _computed(self) -> float:
        """Returns its seconds of computing: on a busy machine those of the clock say little."""
        try:
            fields = pathlib.Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2]
            return sum(map(int, fields.split()[11:13])) / os.sysconf("SC_CLK_TCK")
        except (OSError, ValueError):
            return 0.0

    def _memory(self) -> int:
        try:
            fields = pathlib.Path(f"/proc/{self._process.pid}/statm").read_text().split()
        except OSError:
            return 0
        return int(fields[1]) * resource.getpagesize() if len(fields) > 1 else 0

    def kill(self) -> None:
        """Ends it, whatever it does."""
        self._process.kill()
        self._process.join()


def fuzz(inputs: range, workers: int, keep: pathlib.Path, tell=print) -> collections.Counter:
    """Reads inputs; returns how many there were of each kind and outcome. Bad ones are kept."""
    counts: collections.Counter = collections.Counter()
    left, told = iter(inputs), time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        folders = [pathlib.Path(scratch, str(i)) for i in range(workers)]
        running = {folder: Worker(folder) for folder in folders}
        while running:
            multiprocessing.connection.wait([w.connection for w in running.values()], TICK)
            for folder, worker in list(running.items()):
                number = worker.number
                if (found := worker.ended()) is None:
                    continue
                kind, what, why = found
                if number >= 0:
                    counts[kind, what] += 1
                if what not in (*WELL, "begun"):
                    tell(f"{number}: {kind} {what}\n{why}")
                    keep_input(number, keep / str(number))
                    if what != "traceback":
                        worker.kill()
                        running[folder] = Worker(folder)
                        continue
                if (number := next(left, None)) is None:
                    worker.kill()
                    del running[folder]
                else:
                    worker.begin(number)
            if time.monotonic() - told > 60:
                told = time.monotonic()
                tell(f"{sum(counts.values()):,} of {len(inputs):,}")
    return counts


def keep_input(number: int, folder: pathlib.Path) -> None:
    """Keeps an input that ended badly."""
    with contextlib.suppress(OSError):
        make(number, emptied(folder))


def main() -> int:
    """Reads damaged inputs; the exit status is 1 if one ended badly."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=2_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--keep", type=pathlib.Path, default=pathlib.Path("fuzzed"))
    options = parser.parse_args()
    began = time.monotonic()
    inputs = range(options.first, options.first + options.inputs)
    counts = fuzz(inputs, options.workers, options.keep)
    ends = collections.Counter()
    for (_, what), count in counts.items():
        ends[what] += count
    for kind in sorted({kind for kind, _ in counts}):
        said = (f"{n:,} {what}" for (of, what), n in sorted(counts.items()) if of == kind)
        print(f"  {kind:12}{', '.join(said)}")
    print(
        f"{options.inputs:,} inputs in {time.monotonic() - began:.0f} s: "
        + ", ".join(f"{n:,} {what}" for what, n in ends.most_common())
    )
    return 1 if set(ends) - set(WELL) else 0


if __name__ == "__main__":
    sys.exit(main())
