"""Kills a training run at random moments, starts it again, and compares its end with another's.

    python tests/kills.py --kills 20 [--processes 2] [--seed 0]

Both runs make their data set, train, evaluate and save; one is left alone. SIGKILL hits the other
in one of four phases, in turn, after a random delay: while its data set is made, within steps,
while a checkpoint is written, in an evaluation. Of several processes one is killed, and the rest
has to end by itself. In the end all parameters, statistics, optimiser states and EMA of both runs
must be the same, bit for bit. Prints a line a kill, and exits with 1 if anything differs.
"""

import argparse
import contextlib
import os
import pathlib
import queue
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np
import xla
from world import REPO, command, environment, make, several, state_of

PHASES = ("preparation", "step", "save", "evaluation")
LIMIT = 300  # seconds in which a start must get to its phase, or a killed group end
SAVED, EVALUATED = 2, 3  # steps between two of them


class Group:
    """The processes of one start, and the lines of the first."""

    def __init__(self, world: pathlib.Path, workdir: pathlib.Path, steps: int, count: int):
        settings = [
            f"--config.data.dir={workdir / 'data'}",
            f"--config.train.epochs={steps * 16 / 40}",
            "--config.train.log_every=1",
            f"--config.checkpoint.every={SAVED}",
            f"--config.eval.every={EVALUATED}",
        ]
        self.processes = [
            subprocess.Popen(
                command(world, "--workdir", str(workdir), *settings, *more),
                cwd=REPO,
                env=environment(world),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for more in several(count)
        ]
        self.lines: queue.Queue[str] = queue.Queue()
        self.told: list[list[str]] = [[] for _ in self.processes]
        self._readers = [
            threading.Thread(target=self._read, args=(i,), daemon=True) for i in range(count)
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, number):
        for line in self.processes[number].stdout:
            self.told[number].append(line)
            if number == 0:
                self.lines.put(line)

    def next_line(self, seconds: float) -> str | None:
        """The next line of the first process, None if there is none in this time."""
        with contextlib.suppress(queue.Empty):
            return self.lines.get(timeout=seconds)
        return None

    def ended(self) -> bool:
        """Whether all processes have."""
        return all(p.poll() is not None for p in self.processes)

    def wait(self) -> list[int]:
        """Their exit statuses; raises subprocess.TimeoutExpired after `LIMIT` seconds."""
        deadline = time.monotonic() + LIMIT
        return [p.wait(max(1.0, deadline - time.monotonic())) for p in self.processes]

    def close(self) -> None:
        """Ends what still runs."""
        for process, reader in zip(self.processes, self._readers, strict=True):
            process.kill()
            process.wait()
            reader.join()
            process.stdout.close()


def reach(group: Group, phase: str, workdir: pathlib.Path, wanted: int) -> bool:
    """Waits until the run is in this phase, at step `wanted` or later; False if it ended before."""
    deadline, now = time.monotonic() + LIMIT, 0
    while time.monotonic() < deadline:
        line = group.next_line(0.002) or ""
        if not line and group.ended():
            return False
        if phase == "preparation" and line.startswith("Building"):
            return True
        if line.startswith("step "):
            now = int(line.split()[1].split("/")[0])
            if now >= wanted and (
                phase == "step" or (phase == "evaluation" and now % EVALUATED == 0)
            ):
                return True
        if phase == "save" and now >= wanted and list(workdir.glob("checkpoints/*tmp*")):
            return True
    raise TimeoutError("".join(group.told[0]))


def kill(
    world: pathlib.Path,
    workdir: pathlib.Path,
    phase: str,
    steps: int,
    count: int,
    rng: random.Random,
) -> str:
    """One start that is killed, and what it was doing."""
    if phase == "preparation":  # as on a machine where the set was never made
        shutil.rmtree(workdir / "data", ignore_errors=True)
    began = time.monotonic()
    group = Group(world, workdir, steps, count)
    try:
        there = [int(p.name) for p in (workdir / "checkpoints").glob("*") if p.name.isdigit()]
        saved = max(there, default=0)
        if not reach(group, phase, workdir, saved + rng.randint(1, 5)):
            raise RuntimeError("It ended before it was killed: " + "".join(group.told[0]))
        time.sleep(rng.uniform(0, 0.4 if phase in ("step", "evaluation") else 0.1))
        victim = rng.randrange(count)
        group.processes[victim].send_signal(signal.SIGKILL)
        group.wait()
    finally:
        group.close()
    last = [line for line in group.told[0] if line.startswith(("step ", "Building"))]
    return (
        f"{phase}, process {victim}, {time.monotonic() - began:.0f} s after a start from step "
        f"{saved}; last line: {last[-1].split(' epoch')[0].split(' in ')[0].strip()}"
    )


def finish(world: pathlib.Path, workdir: pathlib.Path, steps: int, count: int) -> None:
    """Starts a run and waits for its end."""
    with contextlib.closing(Group(world, workdir, steps, count)) as group:
        statuses = group.wait()
    if any(statuses):
        raise RuntimeError("".join(line for told in group.told for line in told))


def harness(
    home: pathlib.Path, *, kills: int, processes: int, seed: int
) -> tuple[list[str], list[str]]:
    """What was killed, and the arrays of the last state that are not those of the other run."""
    rng, steps, world = random.Random(seed), 16 + 4 * max(0, kills - 3), make(home)
    undisturbed, workdir, done = world / "undisturbed", world / "killed", []
    finish(world, undisturbed, steps, processes)
    for number in range(kills):
        phase = PHASES[number % len(PHASES)]
        done.append(kill(world, workdir, phase, steps, processes, rng))
        print(f"kill {number + 1}: {done[-1]}", flush=True)
    finish(world, workdir, steps, processes)
    ours, theirs = state_of(workdir, steps), state_of(undisturbed, steps)
    names = ours.keys() | theirs.keys()
    return done, [
        name
        for name in sorted(names)
        if name not in ours or name not in theirs or not np.array_equal(ours[name], theirs[name])
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ["XLA_FLAGS"] = xla.flags()
    with tempfile.TemporaryDirectory() as home:
        done, wrong = harness(pathlib.Path(home), **vars(options))
    print(f"{len(done)} kills; arrays that differ: {', '.join(wrong) or 'none'}")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
