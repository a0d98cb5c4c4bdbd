"""A second start in the directory of a run that lives is refused; one that was killed is not."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from otter_jax.errors import UserError
from otter_jax.run import lock

REPO = pathlib.Path(__file__).parents[2]
HOLD = """
import pathlib, sys
from otter_jax.run import lock
with lock.held(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_start_is_refused_by_name_until_the_first_is_killed(tmp_path):
    workdir = tmp_path / "run"
    lock.check_free(workdir)
    assert not workdir.exists()
    command = [sys.executable, "-c", HOLD, str(workdir)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=REPO, **pipes) as other:
        assert other.stdout.readline() == b"held\n"
        words = f"is being trained by process {other.pid} on .* since 2"
        with pytest.raises(UserError, match=words):
            lock.check_free(workdir)
        with pytest.raises(UserError, match=words), lock.held(workdir):
            pass
        assert json.loads((workdir / lock.FILE).read_text())["process"] == other.pid
        other.kill()
    lock.check_free(workdir)
    with lock.held(workdir):
        assert json.loads((workdir / lock.FILE).read_text())["process"] == os.getpid()
    assert not list(workdir.iterdir())


def test_a_lock_whose_file_says_nothing_is_a_lock(tmp_path):
    with lock.held(tmp_path):
        (tmp_path / lock.FILE).write_text("")
        with pytest.raises(UserError, match="is being trained. Wait for its end"):
            lock.check_free(tmp_path)
