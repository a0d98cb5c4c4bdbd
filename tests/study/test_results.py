"""Means, paired differences, their intervals, and counts."""

import numpy as np
import pytest
from scipy import stats

from otter_jax.study.plan import Setting
from otter_jax.study.results import Result

SETTING = Setting("mine", 0.0, 1.0, 8)
BASELINE = np.array([0.10, 0.30, 0.20, 0.40])


def result(values):
    return Result(SETTING, "otter", "val/name@5", np.array(values), BASELINE)


def test_a_difference_is_that_of_runs_with_the_same_seed():
    each = np.array([0.02, 0.03, 0.01, 0.02])
    middle, low, high = result(BASELINE + each).difference()
    expected = stats.ttest_rel(BASELINE + each, BASELINE).confidence_interval(0.95)
    assert middle == pytest.approx(0.02)
    assert (low, high) == pytest.approx((expected.low, expected.high))
    assert result(BASELINE + each).verdict() == "above"
    assert result(BASELINE - each).verdict() == "below"
    assert result(BASELINE[::-1]).verdict() == "level"


def test_a_run_that_diverged_is_left_out_with_its_pair():
    found = result([0.12, np.nan, 0.22, 0.42])
    assert found.mean == pytest.approx(np.mean([0.12, 0.22, 0.42]))
    assert found.difference()[0] == pytest.approx(0.02)
    assert np.isnan(result([np.nan] * 4).mean)


def test_the_error_is_that_of_the_mean():
    assert result(BASELINE).error == pytest.approx(stats.sem(BASELINE))
