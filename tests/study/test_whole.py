"""A study of whole runs: each is what `train` makes, in a directory that its cell names."""

import json
import os
import shutil
import signal

import pytest
import world

from otter_jax.commands import study as command
from otter_jax.run import directory
from otter_jax.run.checkpoint import Checkpoints

FILE = """
config = "{config}"
seeds = 2

[choose]
seeds = 1
learning_rate = [1e-2]
log_scale = [2.5]
by = ["colours/FH@1"]

[[settings]]
train.epochs = 0.8

[methods]
infonce = {{}}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return world.make(tmp_path_factory.mktemp("whole"))


def call(home, *flags, change=("", "")):
    path = home / "study.toml"
    path.write_text(FILE.format(config=home / "config.py").replace(*change))
    with world.tiny():
        return command.main([str(path), "--out", str(home / "out"), *flags])


def test_runs_are_in_directories_that_cells_name_and_go_on(home, capsys):
    assert call(home) == 0
    (main,) = (home / "out" / "cells").rglob("*.json")  # of one combination nothing is chosen
    assert "main_" in main.name
    assert len((home / "out" / "chosen.csv").read_text().splitlines()) == 1  # its head
    cell = json.loads(main.read_text())
    assert [run["seed"] for run in cell["seeds"]] == [0, 1]
    for run in cell["seeds"]:
        workdir = home / "out" / run["run"]
        config = directory.config_of(workdir)
        assert (config.seed, config.train.epochs, config.objective.log_scale) == (
            run["seed"], 0.8, 2.5,
        )  # fmt: skip
        (own,) = directory.evaluations(workdir)
        theirs = own.read()["sets"]["colours"]["ema"]["FH@1"]
        assert run["scores"]["ema"]["colours/FH@1"] == pytest.approx(theirs, abs=1e-6)
    assert "colours" in (home / "out" / "table.md").read_text()
    capsys.readouterr()
    main.unlink()  # as a kill before the cell was written: its runs are there
    before = {path: path.stat().st_mtime for path in (home / "out" / "runs").rglob("state")}
    assert call(home) == 0
    assert {path: path.stat().st_mtime for path in (home / "out" / "runs").rglob("state")} == before
    assert json.loads(main.read_text())["seeds"][0]["scores"] == cell["seeds"][0]["scores"]


def test_a_run_of_another_config_is_not_gone_on_with(home, capsys):
    assert call(home) == 0
    shutil.rmtree(home / "out" / "cells")
    change = ("infonce = {}", "infonce.train.optim.warmup_steps = 3")
    assert call(home, change=change) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "was begun with another config: optim.warmup_steps: " in told
    assert call(home) == 0


def test_a_stop_while_the_last_state_is_saved_ends_the_study(home, tmp_path, capsys, monkeypatch):
    def save(self, *args):
        if len(args) == 3:  # after the last evaluation
            os.kill(os.getpid(), signal.SIGTERM)
        saved(self, *args)

    saved = Checkpoints.save
    monkeypatch.setattr(Checkpoints, "save", save)
    assert call(home, "--out", str(tmp_path / "out")) == 75
    assert "Finished runs are kept" in capsys.readouterr().out
    (cell,) = (tmp_path / "out" / "cells").rglob("*.json")
    assert len(json.loads(cell.read_text())["seeds"]) == 1


def test_a_measure_that_runs_have_not_is_said(home, capsys):
    grid = '[1e-2]\nlog_scale = [2.5]\nby = ["colours/FH@1"]'
    larger = '[1e-2, 2e-2]\nlog_scale = [2.5]\nby = ["colours/FH@3"]'
    assert call(home, change=(grid, larger)) == 2
    assert "runs have no such measure; they have colours/FH@1" in capsys.readouterr().err
    # Where nothing is chosen, runs that are kept are not shown as if they had it.
    assert call(home, change=("colours/FH@1", "colours/FH@3")) == 2
    assert "runs have no such measure" in capsys.readouterr().err


MISTAKES = {
    "key": ("train.epochs = 0.8", "train.epoch = 0.8", "did you mean train.epochs"),
    "value": ("train.epochs = 0.8", "train.epochs = -1", "train.epochs"),
    "measure": ("colours/FH@1", "colour/FH@1", "has no 'colour'; it has colours"),
    "closed form": ("infonce = {}", "infonce = {}\nridge = {}", "a closed form for kept features"),
    "weights": (
        "train.epochs = 0.8",
        'teacher.checkpoint = "runs/teacher"',
        'Write weights = "student"',
    ),
    "seed": ("train.epochs = 0.8", "seed = [1, 2]", "seed is what the study sets"),
    "rate": ("infonce = {}", "infonce.train.optim.learning_rate = 0.1", "what the study sets"),
    "none": ("train.epochs = 0.8", "train.epochs = []", "a value, or a list of them"),
    "list": ("train.epochs = 0.8", 'data.tars = [["a.tar"]]', "a text, a number"),
    "section": ("[choose]", "[data]\n[choose]", "there is no key 'data'"),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_a_mistake_is_said_before_anything_is_trained(home, kind, capsys, tmp_path):
    old, new, words = MISTAKES[kind]
    assert call(home, "--out", str(tmp_path / "other"), change=(old, new)) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "other" / "runs").exists()


def test_there_are_no_features_to_write(home, capsys):
    assert call(home, "--prepare", "x.npz") == 2
    assert "no features to keep" in capsys.readouterr().err
