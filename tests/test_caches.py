"""What is kept on disk is used again, and made anew where it is damaged."""

import os

import numpy as np
import pytest

from otter_jax import caches


def kept(path, **arrays):
    """What comes of a file, whether it was made, and what was told."""
    made, notes = [], []

    def make():
        made.append(arrays)
        return {name: np.array(values) for name, values in arrays.items()}

    found = caches.kept(path, make, notes.append)
    return {name: values.tolist() for name, values in found.items()}, bool(made), notes


def test_arrays_are_made_once(tmp_path):
    path = tmp_path / "cache/bank_1.npz"
    assert kept(path, a=[1.0], b=["é"]) == ({"a": [1.0], "b": ["é"]}, True, [])
    assert kept(path, a=[2.0]) == ({"a": [1.0], "b": ["é"]}, False, [])
    assert [each.name for each in path.parent.iterdir()] == ["bank_1.npz"]  # no scratch is left


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "text"])
def test_a_damaged_file_is_made_anew_and_said(tmp_path, damage):
    path = tmp_path / "bank_1.npz"
    kept(path, a=list(range(100)))
    content = bytearray(path.read_bytes())
    content[300] ^= 1
    some = {"cut": content[:200], "flipped": bytes(content), "empty": b"", "text": b"junk\n"}
    path.write_bytes(some[damage])
    found, made, notes = kept(path, a=[2])
    assert (found, made) == ({"a": [2]}, True)
    assert "bank_1.npz is damaged" in notes[0]
    assert "pickle" not in notes[0]
    assert "made anew" in notes[0]
    assert kept(path, a=[3]) == ({"a": [2]}, False, [])


def test_where_a_disk_refuses_it_is_made_all_the_same(tmp_path):
    (tmp_path / "file").write_text("")
    found, made, notes = kept(tmp_path / "file/bank_1.npz", a=[1])
    assert (found, made) == ({"a": [1]}, True)
    assert "cannot be written" in notes[0]


def test_the_oldest_of_many_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(caches, "KEPT", 2)
    for number in range(3):
        path = tmp_path / f"bank_{number}.npz"
        kept(path, a=[number])
        os.utime(path, (number, number))
    kept(tmp_path / "other_1.npz", a=[1])
    kept(tmp_path / "bank_3.npz", a=[3])
    assert sorted(each.name for each in tmp_path.iterdir()) == [
        "bank_2.npz",
        "bank_3.npz",
        "other_1.npz",
    ]


def test_a_model_that_is_not_ours_has_its_caches_in_the_users_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("OTTER_JAX_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "mine"))
    assert caches.beside(tmp_path) == tmp_path / "cache"
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert caches.beside(tmp_path) == tmp_path / "mine/otter_jax"
    monkeypatch.setenv("OTTER_JAX_CACHE", str(tmp_path / "other"))
    assert caches.users() == tmp_path / "other"
