"""How fast the quickstart trains, here and as another checkout of this repository does.

    python -m benchmarks.quickstart --against FOLDER [--epochs 2] [--rounds 2]

Both take turns at `otter-jax train --config quickstart:otter`, in processes of their own. Pairs a
second and CPU milliseconds a pair are of the steps alone, from the end of the second step to that
of the last, medians over the rounds: with input and log, without start and evaluation. First step
and whole run are seconds from the command on, the best of the rounds: a first start compiles.
"""

import argparse
import os
import pathlib
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

BATCH = 128  # pairs, as the config says
STEP = re.compile(r"step (\d+)/(\d+) ")


class Run(NamedTuple):
    """What one run took: of a step's pairs, and from the command on."""

    pairs_per_second: float
    milliseconds: float
    first_step: float
    whole: float
    cpu: float


def cpu_seconds(process: int) -> float:
    """User and system time of a process so far, of all its threads."""
    fields = pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def train(folder: pathlib.Path, epochs: float) -> Run:
    """Trains with the program in a folder."""
    with tempfile.TemporaryDirectory() as workdir:
        command = [
            *(sys.executable, "-u", "-m", "otter_jax", "train", "--config", "quickstart:otter"),
            *("--workdir", f"{workdir}/run", f"--config.train.epochs={epochs}"),
            *("--config.train.log_every=1", "--config.optim.warmup_steps=1"),
        ]
        began, seen = time.perf_counter(), {}
        process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)
        for line in process.stdout:
            if found := STEP.match(line):
                now, last = map(int, found.groups())
                seen[now] = time.perf_counter() - began, cpu_seconds(process.pid)
        _, status, used = os.wait4(process.pid, 0)
        whole = time.perf_counter() - began
    if status:
        sys.exit(f"The run in {folder} failed.")
    pairs = BATCH * (last - 2)
    wall, cpu = (after - before for before, after in zip(seen[2], seen[last], strict=True))
    return Run(pairs / wall, 1000 * cpu / pairs, seen[1][0], whole, used.ru_utime + used.ru_stime)


def main() -> None:
    """Prints machine, load and table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--against", type=pathlib.Path, required=True, metavar="FOLDER")
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    folders = {"there": options.against, "here": pathlib.Path(__file__).parent.parent}
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    print(f"{platform.processor() or platform.machine()}, {cores} cores, load {load:.1f} before\n")
    print("| | pairs/s | CPU ms a pair | first step, s | whole run, s | whole run, CPU s |")
    print("|---" * 6 + "|")
    runs: dict[str, list[Run]] = {name: [] for name in folders}
    for _ in range(options.rounds):
        for name, folder in folders.items():
            runs[name].append(train(folder, options.epochs))
    found = {}
    for name, each in runs.items():
        rate, cost, *best = zip(*each, strict=True)
        found[name] = Run(statistics.median(rate), statistics.median(cost), *map(min, best))
        print(f"| {name} | {' | '.join(f'{value:.3g}' for value in found[name])} |")
    shares = (
        f"{here / there:.2f}" for here, there in zip(found["here"], found["there"], strict=True)
    )
    print(f"| here / there | {' | '.join(shares)} |")
    print(f"\nload {os.getloadavg()[0]:.1f} after")


if __name__ == "__main__":
    main()
