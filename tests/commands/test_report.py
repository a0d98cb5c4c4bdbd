"""The command `report`, and the page that training leaves at its end."""

from unittest import mock

import numpy as np
import pytest
from world import call, make, state_of, tiny

from otter_jax.run import watched

SHORT = ("--config.train.epochs=1.6", "--config.eval.every=2")  # four steps


@pytest.fixture(autouse=True)
def known():
    """The tiny encoder is known as long as a test."""
    with tiny():
        yield


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make(tmp_path_factory.mktemp("world"))


def test_a_run_leaves_its_report_and_is_bit_for_bit_the_same_without(world):
    result = call(world, "--workdir", world / "seen", *SHORT)
    assert result.returncode == 0, result.stderr[-3000:]
    assert f"The report is in {world / 'seen' / 'report.html'}." in result.stdout
    html = (world / "seen" / "report.html").read_text("utf-8")
    for words in ("Step 0, before the first step", "Step 4</h3>", "a red square", "colours: 40"):
        assert words in html, words
    blind = {"begin": mock.DEFAULT, "keep": mock.DEFAULT}
    with mock.patch.multiple(watched.WatchedPairs, **blind):
        call(world, "--workdir", world / "blind", *SHORT)
    seen, blind = (state_of(world / name, 4) for name in ("seen", "blind"))
    for name, value in seen.items():
        np.testing.assert_array_equal(value, blind[name], err_msg=name)

    out = world / "both.html"
    both = (world / "seen", world / "blind", "--out", out)
    result = call(world, *both, name="report", config=None)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.endswith(f"The report is in {out}.\n")
    assert "2 runs" in out.read_text("utf-8")


def test_mistakes_are_one_paragraph(world):
    for words, said in (
        ([world], "is "),
        ([""], "WORKDIR is empty"),
        ([], "required: WORKDIR"),
        ([world, "--outt=x"], "did you mean --out?"),
    ):
        result = call(world, *words, name="report", config=None)
        assert result.returncode == 2
        assert said in result.stderr
        assert result.stderr.count("\n") == 1
