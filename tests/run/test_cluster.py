"""Several processes are one program: the same numbers, one record, a common end."""

import functools
import json
import os
import signal
import subprocess
import sys
import time

import jax
import kills
import numpy as np
import pytest
import together
from world import REPO, SLOWLY, call, command, environment, free_ports, make, several, state_of

from otter_jax.errors import UserError
from otter_jax.run import cluster

STEPS = 5
# In float64, of a number's magnitude. What comes farthest apart is the gradient of a bias before a
# batch norm, 0 but for rounding: 2e-16 in each of 384 terms, which the norm's gain of 10 enlarges.
# Seen are 8e-13 at most, for AVX-512, AVX2 and SSE 4.2, with and without optimisation.
LIMIT = 1e-10


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make(tmp_path_factory.mktemp("world"))


def start_all(commands, environments):
    return [
        subprocess.Popen(
            c, cwd=REPO, env=e, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for c, e in zip(commands, environments, strict=True)
    ]


def end_all(processes, timeout=240):
    """[(status, stdout, stderr)] of each; none is left running."""
    deadline = time.monotonic() + timeout
    try:
        told = [p.communicate(timeout=max(1, deadline - time.monotonic())) for p in processes]
    finally:
        for p in processes:
            p.kill()
    return [(p.returncode, *t) for p, t in zip(processes, told, strict=True)]


def programs(world, *arguments, own=((), ()), devices=(1, 1)):
    """Starts `otter_jax.main` in as many processes; `own` are more arguments of each."""
    commands = [
        [*command(world, *arguments, *more), *flags]
        for more, flags in zip(own, several(len(own)), strict=True)
    ]
    return start_all(commands, [environment(world, count) for count in devices])


def metrics_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def results_of(workdir):
    return {p.name: json.loads(p.read_text()) for p in (workdir / "results").glob("*.json")}


def assert_same_state(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


@pytest.mark.parametrize(("count", "devices"), [(2, 2), (4, 1)])
def test_any_number_of_processes_trains_alike(tmp_path, count, devices):
    """Metrics of every step and the whole state after the last, as of one process and device."""
    address = f"127.0.0.1:{free_ports(1)[0]}"
    script = [sys.executable, "-u", "tests/together.py", str(tmp_path), str(STEPS)]
    commands = [[*script, address, str(count), str(i)] for i in range(count)]
    paths = os.pathsep.join((str(REPO), str(REPO / "tests")))
    own = environment(tmp_path, devices) | {"PYTHONPATH": paths}
    ended = end_all(start_all(commands, [own] * count))
    assert [status for status, _, _ in ended] == [0] * count, ended
    for method in together.METHODS:
        ours = dict(np.load(tmp_path / f"{method}.npz"))
        theirs = reference(method)
        assert ours.keys() == theirs.keys()
        for name, one in theirs.items():
            limit = LIMIT * max(1.0, np.abs(one).max())
            np.testing.assert_allclose(ours[name], one, 0, limit, err_msg=f"{method} {name}")


@functools.cache
def reference(method):
    with jax.enable_x64(True):
        return together.steps(method, 1, STEPS)


@pytest.fixture(scope="module")
def undisturbed(world):
    """A run of 16 steps by two processes, and what they printed."""
    workdir = world / "undisturbed"
    ended = end_all(programs(world, "--workdir", str(workdir), "--config.train.log_every=1"))
    assert [status for status, _, _ in ended] == [0, 0], ended
    return workdir, [stdout for _, stdout, _ in ended]


def test_what_happens_is_recorded_once(undisturbed):
    workdir, (first, second) = undisturbed
    assert "step 16/16" in first
    assert second == ""
    steps = [line["step"] for line in metrics_of(workdir) if "loss" in line]
    assert steps == list(range(1, 17))
    assert len(list((workdir / "tensorboard").iterdir())) == 1
    assert len(json.loads((workdir / "run.json").read_text())) == 1


def test_signals_stop_all_processes_and_the_command_goes_on(world, undisturbed):
    """To the same weights, bit for bit, as without two stops; both after saves and evaluations."""
    workdir, more = world / "stopped", ["--config.train.log_every=1"]
    often = ["--config.checkpoint.every=2", "--config.eval.every=3"]
    saved = 0
    for wanted, victim in ((4, 1), (10, 0)):
        processes = programs(world, "--workdir", str(workdir), *more, *often)
        told = []
        for line in processes[0].stdout:
            told.append(line)
            if line.startswith(f"step {wanted}/"):
                processes[victim].send_signal(signal.SIGTERM)
                break
        ended = end_all(processes)
        assert [status for status, _, _ in ended] == [75, 75], ended
        assert "Stopped by a signal to one of the processes after step" in ended[0][1]
        assert saved == 0 or any(f"going on from step {saved}" in line for line in told)
        saved = max(int(path.name) for path in (workdir / "checkpoints").iterdir())
        assert wanted <= saved < 16
    ended = end_all(programs(world, "--workdir", str(workdir), *more, *often))
    assert [status for status, _, _ in ended] == [0, 0], ended
    assert f"going on from step {saved}" in ended[0][1]
    assert_same_state(state_of(workdir, 16), state_of(undisturbed[0], 16))
    steps = [line["step"] for line in metrics_of(workdir) if "loss" in line]
    assert steps == list(range(1, 17))


STUCK = """
import signal, time
from otter_jax.training import contrastive
from otter_jax.training.compiling import in_thread

signal.signal(signal.SIGINT, signal.default_int_handler)
contrastive.compiled = lambda *_, **__: in_thread(lambda: [print("compiling"), time.sleep(300)], "")
"""


def test_a_stop_while_all_compile_ends_all_at_once_and_leaves_nothing(world):
    stuck, workdir = world / "stuck.py", world / "stuck"
    stuck.write_text((world / "config.py").read_text() + STUCK)
    processes = programs(world, "--config", str(stuck), "--workdir", str(workdir))
    for line in processes[0].stdout:
        if line == "compiling\n":
            processes[0].send_signal(signal.SIGINT)
            break
    began = time.monotonic()
    for status, _, stderr in end_all(processes):
        assert status == 75, stderr
        assert "Stopped by a signal to one of the processes. The same command" in stderr
        assert "Traceback" not in stderr
    assert time.monotonic() - began < 5
    assert not workdir.exists()


def test_a_stop_ends_all_processes_whatever_they_do(tmp_path):
    """Waiting for the others, sleeping, and computing in C, where Python hears no signal."""
    script = """
import ctypes, sys, time
from otter_jax.commands import start
from otter_jax.run import cluster, stops

def main(address, number):
    cluster.join(address, 3, int(number))
    stops.listen()
    print("listening", flush=True)
    (lambda: cluster.meet("here"), lambda: time.sleep(99), lambda: ctypes.CDLL(None).sleep(99))[
        int(number)
    ]()

sys.exit(start.status(lambda: main(*sys.argv[1:])))
"""
    address = f"127.0.0.1:{free_ports(1)[0]}"
    commands = [[sys.executable, "-c", script, address, str(i)] for i in range(3)]
    processes = start_all(commands, [None] * 3)
    assert "listening\n" in iter(processes[1].stdout.readline, "")
    processes[1].send_signal(signal.SIGTERM)
    began = time.monotonic()
    ended = end_all(processes)
    assert [status for status, _, _ in ended] == [75] * 3, ended
    assert time.monotonic() - began < 6
    assert not any("Traceback" in stderr for _, _, stderr in ended)


def test_what_two_processes_saved_evaluates_alike_in_any_number_of_them(world, undisturbed):
    """40 images are no multiple of eval.batch_size = 16: the last rows are padding."""
    workdir, _ = undisturbed
    before = results_of(workdir)
    (result,) = before.values()
    assert result["sets"]["colours"]["images"] == 40
    arguments = ["--workdir", str(workdir), "--mode=eval"]
    for count in (1, 4):
        if count == 1:
            ended = call(world, *arguments[:2], name="eval")
            assert ended.returncode == 0, ended.stderr
        else:
            ended = end_all(programs(world, *arguments, own=[()] * 4, devices=[1] * 4))
            assert [status for status, _, _ in ended] == [0] * 4, ended
        after = results_of(workdir)  # into the same file: it is the run's own evaluation
        assert after.keys() == before.keys()
        assert [found["sets"] for found in after.values()] == [result["sets"]]


def test_a_process_that_dies_ends_the_others(world):
    slowly = world / "slowly.py"  # and so of the program that is compiled already
    slowly.write_text((world / "config.py").read_text() + SLOWLY)
    more = ["--config", str(slowly), "--config.train.log_every=1"]
    processes = programs(world, "--workdir", str(world / "dies"), *more)
    for line in processes[0].stdout:
        if line.startswith("step 2/"):
            processes[1].kill()
            break
    began = time.monotonic()
    (status, _, stderr), _ = end_all(processes, timeout=120)
    assert status not in (0, 75), stderr
    assert time.monotonic() - began < 100  # within cluster.HEARTBEAT and some
    assert "process" in stderr.lower()


def test_processes_that_differ_are_told_how(world):
    processes = programs(
        world, "--workdir", str(world / "differ"), own=[[], ["--config.optim.learning_rate=0.5"]]
    )
    for status, _, stderr in end_all(processes):
        assert status == 2
        assert "optim.learning_rate is 0.01 in process 0 and 0.5 in process 1" in stderr
        assert "Traceback" not in stderr
    assert not (world / "differ" / "config.json").exists()


def test_processes_with_other_numbers_of_devices_are_told_so(world):
    processes = programs(world, "--workdir", str(world / "uneven"), devices=(1, 2))
    for status, _, stderr in end_all(processes):
        assert status == 2
        assert "process 0 has 1, process 1 has 2" in stderr


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--num_processes=2"], "--coordinator, --process_id missing"),
        (["--coordinator=here", "--num_processes=2", "--process_id=1"], "HOST:PORT"),
        (["--coordinator=a:1", "--num_processes=2", "--process_id=2"], "from 0 to 1"),
    ],
)
def test_a_mistake_in_the_flags_is_one_paragraph(world, flags, words):
    result = call(world, "--workdir", world / "flags", *flags)
    assert result.returncode == 2
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_a_coordinator_that_does_not_answer_is_an_error_in_bounded_time(monkeypatch):
    monkeypatch.setattr(cluster, "JOIN", 2)
    began = time.monotonic()
    with pytest.raises(UserError, match="nobody answered in 2 s"):
        cluster.join(f"127.0.0.1:{free_ports(1)[0]}", 2, 1)
    assert time.monotonic() - began < 10


