"""From tars and encoders to features, computed once."""

import json
from unittest import mock

import numpy as np
import pytest
import world

from otter_jax.commands import study as command
from otter_jax.data.source import open_dataset
from otter_jax.study import frozen
from otter_jax.study.features import Features

FILE = """
seeds = 1

[model]
dim = 6
img = {{ arch = "{arch}", weights = "", mean = [127, 127, 127], std = [128, 128, 128] }}
txt = {{ weights = "{text}", pretrained = false }}

[data]
image_size = 32
max_tokens = 8
train = {{ squares = ["squares.tar"] }}
eval = {{ again = ["squares.tar"] }}
search.colour = {{ label = "colour", names = "names.txt" }}
search.found = {{ label = "colour", least = 10 }}
held_out = {{ search = "colour", sets = ["squares"], count = 1 }}

[train]
pairs = 16
trained = "{trained}"

[choose]
seeds = 1
learning_rate = [1e-2]
log_scale = [2.0]
by = ["val/colour@1"]

[[settings]]
set = "squares"
batch = 8

[methods]
infonce = {{}}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return world.make(tmp_path_factory.mktemp("prepare"))


def call(home, *flags, arch="tiny", trained="heads", change=("", "")):
    path = home / "study.toml"
    text = FILE.format(arch=arch, text=home / "text", trained=trained)
    path.write_text(text.replace(*change))
    where = ("--data", str(home), "--data_dir", str(home / "data"))
    with world.tiny():
        return command.main([str(path), *where, *map(str, flags)])


def test_features_are_made_once_and_carry_a_study(home, capsys):
    assert call(home, "--prepare", home / "kept.npz") == 0
    found = Features.load(home / "kept.npz")
    assert found.parts["squares"].images.shape == (40, 8)
    assert found.parts["squares"].texts.shape == (40, 16)
    source = open_dataset(str(home / "data"), "squares", "train")
    colours = [[json.loads(source[i]["json"])["colour"]] for i in range(40)]
    assert found.parts["squares"].labels["colour"] == colours
    assert found.banks["colour"].names == list(world.COLOURS)
    assert found.banks["found"].names == sorted(world.COLOURS)
    # The same picture of the same set twice: the same features; another colour: others.
    first, again = found.parts["squares"].images, found.parts["again"].images
    assert sorted(map(tuple, first)) == sorted(map(tuple, again))
    assert np.ptp(first, axis=0).max() > 0

    with (
        mock.patch.object(frozen.Encoders, "images", side_effect=AssertionError),
        mock.patch.object(frozen.Encoders, "texts", side_effect=AssertionError),
    ):
        assert call(home, "--out", home / "out") == 0
    assert "1 finished lines of 1" in capsys.readouterr().out
    table = (home / "out" / "table.md").read_text()
    assert "| val | colour@1 | found@1 |" in table  # among four names there are no five best


def test_views_are_random_crops_of_what_is_trained_on(home):
    change = "max_tokens = 8", "max_tokens = 8\nresize = 40\nviews = 2\nflip = true"
    assert call(home, "--prepare", home / "views.npz", change=change) == 0
    parts = Features.load(home / "views.npz").parts
    first, second = parts["squares"].views
    assert first.shape == parts["squares"].images.shape
    assert (first != second).any()
    assert parts["again"].views is None
    with mock.patch.object(frozen.Encoders, "view", side_effect=AssertionError):
        assert call(home, "--out", home / "seen", change=change) == 0


def test_a_block_of_an_encoder_without_any_is_refused(home, capsys):
    assert call(home, "--prepare", home / "no.npz", trained="blocks_6_0") == 2
    assert "the blocks of EfficientNets can" in capsys.readouterr().err


def test_a_block_that_is_not_there_is_refused(home, capsys):
    flags = {"arch": "tf_efficientnet_lite0", "trained": "blocks_9_9"}
    assert call(home, "--prepare", home / "no.npz", **flags) == 2
    assert "has no such block; it has blocks_0_0" in capsys.readouterr().err


def test_tars_that_are_not_there_are_said_before_anything_is_computed(home, capsys):
    change = 'again = ["squares.tar"]', 'other = ["cubes.tar"]'
    assert call(home, "--prepare", home / "no.npz", change=change) == 2
    assert "cubes.tar" in capsys.readouterr().err


def test_a_place_for_the_cells_is_needed(home, capsys):
    assert call(home) == 2
    assert "--out is missing" in capsys.readouterr().err


def test_a_measure_that_nothing_has_chooses_nothing(home, capsys):
    change = "colour@1", "colour@5"
    assert call(home, "--out", home / "out5", change=change) == 2
    assert "choose.by='val/colour@5'" in capsys.readouterr().err
