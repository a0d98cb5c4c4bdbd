"""Retrieval both ways equals plain NumPy, in blocks of any size, on one device or eight."""

import functools

import jax
import numpy as np
import pytest

from otter_jax import mesh as meshes
from otter_jax.zeroshot import retrieval
from otter_jax.zeroshot.ranking import among

RNG = np.random.default_rng(0)
PICTURES = np.array([7, 7, 9, 7, 3, 9, 4, 5])  # of eight records: five pictures
LABELS = np.array([[0, 5], [1, -1], [2, -1], [0, -1], [3, -1], [4, -1], [3, -1], [6, -1]])
TEXTS = 9  # two of which belong to no picture


def unit(x):
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def recalls(images, texts, pairs, devices=1):
    mesh = meshes.make_mesh(devices)
    whole, rows = meshes.shardings(mesh)
    place = jax.jit(among, in_shardings=(whole, rows, rows), out_shardings=whole)
    blocks = functools.partial(retrieval.in_blocks, place, mesh=mesh)
    to_text = blocks(images, texts, (pairs.picture, pairs.texts[pairs.text]))
    to_image = blocks(texts[pairs.texts], images, (pairs.text, pairs.picture))
    found = retrieval.recalls(pairs, to_text, to_image, len(texts))
    return {name: measure.value for name, measure in found.items()}


def test_a_picture_has_the_texts_of_all_its_records_and_a_text_all_its_pictures():
    pairs = retrieval.pairs_of(PICTURES, LABELS)
    named = {
        p: {int(x) for x in LABELS[p == PICTURES].ravel() if x >= 0} for p in np.unique(PICTURES)
    }
    found = {}
    for picture, text in zip(pairs.picture, pairs.text, strict=True):
        found.setdefault(PICTURES[pairs.records[picture]], set()).add(int(pairs.texts[text]))
    assert found == named
    assert len(pairs.picture) == sum(map(len, named.values()))
    np.testing.assert_array_equal(PICTURES[pairs.records][pairs.of], PICTURES)


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("block", [1, 2**23])
def test_recalls_equal_plain_numpy_on_all_scores_at_once(monkeypatch, block, devices):
    monkeypatch.setattr(retrieval, "BLOCK", block)
    monkeypatch.setattr(retrieval, "KS", (1, 2, 5))
    pairs = retrieval.pairs_of(PICTURES, LABELS)
    images, texts = unit(RNG.normal(size=(5, 3))), unit(RNG.normal(size=(TEXTS, 3)))
    right = np.zeros((5, TEXTS), bool)
    right[pairs.picture, pairs.texts[pairs.text]] = True
    expected, scores = {}, images @ texts.T
    of_text = [(scores.T[t], right.T[t]) for t in np.flatnonzero(right.any(axis=0))]
    for name, queries in (("text", [*zip(scores, right, strict=True)]), ("image", of_text)):
        for k in (1, 2, 5):
            best = [own[np.argsort(-row)[:k]].any() for row, own in queries]
            expected[f"{name}@{k}"] = np.mean(best)
    assert recalls(images, texts, pairs, devices) == pytest.approx(expected)


def test_embeddings_that_tell_nothing_apart_have_chance():
    pairs = retrieval.pairs_of(PICTURES, LABELS)
    same = unit(np.ones((TEXTS, 3)))
    assert recalls(same[:5], same, pairs) == pytest.approx(retrieval.chance(pairs, TEXTS))


def test_what_exists_at_once_is_bounded_whatever_the_numbers_are():
    for queries, answers, devices in (
        (10**6, 10**6, 1),
        (5_000, 5_000, 8),
        (3, 10**6, 4),
        (3, 5, 4),
    ):
        rows = retrieval.rows_at_once(queries, answers, devices)
        assert rows % devices == 0
        assert rows * answers <= max(retrieval.BLOCK, devices * answers)
        assert rows < queries + devices
