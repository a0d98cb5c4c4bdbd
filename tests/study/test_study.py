"""The command: two methods, two seeds, cell by cell, and what stands in its table."""

import csv
import dataclasses
import fcntl
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import studies

from otter_jax.commands import study as command
from otter_jax.study import cells as cells_of
from otter_jax.study import reading
from otter_jax.study.features import Features
from otter_jax.study.running import Runner


def call(path, features, out, *flags):
    return command.main([str(path), "--features", str(features), "--out", str(out), *flags])


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The folder of a finished study: study.toml, features.npz, out."""
    home = tmp_path_factory.mktemp("study")
    path, features = studies.make(home)
    assert call(path, features, home / "out") == 0
    return home


@pytest.fixture
def copied(done, tmp_path):
    shutil.copytree(done, tmp_path / "study")
    return tmp_path / "study"


def again(home, *flags):
    return call(home / "study.toml", home / "features.npz", home / "out", *flags)


def cells(home):
    return {
        path.relative_to(home): json.loads(path.read_text())
        for path in (home / "out" / "cells").rglob("*.json")
    }


def scores(home):
    """What was measured, without how long it took."""
    return {
        path: [(run["seed"], run["scores"]) for run in cell["seeds"]]
        for path, cell in cells(home).items()
    }


def test_a_study_has_a_cell_for_each_value_and_a_main_one_with_the_best(done):
    found = cells(done)
    assert len(found) == 2 * 2 * (2 + 1)  # settings, methods, two rates and the main runs
    for setting in ("mine_noise0_share1_batch8", "mine_noise0.5_share1_batch8"):
        for method in ("infonce", "otter"):
            own = {p.name: c for p, c in found.items() if p.parts[2:4] == (setting, method)}
            tried = {name: c for name, c in own.items() if name.startswith("choose")}
            (main,) = (c for name, c in own.items() if name.startswith("main"))
            ((_, best),) = (
                max(
                    ((validated(c), c["definition"]["values"]) for c in tried.values()),
                    key=lambda pair: pair[0],
                ),
            )
            assert main["definition"]["values"] == best
            assert [run["seed"] for run in main["seeds"]] == [0, 1]
            steps = 96 // 8 if method == "infonce" else 80 // 8
            assert all(run["steps"][-1] == steps for run in main["seeds"])
            assert {run["seed"] for c in tried.values() for run in c["seeds"]} == {1000}


def table(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def validated(cell):
    measures = ("val/name@5", "val/name@10")
    return np.mean([run["scores"]["ema"][m] for run in cell["seeds"] for m in measures])


def test_heads_learn_what_the_features_say(done):
    rows = table(done / "out" / "table.csv")
    clean = [r for r in rows if r["measure"] == "unseen/name@5" and float(r["noise"]) == 0]
    baselines = json.loads((done / "out" / "baselines.json").read_text())
    assert all(float(row["mean"]) > baselines["chance"]["unseen/name@5"] for row in clean)
    assert baselines["chance"]["unseen/name@5"] == pytest.approx(5 / 12)
    assert baselines["frequency"]["unseen/name@5"] == 1  # there are two things
    by_seed = table(done / "out" / "runs.csv")
    own = [
        float(r["unseen/name@5"])
        for r in by_seed
        if (r["setting"], r["method"], r["weights"])
        == ("mine_noise0_share1_batch8", "otter", "ema")
    ]
    (row,) = (r for r in clean if r["method"] == "otter")
    assert float(row["mean"]) == pytest.approx(np.mean(own), abs=1e-5)
    assert "| otter |" in (done / "out" / "table.md").read_text()
    assert len(list((done / "out").glob("noise_*.png"))) == 1


def test_the_same_command_goes_on_where_it_was_killed(copied, capsys):
    before = scores(copied)
    gone = [path for path in before if "main" in path.name][:1]
    gone += [path for path in before if "choose" in path.name and "otter" in path.parts][:1]
    for path in gone:
        (copied / path).unlink()
    assert again(copied) == 0
    assert scores(copied) == before
    assert "2 runs took" not in capsys.readouterr().out
    assert again(copied) == 0
    assert "0 runs took" in capsys.readouterr().out


def test_each_run_is_kept_once_it_is_made(copied, capsys):
    path = next((copied / "out").rglob("main_*.json"))
    cell = json.loads(path.read_text())
    first, second = cell["seeds"]
    first["seconds"] = 12345.0  # so that a run made anew is another
    path.write_text(json.dumps(cell | {"seeds": [first]}))
    assert again(copied, "--dry") == 0
    assert "; 1 runs are left" in capsys.readouterr().out
    assert again(copied) == 0
    out = capsys.readouterr().out
    assert "; 1 of their runs are made" in out
    assert "1 runs took" in out
    one, other = json.loads(path.read_text())["seeds"]
    assert one == first
    assert other["scores"] == second["scores"]


def test_more_seeds_are_more_runs_and_fewer_lose_none(copied, capsys):
    path, before = copied / "study.toml", scores(copied)
    path.write_text(path.read_text().replace("seeds = 2", "seeds = 3"))
    assert again(copied) == 0
    assert "4 runs took" in capsys.readouterr().out  # one of each line
    after = scores(copied)
    assert {p: runs[:2] for p, runs in after.items()} == before
    path.write_text(path.read_text().replace("seeds = 3", "seeds = 2"))
    assert again(copied) == 0
    assert "0 runs took" in capsys.readouterr().out
    assert scores(copied) == after
    assert {row["seed"] for row in table(copied / "out" / "runs.csv")} == {"0", "1"}


def test_a_stop_is_heard_within_a_run(done, tmp_path):
    text = studies.FILE.replace("pairs = 96", "pairs = 8_000_000")  # minutes, were it not stopped
    path, features = studies.make(tmp_path, text)
    flags = ("--features", features, "--out", tmp_path / "out")
    words = [sys.executable, "-m", "otter_jax", "study", path, *flags]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        lines = iter(process.stdout.readline, "")
        assert any("Cells to choose from" in line for line in lines)
        process.terminate()
        told = process.stdout.read()
        assert process.wait(timeout=30) == 75
    assert "the same command goes on" in told


def test_parts_together_are_the_whole(done, tmp_path):
    path, features = studies.make(tmp_path)
    for part in ("2/2", "1/2"):
        assert call(path, features, tmp_path / "out", "--only", part, "--together", "3") == 0
    assert scores(tmp_path) == scores(done)


def test_other_definitions_of_finished_cells_are_refused(copied, capsys):
    path = copied / "study.toml"
    path.write_text(
        path.read_text().replace("otter.choose", "otter.objective.alpha = 0.7\notter.choose")
    )
    assert again(copied) == 2
    error = capsys.readouterr().err
    assert "objective.alpha: 0.5 -> 0.7" in error
    assert "Give the method another name" in error
    assert "Those of 5 others have changed, too." in error


def test_another_study_in_the_same_folder_is_refused(copied, capsys):
    path, features = studies.make(
        copied, studies.FILE.replace("image_size = 32", "image_size = 48")
    )
    assert call(path, features, copied / "out") == 2
    assert "data.image_size: 32 -> 48" in capsys.readouterr().err


def test_features_of_something_else_are_refused(copied, capsys):
    path = copied / "study.toml"
    path.write_text(path.read_text().replace("max_tokens = 8", "max_tokens = 9"))
    assert again(copied) == 2
    assert "data.max_tokens: 8 -> 9" in capsys.readouterr().err


def test_a_study_that_is_being_run_is_not_begun_again(copied, capsys):
    for flags, other in CONFLICTS:
        with (copied / "out" / f".lock {other}").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            assert again(copied, *flags) == 2
        assert f"({other}) is being run by another process" in capsys.readouterr().err
    with (copied / "out" / ".lock part 1 of 2").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert again(copied, "--only", "2/2") == 0
    with (copied / "out" / ".lock whole").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_SH)  # as another part does, to see that nobody runs the whole
        assert again(copied, "--only", "2/2") == 0


CONFLICTS = (  # what is begun, and what is being run
    ((), "whole"),
    ((), "part 1 of 2"),
    (("--only", "1/2"), "whole"),
    (("--only", "1/2"), "part 1 of 2"),
    (("--only", "1/2"), "part 2 of 3"),
)
ONE = {"seed": 0, "scores": {"ema": {"val/name@5": 0.1}, "student": {}}, "seconds": 1.0}
RUNS = (  # of a cell's file, none as they should be
    [ONE, ONE],
    [{"seed": 0}],
    [ONE | {"seed": "0"}],
    [ONE | {"scores": {"ema": {"val/name@5": "a"}}}],
    [ONE | {"scores": None}],
    [{name: value for name, value in ONE.items() if name != "seconds"}],
)
DAMAGED = ("{", "[]", '{"definition": {"objective": {}}}', *map(json.dumps, RUNS))


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_cell_is_named(copied, content, capsys):
    path = next((copied / "out").rglob("main_*.json"))
    if content.startswith("[{"):
        content = path.read_text().partition('"seeds": [{')[0] + f'"seeds": {content}}}'
    path.write_text(content)
    assert again(copied) == 2
    assert f"{path} is damaged" in " ".join(capsys.readouterr().err.split())


def test_a_cell_that_cannot_be_read_is_not_called_damaged(copied, capsys):
    path = next((copied / "out").rglob("main_*.json"))
    path.unlink()
    path.mkdir()
    assert again(copied) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert f"{path} cannot be read: Is a directory" in told
    assert "Remove" not in told


def test_the_folder_of_a_study_is_no_file(done, capsys):
    assert again(done, "--out", str(done / "study.toml")) == 2
    assert "it is a file" in capsys.readouterr().err


def test_a_part_without_lines_is_no_mistake(done, capsys):
    assert again(done, "--only", "2/9") == 0
    assert "Part 2 of 9 is empty: there are 4 lines" in capsys.readouterr().out


def test_damaged_features_are_said_in_one_sentence(copied, capsys):
    file = copied / "features.npz"
    file.write_bytes(file.read_bytes()[:500])
    assert again(copied) == 2
    assert "--prepare" in capsys.readouterr().err


def test_a_cell_that_diverges_is_recorded_and_the_study_goes_on(tmp_path, capsys):
    text = studies.FILE.replace("noise = [0.0, 0.5]", "noise = 0.0")
    text = text.replace("otter.choose.epsilon = [0.15]", "otter.choose.learning_rate = [1e38]")
    path, features = studies.make(tmp_path, text)
    assert call(path, features, tmp_path / "out") == 0
    found = {p: c for p, c in cells(tmp_path).items() if "otter" in p.parts and "main" in p.name}
    ((_, cell),) = found.items()
    assert all(1 < run["diverged_at"] <= 12 for run in cell["seeds"])
    assert all(run["scores"]["ema"] == {} for run in cell["seeds"])
    (line,) = {
        line for line in (tmp_path / "out" / "table.md").read_text().splitlines()
        if line.startswith("| otter | diverged")
    }  # fmt: skip
    assert "0." not in line


def test_a_dry_run_counts_and_writes_nothing(done, tmp_path, capsys):
    out = tmp_path / "out"
    assert call(done / "study.toml", done / "features.npz", out, "--dry") == 0
    printed = capsys.readouterr().out
    for pairs in (80, 96):
        assert f"batch 8, {pairs} pairs a run: 2 lines; 4 cells of 1 runs to choose" in printed
    assert printed.count("8 runs are left") == 2
    assert not out.exists()
    assert again(done, "--dry") == 0
    assert "0 runs are left" in capsys.readouterr().out


def seen_in_views(done, count):
    """A study of two sets, a runner on it, and one on numbered views: their pair and view."""
    study = reading.read(done / "study.toml")
    data = dataclasses.replace(
        study.data, train={"mine": (), "more": ()}, mixed={"both": ("more", "mine")}
    )
    ridge = dataclasses.replace(study.methods["otter"], base="ridge", choose={"strength": (0.1,)})
    study = dataclasses.replace(study, data=data, methods=study.methods | {"ridge": ridge})
    features = Features.load(done / "features.npz")
    parts = features.parts | {"more": studies.drawn(20, 4, range(12))}
    plain = dataclasses.replace(features, parts=parts)
    start = 0
    for name in data.train:
        own = parts[name]
        views = np.stack([np.full_like(own.images, view) for view in range(count)])
        views[..., 0] = start + np.arange(len(own))
        start += len(own)
        parts = parts | {name: dataclasses.replace(own, views=views)}
    return study, Runner(study, plain), Runner(study, dataclasses.replace(features, parts=parts))


def test_an_epoch_sees_one_view_of_each_picture(done):
    count, length = 3, 600
    study, plain, runner = seen_in_views(done, count)
    setting = dataclasses.replace(study.settings[1], set="both", share=0.9)
    rows, *others = runner.seen(setting, length, seed=0)
    pairs, *plain_others = plain.seen(setting, length, seed=0)
    assert pairs.max() > 48  # of the second set
    for own, theirs in zip(others, plain_others, strict=True):
        np.testing.assert_array_equal(own, theirs)
    views = np.concatenate([runner._features.parts[n].views for n in study.data.train], axis=1)
    found = views.reshape(-1, views.shape[-1])[rows.ravel()]
    np.testing.assert_array_equal(found[:, 0], pairs.ravel())
    epochs = np.arange(length) // len(np.unique(pairs))
    assert epochs.max() > count
    np.testing.assert_array_equal(found[:, 1], epochs % count)


def test_closed_forms_see_the_middle_of_pictures(done):
    study, plain, runner = seen_in_views(done, 2)
    (cell,) = cells_of.grid(study, dataclasses.replace(study.settings[0], set="both"), "ridge")
    ((_, own),), ((_, theirs),) = (list(each([(cell, 3)])) for each in (runner, plain))
    assert own["scores"] == theirs["scores"]


def test_of_one_combination_of_values_nothing_is_chosen(tmp_path, capsys):
    path, features = studies.make(tmp_path, studies.FILE.replace("[1e-2, 3e-2]", "[1e-2]"))
    out = tmp_path / "out"
    assert call(path, features, out, "--dry") == 0
    assert "2 lines; 0 cells of 1 runs to choose from" in capsys.readouterr().out
    assert call(path, features, out) == 0
    assert {cell.name.split("_")[0] for cell in (out / "cells").rglob("*.json")} == {"main"}
    assert table(out / "chosen.csv") == []
    assert "Values were chosen" not in (out / "table.md").read_text()


def test_features_are_written_and_read_back(done, tmp_path):
    before = Features.load(done / "features.npz")
    before.save(tmp_path / "again.npz")
    after = Features.load(tmp_path / "again.npz")
    assert after.about == before.about
    assert after.parts["mine"].labels == before.parts["mine"].labels
    np.testing.assert_array_equal(after.parts["mine"].images, before.parts["mine"].images)


ALONE = """
import sys
sys.modules |= dict.fromkeys(
    ("grain", "tensorflow_datasets", "ml_collections", "transformers", "tokenizers", "safetensors")
)
from otter_jax.commands import study
sys.exit(study.main(sys.argv[1:]))
"""


def test_kept_features_need_no_reader_of_pictures_weights_or_configs(done):
    flags = ("--features", done / "features.npz", "--out", done / "out")
    words = [sys.executable, "-c", ALONE, done / "study.toml", *flags]
    found = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
    assert "0 runs took" in found.stdout, found.stderr


def test_at_least_one_run_is_made_at_a_time(done, capsys):
    assert again(done, "--together", "0") == 2
    assert "at least 1 run" in capsys.readouterr().err


@pytest.mark.parametrize("part", ["0/2", "3/2", "half"])
def test_parts_are_numbers(done, part, capsys):
    assert again(done, "--only", part) == 2
    assert "K from 1 to N" in capsys.readouterr().err
