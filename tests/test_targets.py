"""The world in which targets are judged: its truth is what it says, and so are the measures."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import targets
from otter_jax.objective import METHODS


def test_so_many_captions_are_exchanged_among_themselves():
    world = jax.device_get(targets.make_world(jax.random.key(0), 0.25))
    wrong = (world.of_img != world.of_txt).mean()
    assert 0.23 < wrong <= 0.25  # some get a caption of their own meaning again
    np.testing.assert_array_equal(np.sort(world.of_img), np.sort(world.of_txt))
    clean = jax.device_get(targets.make_world(jax.random.key(0), 0.0))
    np.testing.assert_array_equal(clean.of_img, clean.of_txt)
    assert world.of_img.max() < targets.MEANINGS


def test_a_target_is_as_far_from_the_truth_as_it_is_wrong():
    truth = jnp.array([[1.0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]])
    right = truth / jnp.maximum(truth.sum(axis=1, keepdims=True), 1)
    assert 0 <= float(targets.divergence(truth, right)) < 0.02
    assert float(targets.divergence(truth, jnp.eye(4))) > 0.5
    # The last row has no truth; the first does not count where it has no weight.
    third = -np.log(0.99 + 0.01 / 4)
    first = (3 * targets.divergence(truth, jnp.eye(4)) - third) / 2  # as far as the second
    found = targets.divergence(truth, jnp.eye(4).at[0].set(0))
    np.testing.assert_allclose(found, (first + third) / 2, rtol=1e-5)


def test_a_loss_pulls_to_the_given_pairs_and_to_the_teacher_s_targets_as_it_weighs_them():
    taught = {"image": jnp.full((4, 4), 0.25), "text": jnp.eye(4)}
    otter = METHODS["otter"]
    whole, weights = targets.pulled_to(otter, taught)
    np.testing.assert_allclose(whole["image"], 0.5 * jnp.eye(4) + 0.125)
    np.testing.assert_allclose(whole["text"], jnp.eye(4))
    np.testing.assert_allclose(weights, 1)
    trusting = dataclasses.replace(otter, trust="softmax")
    whole, weights = targets.pulled_to(
        trusting, taught | {"trust": jnp.array([0.0, 0.2, 0.2, 0.4])}
    )
    np.testing.assert_allclose(weights, [0, 1, 1, 2], rtol=1e-6)
    np.testing.assert_allclose(jnp.diag(whole["image"]), 0.125 + 0.5 * weights, rtol=1e-6)


def test_trust_is_judged_by_the_wrong_pairs_that_it_finds():
    right = jnp.array([1.0, 1, 1, 0, 0])
    found = targets.trusted(jnp.array([1.0, 1, 0.4, 0.3, 0.6]), jnp.array([9, 8, 3, 2, 5]), right)
    assert {name: round(float(value), 6) for name, value in found.items()} == {
        "precision": 0.5,  # of two that are not believed one is wrong
        "recall": 0.5,  # of two that are wrong one is not believed
        "auc": round(5 / 6, 6),
    }
