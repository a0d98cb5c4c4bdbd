"""What starts several processes: each file of launch/ really starts the program here.

SLURM runs on loopback with pretended GPUs, Open MPI on this machine; no part of Kubernetes runs.
Where SLURM or Open MPI are not installed the tests fail; -m "not cluster" leaves them out.
"""

import contextlib
import copy
import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import time

import kubernetes_validate
import pytest
import slurm
import world
import yaml

from otter_jax.commands import flags, train

LAUNCH = world.REPO / "launch"
STEPS = 16
SAVED = 75  # the status of a run that was asked to stop, and can go on
LENGTH = ("--config.train.log_every=1", "--config.checkpoint.every=0")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with all that the program needs for a run of `STEPS` steps."""
    home = world.make(tmp_path_factory.mktemp("launch"))
    with (home / "config.py").open("a") as file:
        file.write(world.SLOWLY)
    return home


def program(home, workdir):
    return world.command(home, "--workdir", str(workdir), *LENGTH)


@contextlib.contextmanager
def started(home, *command, **variables):
    """A running command; what it left running is killed at the end."""
    process = subprocess.Popen(
        [str(word) for word in command],
        cwd=world.REPO,
        env=world.environment(home) | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        for pid in pids(str(home)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.communicate(timeout=60)


def end(process, timeout=300):
    """Exit status and output of a command."""
    out, _ = process.communicate(timeout=timeout)
    return process.returncode, out


def pids(*words):
    """The processes that have all these words in their command lines."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            line = path.read_bytes().decode(errors="replace")
            if all(word in line for word in words):
                found.append(int(path.parent.name))
    return found


def wait_for(what, process=None, timeout=300):
    deadline = time.monotonic() + timeout
    while not what():
        assert time.monotonic() < deadline, "nothing happens"
        assert process is None or process.poll() is None, process.stdout.read()
        time.sleep(0.1)


def steps(workdir):
    """The steps that a run has logged."""
    path = workdir / "metrics.jsonl"
    if not path.exists():
        return []
    lines = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    return [line["step"] for line in lines if "loss" in line]


def test_a_run_on_this_machine_stops_goes_on_and_ends(home):
    workdir = home / "local"
    command = ["bash", LAUNCH / "local.sh", 2, *program(home, workdir)]
    stopped = stop(home, command, workdir)
    with started(home, *command) as process:
        status, out = end(process)
    assert status == 0, out
    assert f"going on from step {stopped}" in out
    assert "as an earlier start compiled it" not in out  # they would hang: see `cluster.join`
    assert steps(workdir) == list(range(1, STEPS + 1))


@pytest.mark.cluster
def test_open_mpi_passes_signals_on_and_statuses_back(home):
    mpirun = ["bash", LAUNCH / "mpirun.sh", 2]
    as_root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    variables = {"OMPI_MCA_rmaps_base_oversubscribe": "1", **as_root}
    slurm.program("mpirun")
    for status in (0, 3):
        with started(home, *mpirun, "bash", "-c", f"exit {status}", **variables) as process:
            assert end(process)[0] == status
    stop(home, [*mpirun, *program(home, home / "mpi")], home / "mpi", **variables)


def stop(home, command, workdir, **variables):
    """Starts the command, and asks it to stop half way: the step that it has saved."""
    with started(home, *command, **variables) as process:
        wait_for(lambda: steps(workdir), process)
        process.send_signal(signal.SIGTERM)
        status, out = end(process)
    assert status == SAVED, out
    assert "over 2 devices" in out
    stopped = steps(workdir)[-1]
    assert stopped < STEPS
    assert f"after step {stopped} of {STEPS}; saved" in out
    return stopped


def test_if_one_process_fails_the_others_end_too_and_soon(home):
    """Also those that do not listen: here process 0 sleeps on."""
    script = 'trap "" TERM; [ "$3" = --process_id=1 ] && exit 3; sleep 1000'
    command = ["bash", LAUNCH / "local.sh", 2, "bash", "-c", script, home]
    with started(home, *command, GRACE="2") as process:
        status, out = end(process, timeout=60)
    assert status == 3, out
    assert not pids(str(home), "--process_id=")


@pytest.fixture
def submit(home):
    """Submits the script to a cluster of its own: what it is told -> (cluster, job, its log)."""
    with slurm.cluster() as cluster:

        def submit(workdir):
            log = home / f"{workdir.name}.log"
            size = ("--nodes=1", "--ntasks-per-node=2", "--gpus-per-node=2", "--cpus-per-task=1")
            options = ("--parsable", f"--output={log}", *size)
            job = cluster.run(
                *("sbatch", *options, "launch/slurm.sbatch", *program(home, workdir)),
                cwd=world.REPO,
                env=world.environment(home),
            ).strip()
            return cluster, job, log

        yield submit


