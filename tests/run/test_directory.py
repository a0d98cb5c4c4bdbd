"""A run's directory: which starts go on with it, and what becomes of damaged files."""

import io
import json
import os
import pathlib

import pytest
import rich.console

from otter_jax.configs import common
from otter_jax.configs import transfer as transfer_configs
from otter_jax.errors import UserError
from otter_jax.run import directory, lock


def config(**changes):
    made = common.get_config("otter")
    made.update_from_flattened_dict(changes)
    return made


@pytest.fixture
def workdir(tmp_path):
    directory.describe(tmp_path, json.loads(config().to_json()))
    (tmp_path / "checkpoints" / "40").mkdir(parents=True)
    return tmp_path


def checked(workdir, made, *, anyway=False):
    file = io.StringIO()
    console = rich.console.Console(file=file, width=200)
    directory.check_run(workdir, made, anyway=anyway, console=console)
    return file.getvalue()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.epochs", 20.0),
        ("optim.learning_rate", 0.1),
        ("optim.clip_norm", 1.0),
        ("eval.every", 5),
        ("checkpoint.every", 5),
        ("model.dtype", "bfloat16"),
        ("data.dir", "/sets"),
        ("data.num_workers", 2),
    ],
)
def test_what_may_change_is_said(workdir, key, value):
    assert f"Changed since the last start: {key}: " in checked(workdir, config(**{key: value}))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("method", "kd"),
        ("objective.alpha", 0.1),
        ("model.dim", 12),
        ("model.img.arch", "resnet18"),
        ("data.name", "mine"),
        ("data.split", "train[:95%]"),
        ("data.image_size", 128),
        ("gates.shape", "filter"),
        ("optim.name", "adamw"),
        ("optim.freeze", "txt/"),
        ("teacher.ema_decay", 0.9),
        ("seed", 1),
    ],
)
def test_another_run_is_refused_unless_told(workdir, key, value):
    other = config(**{key: value})
    was = config()[key.split(".")[0]] if "." not in key else ""
    words = (
        f"is another one: {key}: .*another --workdir, or go on as before by --config.{key}={was}"
    )
    with pytest.raises(UserError, match=f"{words}.*; or --anyway"):
        checked(workdir, other)
    assert f"Changed since the last start: {key}: " in checked(workdir, other, anyway=True)


@pytest.mark.parametrize("anyway", [False, True])
def test_steps_are_counted_in_batches_so_their_size_stays(workdir, anyway):
    with pytest.raises(UserError, match="has batches of 512, and train.batch_size is 256 here"):
        checked(workdir, config(**{"train.batch_size": 256}), anyway=anyway)


def test_a_run_of_another_command_is_not_compared_key_by_key(workdir):
    with pytest.raises(UserError, match="is a run of train, and this is transfer") as caught:
        checked(workdir, transfer_configs.get_config(), anyway=True)
    assert "alpha" not in str(caught.value)


def test_a_run_without_a_checkpoint_may_become_any_other(tmp_path):
    directory.describe(tmp_path, json.loads(config().to_json()))
    assert checked(tmp_path, config(method="kd")) == ""
    assert checked(tmp_path / "new", config(method="kd")) == ""


def test_keys_of_other_versions_are_not_compared(workdir):
    saved = json.loads((workdir / "config.json").read_text())
    del saved["data"]["packed"]
    saved["data"]["gone"] = 1
    (workdir / "config.json").write_text(json.dumps(saved))
    assert checked(workdir, config()) == ""


@pytest.mark.parametrize("content", [b"", b'{"seed": ', b"[]", b"\xff\xfe"])
def test_a_damaged_config_is_named_and_a_new_start_needs_none(workdir, content):
    (workdir / "config.json").write_bytes(content)
    with pytest.raises(UserError, match="config.json is damaged.*restore it, or give the config"):
        directory.read_config(workdir)
    assert "was not compared" in checked(workdir, config())


@pytest.mark.parametrize("content", [b"", b"[{", b"7", b"\xff\xfe"])
def test_a_damaged_history_is_set_aside(workdir, content):
    (workdir / "run.json").write_bytes(content)
    directory.describe(workdir, {"seed": 0})
    assert len(json.loads((workdir / "run.json").read_text())) == 1
    assert (workdir / "run.json.damaged").read_bytes() == content


def test_a_new_folder_appears_whole_with_the_umasks_permissions(tmp_path):
    out = tmp_path / "out"
    (tmp_path / "out.tmp").mkdir()  # of the user
    with directory.new_folder(out) as folder:
        (folder / "image").mkdir()
        (folder / "image" / "private").touch(mode=0o600)
        assert not out.exists()
    before = os.umask(0o027)
    os.umask(before)
    assert (out / "image" / "private").stat().st_mode & 0o777 == 0o666 & ~before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.tmp"]


def test_a_new_folder_takes_the_place_of_nothing(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "theirs").touch()
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    for out in ("../out", "../file", ".", "../file/out"):
        with (
            pytest.raises(UserError, match="is there already|cannot be written"),
            directory.new_folder(pathlib.Path(out)),
        ):
            pass
    assert not list((tmp_path / "empty").iterdir())


def test_nothing_is_left_of_a_new_folder_that_failed(tmp_path):
    def fail(folder):
        (folder / "half").touch()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), directory.new_folder(tmp_path / "out") as folder:
        fail(folder)
    assert not list(tmp_path.iterdir())


def test_a_run_that_lives_is_not_started_again(workdir):
    with lock.held(workdir), pytest.raises(UserError, match="is being trained by process"):
        checked(workdir, config(), anyway=True)
    assert checked(workdir, config()) == ""


def test_sets_of_older_runs_have_the_keys_of_today(tmp_path):
    config = {"objective": {}, "eval": {"sets": {"birds": {"data": "birds"}}, "every": 0}}
    directory.describe(tmp_path, config)
    found = directory.config_of(tmp_path).eval
    assert found.sets.birds.to_dict() == {"data": "birds", "folder": "", "probe": ""}
    assert found.every == 0
    for damaged in ({"eval": 3}, {"eval": {"sets": ["x"]}}, {"eval": {"sets": {"birds": 3}}}):
        directory.describe(tmp_path, config | damaged)
        with pytest.raises(UserError, match="is damaged"):
            directory.config_of(tmp_path)
