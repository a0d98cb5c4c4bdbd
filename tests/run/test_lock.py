"""A second start in the directory of a run that lives is refused; one that was killed is not."""

import json
import multiprocessing
import os
import signal

import pytest

from otter_jax.errors import UserError
from otter_jax.run import lock


def hold(workdir, said):
    with lock.held(workdir):
        said.send(os.getpid())
        signal.pause()


def test_a_second_start_is_refused_by_name_until_the_first_is_killed(tmp_path):
    workdir = tmp_path / "run"
    lock.check_free(workdir)
    assert not workdir.exists()
    ours, theirs = multiprocessing.Pipe()
    other = multiprocessing.get_context("fork").Process(target=hold, args=(workdir, theirs))
    other.start()
    number = ours.recv()
    words = f"is being trained by process {number} on .* since 2"
    with pytest.raises(UserError, match=words):
        lock.check_free(workdir)
    with pytest.raises(UserError, match=words), lock.held(workdir):
        pass
    assert json.loads((workdir / lock.FILE).read_text())["process"] == number
    other.kill()
    other.join()
    lock.check_free(workdir)
    with lock.held(workdir):
        assert json.loads((workdir / lock.FILE).read_text())["process"] == os.getpid()
    assert not list(workdir.iterdir())


def test_a_lock_whose_file_says_nothing_is_a_lock(tmp_path):
    with lock.held(tmp_path):
        (tmp_path / lock.FILE).write_text("")
        with pytest.raises(UserError, match="is being trained. Wait for its end"):
            lock.check_free(tmp_path)
