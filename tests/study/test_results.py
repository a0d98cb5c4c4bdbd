"""Means, paired differences, their intervals, and counts."""

import csv

import numpy as np
import pytest
import studies
from scipy import stats

from otter_jax.study import cells, reading, tables
from otter_jax.study.plan import Setting
from otter_jax.study.results import Finished, Result

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


def test_of_equal_cells_one_is_the_best_and_one_run_has_no_interval(tmp_path):
    (tmp_path / "study.toml").write_text(studies.FILE.replace("seeds = 2\n", "seeds = 1\n"))
    study = reading.read(tmp_path / "study.toml")
    run = {"seed": 0, "scores": {"ema": {"val/name@5": 0.5}, "student": {}}, "seconds": 1.0}
    grids, main = {}, {}
    for line in ((study.settings[0], "infonce"), (study.settings[0], "otter")):
        grid = cells.grid(study, *line)
        grids[line] = [(cell, 0.5) for cell in grid]
        main[line] = cells.main_cell(study, grid[0]), [run]
    tables.write(Finished(study, main, grids), {}, tmp_path)
    with (tmp_path / "chosen.csv").open() as file:
        assert [row["best"] for row in csv.DictReader(file)] == ["1", "0", "1", "0"]
    assert "| otter | 0.500 (+0.000) |" in (tmp_path / "table.md").read_text()
