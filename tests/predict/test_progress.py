"""How far many pictures are is said at a terminal and in a log, with what is waited for."""

import time

import rich.console

from otter_jax.predict import progress
from otter_jax.predict.progress import Progress


def slow(count):
    for number in range(count):
        time.sleep(0.02)
        yield number


def test_a_log_gets_rate_time_left_and_the_share_of_waiting(monkeypatch):
    monkeypatch.setattr(progress, "EVERY", 0.01)
    console = rich.console.Console(record=True, width=200, force_terminal=False)
    with Progress(console, total=100, done=40) as shown:
        for _ in shown.waiting(slow(3)):
            shown.advance(10)
    lines = console.export_text().splitlines()
    assert [line.split(",")[0] for line in lines] == [
        "50 of 100 pictures", "60 of 100 pictures", "70 of 100 pictures"
    ]  # fmt: skip
    assert "/s, " in lines[0]
    assert " left, " in lines[0]
    share = int(lines[-1].rsplit("%", 1)[0].rsplit(" ", 1)[1])
    assert 30 < share <= 100
    assert lines[-1].endswith("% of the time waiting for pictures to be read")
    assert shown.told().startswith("30 pictures in 0s, ")


def test_a_log_of_classes_gets_lines_that_speak_of_no_pictures(monkeypatch):
    monkeypatch.setattr(progress, "EVERY", 0.0)
    console = rich.console.Console(record=True, width=200, force_terminal=False)
    with Progress(console, total=20_000, what="classes") as shown:
        time.sleep(0.01)
        shown.advance(1_024)
    (line,) = console.export_text().splitlines()
    assert line.startswith("1,024 of 20,000 classes, ")
    assert line.endswith(" left")


def test_what_is_left_is_closed_when_a_loop_ends_early():
    batches = slow(3)
    with Progress(rich.console.Console(), total=3) as shown:
        waiting = shown.waiting(batches)
        next(waiting)
        waiting.close()
    assert next(batches, "closed") == "closed"
