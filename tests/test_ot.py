"""Entropic transport: theorems, and the released code's numbers."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from benchmarks import hlo
from otter_jax import mesh as meshes
from otter_jax import ot


@pytest.fixture
def cost():
    return jnp.asarray(np.random.RandomState(0).randn(16, 24), jnp.float32)


def test_columns_are_exact_and_rows_converge(cost):
    plan = ot.sinkhorn(cost, epsilon=0.15, num_iters=300)
    np.testing.assert_allclose(plan.sum(0), 1 / 24, rtol=1e-5)
    np.testing.assert_allclose(plan.sum(1), 1 / 16, rtol=1e-4)


def test_small_epsilon_gives_the_optimal_assignment():
    cost = np.random.RandomState(1).rand(12, 12).astype(np.float32)
    plan = ot.sinkhorn(jnp.asarray(cost), epsilon=2e-3, num_iters=3000)
    rows, columns = linear_sum_assignment(cost)
    np.testing.assert_array_equal(plan.argmax(axis=1)[rows], columns)


def test_large_epsilon_gives_no_opinion(cost):
    plan = ot.sinkhorn(cost, epsilon=1e5, num_iters=1)
    np.testing.assert_allclose(plan, 1 / (16 * 24), rtol=1e-4)


def test_a_constant_on_a_row_or_column_changes_nothing(cost):
    moved = cost + 3.0 * jnp.arange(16.0)[:, None]
    np.testing.assert_allclose(
        ot.sinkhorn(moved, epsilon=0.15, num_iters=5),
        ot.sinkhorn(cost, epsilon=0.15, num_iters=5),
        rtol=1e-4,
        atol=1e-8,
    )


@pytest.mark.parametrize("offset", [-1e3, 0.0, 1e3])
def test_no_cost_overflows(cost, offset):
    """exp(-cost / epsilon) is 0 or infinite for every entry here."""
    plan = ot.sinkhorn(100 * cost + offset, epsilon=0.01, num_iters=5)
    assert bool(jnp.isfinite(plan).all())
    np.testing.assert_allclose(plan.sum(), 1, rtol=1e-4)


def test_a_column_that_nobody_wants_is_still_filled(cost):
    plan = ot.sinkhorn(cost.at[:, 3].add(100.0), epsilon=0.15, num_iters=5)
    # Its logarithms are near 700, where float32 is 6e-5 apart.
    np.testing.assert_allclose(plan[:, 3].sum(), 1 / 24, rtol=1e-4)


def test_a_batch_of_problems_is_each_problem():
    costs = jnp.asarray(np.random.RandomState(2).randn(3, 8, 12), jnp.float32)
    together = ot.sinkhorn(costs, epsilon=0.1, num_iters=5)
    for cost, plan in zip(costs, together, strict=True):
        alone = ot.sinkhorn(cost, epsilon=0.1, num_iters=5)
        np.testing.assert_allclose(plan, alone, rtol=1e-5)


@pytest.mark.parametrize("devices", [2, 8])
def test_sharded_rows_are_the_whole(cost, devices):
    f = functools.partial(ot.sinkhorn, epsilon=0.05, num_iters=7)
    per_device = jax.shard_map(
        functools.partial(f, axis_name=meshes.AXIS),
        mesh=meshes.make_mesh(devices),
        in_specs=meshes.ROWS,
        out_specs=meshes.ROWS,
    )
    np.testing.assert_allclose(jax.jit(per_device)(cost), f(cost), rtol=2e-5, atol=1e-9)


def test_an_iteration_sums_one_vector_for_both_directions(cost):
    """2 N floats in each; besides, before the first one, the largest entry of each column."""
    per_device = jax.shard_map(
        functools.partial(ot.sinkhorn, epsilon=0.05, num_iters=7, axis_name=meshes.AXIS),
        mesh=meshes.make_mesh(8),
        in_specs=jax.P(None, meshes.AXIS),
        out_specs=jax.P(None, meshes.AXIS),
    )
    program = jax.jit(per_device).lower(jnp.stack([cost, -cost])).compile()
    vector = "all-reduce", [(2, 1, 24)], 2 * 24 * 4
    found = sorted(hlo.collectives(program.as_text()))
    assert found == [(*vector, 1), (*vector, 1), (*vector, 6)]


TAGS = ("plain_8", "rd_8", "rect_none", "b3_none")
CASES = [*itertools.product(TAGS, (0.05, 0.1, 0.15), (1, 5, 20)), ("rd_64", 0.15, 5)]


@pytest.mark.parametrize(("tag", "epsilon", "num_iters"), CASES)
def test_plans_equal_the_released_code(golden, tag, epsilon, num_iters):
    data = golden("unit_sinkhorn.npz")
    name = tag.removeprefix("plain_").removeprefix("rd_").removesuffix("_none")
    cost = data[f"cost_{name}"]
    if tag.startswith("rd"):
        cost = cost + 200 * np.eye(len(cost), dtype=np.float32)
    expected = data[f"Q_{tag}_l{epsilon:g}_i{num_iters}"]
    plan = ot.sinkhorn(jnp.asarray(cost), epsilon=epsilon, num_iters=num_iters)
    assert np.abs(plan - expected).max() <= 5e-6 * expected.max()
