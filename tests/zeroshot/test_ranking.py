"""What a set of many classes needs: the scores of a batch, and never those of all images."""

import math

import jax
import numpy as np
from jax.extend.core import jaxprs_in_params

from otter_jax.zeroshot.ranking import BEST, among, place

B, C, D, M = 256, 22_843, 16, 40


def largest(f, *arguments):
    """The elements of the largest array that a function makes, in loops and calls, too."""

    def walk(jaxpr):
        for equation in jaxpr.eqns:
            yield from (math.prod(each.aval.shape) for each in equation.outvars)
            for inner in jaxprs_in_params(equation.params):
                yield from walk(inner)

    return max(walk(jax.make_jaxpr(f)(*arguments).jaxpr))


def shape(*sizes, dtype=np.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)


def test_no_array_is_larger_than_the_scores_of_a_batch_however_many_labels_an_image_has():
    bank, images, labels = shape(C, D), shape(B, D), shape(B, M, dtype=np.int32)
    assert largest(place, bank, images, labels) == B * C
    assert largest(among, bank, images, shape(B, C, dtype=bool)) == B * C


def test_the_best_classes_are_those_with_the_largest_cosines_of_equal_ones_the_first():
    rng = np.random.default_rng(0)
    bank, images = rng.normal(size=(9, 4)).astype(np.float32), rng.normal(size=(3, 4))
    bank[7] = bank[2]
    found = jax.jit(place)(bank, images.astype(np.float32), np.zeros((3, 1), int))
    scores = (images @ bank.T).round(5)
    np.testing.assert_array_equal(found["best"], np.argsort(-scores, kind="stable")[:, :BEST])
    assert found["finite"].all()
    few = jax.jit(place)(bank[:2], images.astype(np.float32), np.zeros((3, 1), int))
    assert few["best"].shape == (3, 2)
