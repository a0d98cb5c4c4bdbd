"""Labelled splits: what cannot be trained or validated on is told before anything is compiled."""

import numpy as np
import pytest
import tensorflow_datasets as tfds
from pictures import noise

from otter_jax.configs import transfer
from otter_jax.data.ensure import ensure
from otter_jax.data.source import Source, in_both
from otter_jax.errors import UserError
from otter_jax.transfer import labelled


def opened(monkeypatch, feature, values):
    """A validation split with these labels."""
    features = tfds.features.FeaturesDict({"label": feature, "key": tfds.features.Text()})
    records = [{"label": np.asarray(v), "key": b"%d.png" % i} for i, v in enumerate(values)]
    source = Source("birds:validation", records, features)
    monkeypatch.setattr(labelled, "open_dataset", lambda *_, **__: source)
    return labelled.Labelled.open(transfer.get_config(), "validation")


def test_the_labels_and_names_of_a_split(monkeypatch):
    found = opened(monkeypatch, tfds.features.ClassLabel(names=["tit", "wren"]), [1, 0, 1])
    assert found.labels.tolist() == [1, 0, 1]
    assert found.names == ("tit", "wren")


def test_records_without_a_label_are_counted_and_named(monkeypatch):
    with pytest.raises(UserError, match=r"2 records of birds:validation have no label, .* 1\.png"):
        opened(monkeypatch, tfds.features.ClassLabel(names=["tit", "wren"]), [1, -1, 0, -1])


def test_several_labels_a_picture_are_refused(monkeypatch):
    several = tfds.features.Sequence(tfds.features.ClassLabel(names=["tit", "wren"]))
    with pytest.raises(UserError, match="'label' of birds:validation holds several classes"):
        opened(monkeypatch, several, [[0], [0, 1]])


@pytest.mark.parametrize(
    ("split", "other", "both"),
    [
        ("train", "validation", 0),
        ("train", "train", 6),
        ("train[:50%]", "train[50%:]", 0),
        ("train[:4]", "train[3:]", 1),
        ("train+validation", "validation", 4),
    ],
)
def test_records_in_both_splits_are_counted(tmp_path_factory, split, other, both):
    home = tmp_path_factory.getbasetemp() / "overlap"
    if not home.exists():
        paths = [f"train/{c}/{i}.jpg" for c in ("cat", "dog") for i in range(3)]
        paths += [f"validation/{c}/{i}.jpg" for c in ("cat", "dog") for i in range(2)]
        for number, path in enumerate(paths):
            file = home / "tree" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(noise(number))
        ensure("mine", str(home), folder=str(home / "tree"))
    assert in_both(str(home), "mine", split, other) == both


def test_copies_of_training_pictures_among_those_to_validate_on_are_told(tmp_path, capsys):
    numbers = {"train": range(4), "validation": (0, 1, 2, 9)}  # 3 of 4 are copies
    for split, of in numbers.items():
        for place, number in enumerate(of):
            file = tmp_path / "tree" / split / ("cat", "dog")[place % 2] / f"{split}{number}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(noise(number))
    config = transfer.get_config()
    config.data.name, config.data.dir = "copies", str(tmp_path / "sets")
    config.data.folder = str(tmp_path / "tree")
    labelled.open_splits(config)
    assert "3 of the 4 pictures of data.validation='validation' are copies" in (
        capsys.readouterr().out
    )
