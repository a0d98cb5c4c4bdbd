"""A request to stop is answered at once, also where what is being computed takes a while."""

import os
import signal

import pytest

from otter_jax.errors import Stopped
from otter_jax.run import stops


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_request_to_stop_is_answered_and_says_what_a_second_one_does(number, capfd):
    with stops.Stop() as stop:
        os.kill(os.getpid(), number)
        assert stop.reached()
    answer = f"{number.name}: stopping after this step; a second one saves nothing.\n"
    assert capfd.readouterr().err == answer


def test_what_ends_at_once_needs_no_answer(capfd):
    with stops.Stop() as stop, pytest.raises(Stopped), stop.interrupting():
        os.kill(os.getpid(), signal.SIGINT)
    assert capfd.readouterr().err == ""
