"""ResNets and their batch normalisation are PyTorch's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from convnets import assert_timms_features, assert_timms_names, assert_timms_training
from flax import linen as nn
from golden.recipe import recipe_images, recipe_variables
from golden.small_convnets import PIXELS
from golden.small_convnets import RESNET as SMALL

from otter_jax.models.norm import BatchNorm
from otter_jax.models.resnet import RESNETS, ResNet

LAST_NORM = {
    "resnet18": ("layer4_1", "bn2"),
    "resnet26": ("layer4_1", "bn3"),
    "resnet34": ("layer4_2", "bn2"),
    "resnet50": ("layer4_2", "bn3"),
    "resnet101": ("layer4_2", "bn3"),
}


@pytest.mark.parametrize("arch", LAST_NORM)
def test_outputs_and_statistics_are_those_of_timm(arch, golden):
    expected = golden("arch_resnet.npz")
    images = recipe_images(4, 64)
    model = ResNet(**RESNETS[arch], num_classes=64)
    variables = recipe_variables(model, images[:1])

    # Without jit: the networks share most of their operations, and compiling is what takes time.
    features = model.clone(num_classes=None).apply(variables, images, train=False)
    train_logits, updates = model.apply(variables, images, train=True, mutable="batch_stats")
    fc, stats = variables["params"]["fc"], updates["batch_stats"]
    block, norm = LAST_NORM[arch]
    last = f"{block.replace('_', '.')}.{norm}"
    for key, actual in {
        "features_eval_mean": features,
        "eval": features @ fc["kernel"] + fc["bias"],
        "train": train_logits,
        "after_train|bn1.running_mean": stats["bn1"]["mean"],
        "after_train|bn1.running_var": stats["bn1"]["var"],
        f"after_train|{last}.running_var": stats[block][norm]["var"],
    }.items():
        value = expected[f"{arch}_64_{key}"]
        # Over 101 layers that normalise as few as 16 values each, float32 itself is 2e-4 apart.
        limit = 5e-4 if arch == "resnet101" else 1e-4
        atol = limit * np.abs(value).max()
        np.testing.assert_allclose(actual, value, rtol=limit, atol=atol, err_msg=key)


@pytest.mark.parametrize("arch", RESNETS)
def test_names_and_shapes_are_timms(arch, golden):
    assert_timms_names(arch, golden("convnets.npz"))


@pytest.mark.parametrize("arch", ["resnet18d", "resnet50d", "resnet152"])
def test_features_are_timms(arch, golden):
    assert_timms_features(arch, golden("convnets.npz"), jit=False)


def test_a_small_one_with_a_deep_stem_trains_as_timms_does(golden):
    assert_timms_training("resnetd", ResNet(**SMALL), PIXELS, golden("convnets.npz"))


def test_half_precision_gives_float32_features_near_the_exact_ones():
    images = recipe_images(2, 32)
    exact = ResNet(stage_sizes=(1, 1), block="bottleneck", channels=(8, 16))
    variables = recipe_variables(exact, images)
    half, expected = (
        model.apply(variables, images, train=False)
        for model in (exact.clone(dtype=jnp.bfloat16), exact)
    )
    assert half.dtype == jnp.float32
    assert half.shape == (2, exact.width) == (2, 64)
    np.testing.assert_allclose(half, expected, atol=0.03 * np.abs(expected).max())


def normalise(x, **overrides):
    norm = BatchNorm()
    variables = norm.init(jax.random.key(0), x, use_running_average=False)
    options = {"use_running_average": False, **overrides}
    return norm.apply(variables, x, **options, mutable="batch_stats")


def test_normalisation_takes_the_biased_variance_and_the_running_one_the_unbiased():
    x = np.random.default_rng(0).normal(3, 2, (2, 3, 1, 5))
    y, updates = normalise(jnp.asarray(x, jnp.float32))
    axes = (0, 1, 2)
    exact = (x - x.mean(axes)) / np.sqrt(x.var(axes) + 1e-5)
    np.testing.assert_allclose(y, exact, atol=1e-5)
    stats = updates["batch_stats"]
    np.testing.assert_allclose(stats["mean"], 0.1 * x.mean(axes), rtol=1e-5)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * x.var(axes, ddof=1), rtol=1e-5)


def test_running_statistics_stay_when_they_are_used():
    x = jnp.full((4, 3), 7.0)
    y, updates = normalise(x, use_running_average=True)
    np.testing.assert_allclose(y, x / np.sqrt(1 + 1e-5), rtol=1e-6)
    np.testing.assert_array_equal(updates["batch_stats"]["mean"], 0)


def test_a_known_large_mean_does_not_drown_a_small_variance():
    x = 1000 + 0.1 * jax.random.normal(jax.random.key(0), (4096, 2))
    statistics = {"mean": jnp.full(2, 1000.0), "var": jnp.ones(2)}
    variables = {
        "params": {"scale": jnp.ones(2), "bias": jnp.zeros(2)},
        "batch_stats": statistics,
    }
    y, _ = BatchNorm().apply(variables, x, use_running_average=False, mutable="batch_stats")
    np.testing.assert_allclose(y.std(0), 1, rtol=2e-3)


def test_a_caller_can_hold_the_statistics_of_a_whole_network_fixed():
    def hold(call, args, kwargs, context):
        if isinstance(context.module, BatchNorm):
            kwargs["use_running_average"] = True
        return call(*args, **kwargs)

    images = recipe_images(2, 32)
    model = ResNet(stage_sizes=(1,), block="basic", channels=(8,))
    variables = recipe_variables(model, images)
    with nn.intercept_methods(hold):
        held, updates = model.apply(variables, images, train=True, mutable="batch_stats")
    np.testing.assert_array_equal(held, model.apply(variables, images, train=False))
    jax.tree.map(np.testing.assert_array_equal, updates["batch_stats"], variables["batch_stats"])
