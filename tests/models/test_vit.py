"""Vision transformers are timm's."""

import hashlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from golden.recipe import recipe_images, recipe_variables
from golden.small import VIT, VIT_CASES, VITS
from gradients import compare, near

from otter_jax.errors import UserError
from otter_jax.models import vit
from otter_jax.models.vit import ViT, resample
from otter_jax.weights import encoders, naming


def images(height, width):
    return recipe_images(2, max(height, width))[:, :height, :width]


def run(model):
    return jax.jit(partial(model.apply, train=False))


@pytest.fixture(scope="module")
def reference(golden):
    return golden("transformers.npz")


@pytest.mark.parametrize(("flavour", "size"), VIT_CASES)
def test_features_and_gradients_are_those_of_timm(flavour, size, reference):
    model = ViT(**VITS[flavour])
    x = images(*size)
    variables = recipe_variables(model, x)
    encode = partial(model.apply, image=x, train=False)
    key = f"vit_{flavour}_{size[0]}x{size[1]}"
    compare(encode, variables, naming.families(model)[0], reference, key)


@pytest.mark.parametrize("grid", [(7, 7), (14, 14), (4, 4), (3, 10)])
def test_position_embeddings_are_resampled_as_timm_does(grid, reference):
    positions = jnp.asarray(reference["resample_7x7"])
    expected = reference[f"resample_{grid[0]}x{grid[1]}"]
    np.testing.assert_allclose(resample(positions, grid), expected, atol=1e-5)


def test_a_whole_one_gives_timms_features(reference):
    model, x = ViT(**vit.VITS["vit_small_patch16_224"]), images(224, 224)
    variables = recipe_variables(model, images(32, 32))
    features = run(model)(variables, x)
    near(features, reference["vit_small_patch16_224|features"], 1e-4)


@pytest.mark.parametrize("arch", [arch for arch in vit.VITS if not arch.endswith("_mean")])
def test_weights_and_settings_are_timms(arch, reference):
    model = encoders.load_image("", arch=arch).module.clone(num_classes=1000)
    assert model.pool == "token"
    assert vit.VITS[f"{arch}_mean"] == vit.VITS[arch] | {"pool": "mean"}
    like = encoders.variable_shapes(model, jnp.zeros((1, 32, 32, 3)))
    like = jax.tree.map(lambda x: np.zeros(x.shape, bool), like)
    tensors = naming.export(like, naming.families(model)[0])
    content = repr(sorted((name, x.shape) for name, x in tensors.items()))
    digest = hashlib.sha256(content.encode()).digest()
    assert digest == reference[f"{arch}|sha256"].tobytes()
    settings = [model.heads, model.epsilon, model.activation == "quick_gelu"]
    np.testing.assert_array_equal(settings, reference[f"{arch}|settings"])


@pytest.fixture(scope="module")
def variables():
    return recipe_variables(ViT(**VIT, num_classes=5), images(32, 32))


def test_a_file_serves_both_ways_of_pooling_with_its_classifier_or_without(
    variables, tmp_path, monkeypatch
):
    path, x = tmp_path / "model.safetensors", images(32, 32)
    model = ViT(**VIT, num_classes=5)
    safetensors.numpy.save_file(naming.export(variables, naming.families(model)[0]), path)
    for pool in ("token", "mean"):
        monkeypatch.setitem(encoders.IMAGE_ENCODERS, "small", (ViT, {**VIT, "pool": pool}))
        bare = encoders.load_image(str(path), arch="small")
        assert bare.width == 64
        assert bare.module.pool == pool
        head = variables["params"]["head"]
        jax.tree.map(
            np.testing.assert_array_equal,
            bare.variables["params"] | {"head": head},
            variables["params"],
        )
    whole = encoders.load_image(str(path), arch="small", classifier=True)
    features, logits = (run(encoder.module)(encoder.variables, x) for encoder in (bare, whole))
    np.testing.assert_allclose(logits, features @ head["kernel"] + head["bias"], atol=1e-5)


def test_an_image_that_patches_do_not_divide_is_refused(variables):
    for shape in ((1, 36, 32, 3), (1, 32, 36, 3)):
        with pytest.raises(ValueError, match=r"\d+x\d+ pixels .* multiples of 8"):
            ViT(**VIT).apply(variables, jnp.zeros(shape), train=False)


def test_half_precision_gives_float32_features_near_the_exact_ones(variables):
    params = dict(variables["params"])
    for name in ("cls_token", "pos_embed"):
        params[name] = params[name] - 1  # the recipe's mean, beside which bfloat16 sees no detail
    exact, half = (
        run(ViT(**VIT, dtype=dtype))({"params": params}, images(48, 24))
        for dtype in (jnp.float32, jnp.bfloat16)
    )
    assert half.dtype == jnp.float32
    difference = np.abs(half - exact).max()
    assert 1e-5 < difference < 0.03 * np.abs(exact).max()


def test_double_precision_is_double_throughout(reference):
    model = ViT(**VIT, dtype=jnp.float64)
    with jax.enable_x64(True):
        variables = recipe_variables(model, images(32, 32))
        variables = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), variables)
        features = run(model)(variables, jnp.asarray(images(48, 24), jnp.float64))
        assert features.dtype == jnp.float64
    near(features, reference["vit_token_48x24|features"], 1e-6)


def test_an_image_encoder_of_another_kind_is_refused(variables, tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    model = ViT(**VIT)
    tensors = naming.export(variables, naming.families(model)[0])
    safetensors.numpy.save_file(tensors, path)
    monkeypatch.setitem(encoders.IMAGE_ENCODERS, "small", (ViT, {**VIT, "pre_norm": True}))
    with pytest.raises(UserError, match=r"missing \(norm_pre.*unexpected \(patch_embed.proj.bias"):
        encoders.load_image(str(path), arch="small")
