"""The nearest vectors are those that sorting all cosines gives, however they come in blocks."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from otter_jax.predict import neighbours
from otter_jax.predict.neighbours import nearest


def unit(rng, *shape):
    x = rng.standard_normal(shape).astype(np.float32)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 700), max_size=6), st.integers(1, 12), st.integers(0, 99))
def test_any_blocks_give_what_sorting_gives(sizes, top, seed):
    rng = np.random.default_rng(seed)
    vectors = unit(rng, sum(sizes), 4)
    vectors[rng.random(len(vectors)) < 0.3] = np.eye(4)[0]  # many that are equal
    queries = unit(rng, 3, 4)
    ends = np.cumsum(sizes)[:-1] if sizes else []
    found = nearest(queries, np.split(vectors, ends), top)
    cosines = queries @ vectors.T
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :top]
    count = order.shape[1]
    assert (found.rows[:, count:] == -1).all()
    best = np.take_along_axis(cosines, order, axis=1)
    np.testing.assert_allclose(found.cosines[:, :count], best, atol=1e-6)
    own = np.take_along_axis(cosines, found.rows[:, :count], axis=1)
    np.testing.assert_allclose(own, best, atol=1e-6)
    assert all(len(set(row)) == count for row in found.rows[:, :count])


def test_of_equal_vectors_the_first_comes_first():
    block = np.tile(np.eye(3, dtype=np.float32)[:1], (9_000, 1))
    found = nearest(block[:1], [block, block], 5)
    np.testing.assert_array_equal(found.rows, [[0, 1, 2, 3, 4]])


def test_more_queries_than_are_held_at_once_get_the_same(monkeypatch):
    rng = np.random.default_rng(0)
    vectors, queries = unit(rng, 3_000, 8), unit(rng, 11, 8)
    whole = nearest(queries, [vectors], 7)
    monkeypatch.setattr(neighbours, "AT_ONCE", 3)
    monkeypatch.setattr(neighbours, "HELD", 1500)
    np.testing.assert_array_equal(nearest(queries, [vectors], 7).rows, whole.rows)


def test_what_is_no_number_is_nobodys_neighbour():
    vectors = unit(np.random.default_rng(0), 20, 4)
    vectors[3] = np.nan
    rows = nearest(np.full((1, 4), 0.5, np.float32), [vectors], 20).rows[0]
    assert 3 not in rows
    assert rows[-1] == -1
