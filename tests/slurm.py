"""A SLURM cluster of one node on loopback: munged, slurmctld and slurmd for as long as a context.

Everything that it writes lies in a folder of its own under /tmp, its ports are free ones, and its
daemons are stopped at the end, also after a failure: several can run beside each other, and beside
a real one. Its four GPUs are empty files, so that what asks for GPUs is granted some.
"""

import contextlib
import getpass
import os
import pathlib
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator

import world

GPUS = 4
# No cgroups, accounting or prologues. cred_expire is also how long a requeued job waits, two
# minutes if not said; KillWait how long after SIGTERM a cancelled job is killed.
CONF = """
ClusterName=loopback
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={home}/munge/socket,cred_expire=5
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/spool
SlurmctldPidFile={home}/slurmctld.pid
SlurmdPidFile={home}/slurmd.pid
FirstJobId={first_job}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,bf_interval=2
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=30
GresTypes=gpu
NodeName=localhost NodeAddr=127.0.0.1 CPUs=64 Gres=gpu:{gpus}
PartitionName=all Nodes=localhost Default=YES
"""


class Cluster:
    """A running cluster. Its commands find it by `environment`."""

    def __init__(self, home: pathlib.Path):
        self.home = home
        self.environment = {"SLURM_CONF": str(home / "slurm.conf")}

    def run(self, *command: str, **options) -> str:
        """What one of SLURM's commands prints; raises if it fails."""
        environment = os.environ | self.environment | options.pop("env", {})
        result = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=60, **options
        )
        assert result.returncode == 0, f"{' '.join(command)}: {result.stdout}{result.stderr}"
        return result.stdout

    def job(self, number: str) -> dict[str, str]:
        """What scontrol says about a job: JobState, Restarts, ExitCode, ..."""
        text = self.run("scontrol", "--oneliner", "show", "job", number)
        return dict(word.split("=", 1) for word in text.split() if "=" in word)


@contextlib.contextmanager
def cluster() -> Iterator[Cluster]:
    """A cluster that takes jobs. Raises AssertionError if a tool is missing, or does not start."""
    daemons = []
    home = pathlib.Path(tempfile.mkdtemp(prefix="slurm", dir="/tmp"))  # sockets' names are short
    try:
        yield _start(home, daemons)
    finally:
        for daemon in reversed(daemons):
            _stop(daemon)
        shutil.rmtree(home, ignore_errors=True)


def program(name: str) -> str:
    """The path of one of the tools. Raises AssertionError that says what to install."""
    path = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    assert path, (
        f"There is no {name} on this machine. On Debian and Ubuntu `bash .ci/clusters.sh` installs "
        'what these tests need; to leave them out: -m "not cluster".'
    )
    return path


def _start(home: pathlib.Path, daemons: list[subprocess.Popen]) -> Cluster:
    for name in ("munge", "state", "spool"):
        (home / name).mkdir(mode=0o755)
    home.chmod(0o755)
    for i in range(GPUS):
        (home / f"gpu{i}").touch()
    (home / "gres.conf").write_text(f"Name=gpu File={home}/gpu[0-{GPUS - 1}]\n")
    controller_port, node_port = world.free_ports(2)
    (home / "slurm.conf").write_text(
        CONF.format(
            home=home,
            user=getpass.getuser(),
            gpus=GPUS,
            controller_port=controller_port,
            node_port=node_port,
            first_job=random.randint(1, 10**6),  # JAX makes the coordinator's port of it
        )
    )
    key = home / "munge" / "key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    result = Cluster(home)

    def daemon(name, *arguments):
        with (home / f"{name}.out").open("wb") as out:
            daemons.append(
                subprocess.Popen(
                    [program(name), *arguments],
                    env=os.environ | result.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    start_new_session=True,
                )
            )

    munge = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log"}
    munge |= {"seed-file": "seed"}
    files = (f"--{option}={home}/munge/{name}" for option, name in munge.items())
    daemon("munged", "--foreground", "--force", *files)
    _wait(lambda: (home / "munge" / "socket").exists(), home, daemons)
    conf = str(home / "slurm.conf")
    daemon("slurmctld", "-D", "-f", conf)
    daemon("slurmd", "-D", "-f", conf, "-N", "localhost")
    _wait(lambda: _idle(result), home, daemons)
    return result


def _idle(result: Cluster) -> bool:
    with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
        return result.run("sinfo", "--noheader", "--format=%t").strip() == "idle"
    return False


def _wait(ready, home: pathlib.Path, daemons: list[subprocess.Popen]) -> None:
    deadline = time.monotonic() + 60
    while not ready():
        ended = any(daemon.poll() is not None for daemon in daemons)
        if ended or time.monotonic() > deadline:
            said = "".join(f"\n{out.name}: {out.read_text()[-2000:]}" for out in home.glob("*.out"))
            raise AssertionError(f"SLURM does not start on loopback.{said}")
        time.sleep(0.1)


def _stop(daemon: subprocess.Popen) -> None:
    daemon.terminate()
    try:
        daemon.wait(timeout=15)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(daemon.pid, signal.SIGKILL)
        daemon.wait()