def test_a_workdir_of_its_own_for_each_process_is_refused(tmp_path):
    """As on machines without a common file system."""
    script = """
import pathlib, sys
from otter_jax.commands import start
from otter_jax.run import cluster

def main(folder, address, count, number):
    cluster.SEEN = 1
    cluster.join(address, int(count), int(number))
    cluster.check_shared(pathlib.Path(folder))

sys.exit(start.status(lambda: main(*sys.argv[1:])))
"""
    address = f"127.0.0.1:{free_ports(1)[0]}"
    commands = [
        [sys.executable, "-c", script, str(tmp_path / name), address, "2", str(i)]
        for i, name in enumerate(("mine", "yours"))
    ]
    for status, _, stderr in end_all(start_all(commands, [None, None])):
        assert status == 2, stderr
        assert "processes [1] do not see there what process 0 writes" in stderr


@pytest.mark.parametrize(
    ("variables", "started_by"),
    [
        ({}, ""),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_PROCID": "0"}, ""),  # a batch script
        ({"SLURM_STEP_NODELIST": "a[1-2]", "SLURM_STEP_NUM_TASKS": "1"}, ""),
        ({"SLURM_STEP_NODELIST": "a[1-2]", "SLURM_STEP_NUM_TASKS": "2"}, "SLURM"),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, ""),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, "Open MPI"),
    ],
)
def test_only_what_was_started_as_one_of_several_joins(monkeypatch, variables, started_by):
    for name in os.environ:
        if name.startswith(("SLURM_", "OMPI_")):
            monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cluster.launcher() == started_by


def test_a_run_killed_three_times_ends_as_one_that_was_not(tmp_path):
    """`python tests/kills.py --kills 20` for more."""
    done, different = kills.harness(tmp_path, kills=3, processes=1, seed=0)
    assert len(done) == 3
    assert different == []