def ended(cluster, job):
    return cluster.job(job)["JobState"] not in ("PENDING", "RUNNING", "COMPLETING")


@pytest.mark.cluster
def test_a_slurm_job_asked_to_stop_is_requeued_and_ends(home, submit):
    workdir = home / "slurm"
    cluster, job, log = submit(workdir)
    wait_for(lambda: steps(workdir) or ended(cluster, job))
    assert steps(workdir), log.read_text()
    cluster.run("scancel", "--signal=TERM", job)  # as --signal=TERM@120 and a preemption do
    wait_for(lambda: ended(cluster, job))
    out, told = log.read_text(), cluster.job(job)
    assert (told["JobState"], told["Restarts"]) == ("COMPLETED", "1"), out
    assert "going on from step" in out
    assert steps(workdir) == list(range(1, STEPS + 1))
    assert "over 2 devices" in out


@pytest.fixture(scope="module")
def documents():
    return list(yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text()))


@pytest.mark.parametrize("version", ["1.33", kubernetes_validate.latest_version()])
def test_kubernetes_published_schemas_know_every_field_of_the_job(documents, version):
    for document in documents:
        kubernetes_validate.validate(document, version, strict=True)
    typo = copy.deepcopy(documents[1])
    typo["spec"]["template"]["spec"]["subdomian"] = "otter"
    with pytest.raises(kubernetes_validate.ValidationError, match="subdomian"):
        kubernetes_validate.validate(typo, version, strict=True)


def test_the_pods_agree_on_their_number_and_on_the_name_of_the_first(documents):
    service, job = documents
    spec = job["spec"]["template"]["spec"]
    given = dict(arg.split("=", 1) for arg in spec["containers"][0]["args"] if "=" in arg)
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == int(given["--num_processes"])
    assert service["metadata"]["name"] == spec["subdomain"]
    assert service["spec"]["selector"]["job-name"] == job["metadata"]["name"]
    first = f"{job['metadata']['name']}-0.{spec['subdomain']}:"
    assert given["--coordinator"].startswith(first)


def test_pods_that_were_asked_to_stop_are_made_anew_and_do_not_count_as_failed(documents):
    spec = documents[1]["spec"]
    first = spec["podFailurePolicy"]["rules"][0]
    assert first == {"action": "Ignore", "onExitCodes": {"operator": "In", "values": [SAVED]}}
    assert spec["template"]["spec"]["restartPolicy"] == "Never"  # or there can be no policy


def test_the_commands_that_are_to_be_filled_in_are_right_as_they_stand(documents):
    text = (LAUNCH / "slurm.sbatch").read_text()
    by_slurm = shlex.split(re.search(r"^ *set -- (.*)$", text, re.MULTILINE)[1])
    by_kubernetes = documents[1]["spec"]["template"]["spec"]["containers"][0]["args"]
    for python, m, module, command, *words in (by_slurm, by_kubernetes):
        assert (python, m, module, command) == (".venv/bin/python", "-m", "otter_jax", "train")
        words = [word.replace("$(JOB_COMPLETION_INDEX)", "0") for word in words]
        options = flags.parse(train.parser(), words)
        assert flags.config(options, needs="objective").method == "otter"


def test_the_environment_for_gpus_does_no_harm_without_and_leaves_your_values():
    show = "import jax, os; jax.jit(lambda x: x + 1)(1); print(dict(os.environ))"
    source = ["bash", "-c", f"source {LAUNCH}/env.sh && exec {sys.executable} -c '{show}'"]
    unset = ("XLA_FLAGS", "NCCL_DEBUG", "XLA_PYTHON_CLIENT_MEM_FRACTION")
    bare = {name: value for name, value in os.environ.items() if name not in unset}
    out = subprocess.check_output(source, env=bare | {"JAX_PLATFORMS": "cpu"}, text=True)
    assert "--xla_gpu_enable_latency_hiding_scheduler=true" in out
    mine = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "NCCL_DEBUG": "INFO"}
    out = subprocess.check_output(source, env=bare | mine, text=True)
    assert all(f"{name!r}: {value!r}" in out for name, value in mine.items())


def test_a_tool_that_is_missing_is_a_failure_that_says_what_installs_it():
    with pytest.raises(AssertionError, match=r"no slurmctldd on this machine.*clusters\.sh"):
        slurm.program("slurmctldd")
