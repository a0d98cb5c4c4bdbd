"""MobileNetV3 and FBNetV3 are timm's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from convnets import (
    assert_timms_features,
    assert_timms_names,
    assert_timms_training,
    drawn,
)
from golden.recipe import recipe_images
from golden.small_convnets import MOBILENETS as SMALL
from golden.small_convnets import PIXELS
from gradients import near

from otter_jax.models.mobilenet import MOBILENETS, MobileNet


@pytest.fixture(scope="module")
def expected(golden):
    return golden("convnets.npz")


@pytest.mark.parametrize("arch", MOBILENETS)
def test_names_and_shapes_are_timms(arch, expected):
    assert_timms_names(arch, expected)


@pytest.mark.parametrize("arch", MOBILENETS)
def test_features_are_timms(arch, expected):
    assert_timms_features(arch, expected)


@pytest.mark.parametrize("key", SMALL)
def test_a_small_one_trains_as_timms_does(key, expected):
    assert_timms_training(key, MobileNet(**SMALL[key]), PIXELS, expected)


def test_in_float64_features_are_timms_to_the_last_digit_of_float32(expected):
    model, images = MobileNet(**SMALL["mobilenetv3"]), recipe_images(4, PIXELS)
    variables = drawn(model, images, expected["mobilenetv3|scales"])
    with jax.enable_x64(True):
        variables, images = jax.tree.map(
            lambda x: jnp.asarray(np.asarray(x), jnp.float64), (variables, images)
        )
        features = model.clone(dtype=jnp.float64).apply(variables, images, train=False)
        near(features, expected["mobilenetv3|features"], 2e-7)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_features_come_in_float32_or_better(dtype):
    with jax.enable_x64(dtype == jnp.float64):
        model = MobileNet(**SMALL["mobilenetv3"], dtype=dtype)
        images = jnp.zeros((2, 32, 32, 3), dtype)
        features = jax.eval_shape(
            lambda: model.init_with_output(jax.random.key(0), images, train=True)[0]
        )
    assert features.shape == (2, model.width)
    assert features.dtype == jnp.promote_types(dtype, jnp.float32)
