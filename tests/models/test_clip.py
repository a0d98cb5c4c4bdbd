"""CLIP's text transformer is Hugging Face's, and so is the image side of the same file."""

import dataclasses
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from golden.draw import tensor
from golden.recipe import recipe_images
from golden.small import CLIP, CLIP_IDS, CLIP_MASK, VITS
from gradients import compare, near

from otter_jax.errors import UserError
from otter_jax.models.clip import ClipText, ClipTextConfig
from otter_jax.models.vit import ViT
from otter_jax.weights import encoders, naming

IDS, MASK = jnp.array(CLIP_IDS), jnp.array(CLIP_MASK, bool)
CONFIG = ClipTextConfig.from_json(CLIP)
ONE = dataclasses.replace(CONFIG, num_hidden_layers=1)  # of its two layers: half to compile
ARCH = "small_clip"  # the image side of CLIP, registered below


@pytest.fixture(scope="module")
def reference(golden):
    return golden("transformers.npz")


@pytest.fixture(scope="module", autouse=True)
def registered():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(encoders.IMAGE_ENCODERS, ARCH, (ViT, VITS["quick_gelu"]))
        yield


@pytest.fixture(scope="module")
def tensors():
    """A whole CLIP as older versions of transformers write it."""
    text = encoders.variable_shapes(ClipText(CONFIG), IDS, MASK), naming.FAMILIES[ClipText][0]
    image = encoders.variable_shapes(ViT(**VITS["quick_gelu"]), jnp.zeros((1, 32, 32, 3)))
    drawn = {}
    for like, family in (text, (image, naming.FAMILIES[ViT][1])):
        like = jax.tree.map(lambda x: np.zeros(x.shape, bool), like)
        for name, x in naming.export(like, family).items():
            # The class token is (H,) there, and position embeddings are (N, H).
            shape = x.shape[x.shape[0] == 1 :] if x.ndim == 3 else x.shape
            drawn[name] = tensor(name, [n for n in shape if n > 1])
    return drawn | {
        "logit_scale": np.array(2.66, np.float32),
        "text_projection.weight": tensor("text_projection.weight", (16, 64)),
        "visual_projection.weight": tensor("visual_projection.weight", (16, 64)),
        "text_model.embeddings.position_ids": np.arange(12)[None],
        "vision_model.embeddings.position_ids": np.arange(17)[None],
    }


def write(folder, config, tensors):
    (folder / "config.json").write_text(json.dumps(config))
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    return str(folder)


@pytest.fixture(scope="module")
def folder(tensors, tmp_path_factory):
    return write(tmp_path_factory.mktemp("clip"), CLIP, tensors)


@pytest.fixture(scope="module")
def variables(folder):
    return encoders.load_text(folder).variables


def run(model, train=False):
    return jax.jit(partial(model.apply, train=train))


def test_hidden_states_are_those_of_transformers(variables, reference):
    hidden = run(ClipText(CONFIG))(variables, IDS, MASK)
    near(hidden[MASK], reference["clip_text|hidden"][np.asarray(MASK)], 1e-4)


def test_text_features_and_gradients_are_those_of_transformers(variables, reference):
    model = ClipText(CONFIG)

    def encode(variables):
        return model.pool(model.apply(variables, IDS, MASK, train=False), IDS, MASK)

    compare(encode, variables, naming.families(model)[0], reference, "clip_text")


def test_image_features_and_gradients_are_those_of_transformers(folder, reference):
    encoder = encoders.load_image(folder, arch=ARCH)
    assert encoder.width == 64
    encode = partial(encoder.module.apply, image=recipe_images(2, 32), train=False)
    compare(encode, encoder.variables, naming.families(encoder.module)[1], reference, "clip_vision")


def test_configs_of_before_2023_read_the_text_at_its_largest_number(reference):
    hidden = jnp.asarray(reference["clip_text|hidden"])
    legacy = ClipText(dataclasses.replace(CONFIG, eos_token_id=2))
    np.testing.assert_array_equal(legacy.pool(hidden, IDS, MASK), reference["clip_text|legacy"])
    np.testing.assert_array_equal(
        ClipText(CONFIG).pool(hidden, IDS, MASK), reference["clip_text|features"]
    )
    assert (reference["clip_text|legacy"][3] != reference["clip_text|features"][3]).any()


@pytest.mark.parametrize("prefix", ["text_model.", ""])
def test_the_text_side_alone_is_the_same(prefix, tensors, variables, tmp_path):
    alone = {
        name.replace("text_model.", prefix): x
        for name, x in tensors.items()
        if name.startswith("text_model.")
    }
    config = {"model_type": "clip_text_model", **CLIP["text_config"]}
    encoder = encoders.load_text(write(tmp_path, config, alone), dropout=0.25)
    assert encoder.module.config == dataclasses.replace(CONFIG, attention_dropout=0.25)
    assert encoder.width == 64
    jax.tree.map(np.testing.assert_array_equal, encoder.variables, variables)


def test_the_image_side_alone_is_the_same(folder, tensors, tmp_path):
    alone = {
        name.removeprefix("vision_model."): x
        for name, x in tensors.items()
        if name.startswith("vision_model.")
    }
    whole = encoders.load_image(folder, arch=ARCH)
    encoder = encoders.load_image(write(tmp_path, {}, alone), arch=ARCH)
    jax.tree.map(np.testing.assert_array_equal, encoder.variables, whole.variables)


def test_a_file_of_one_side_is_not_taken_for_the_other(folder, tensors, tmp_path):
    text = {name: x for name, x in tensors.items() if not name.startswith("vision_model.")}
    with pytest.raises(UserError, match=r"19 missing \(blocks"):
        encoders.load_image(write(tmp_path, CLIP, text), arch=ARCH)
    image = {name: x for name, x in tensors.items() if not name.startswith("text_model.")}
    with pytest.raises(UserError, match=r"missing \(text_model\."):
        encoders.load_text(write(tmp_path, CLIP, image))
    with pytest.raises(UserError, match="no classifier"):
        encoders.load_image(folder, arch=ARCH, classifier=True)


def test_a_text_written_is_the_text_read(tensors, variables):
    exported = naming.export(variables, naming.FAMILIES[ClipText][0])
    for name, x in exported.items():
        np.testing.assert_array_equal(x, tensors[name])
    assert len(exported) == 36


def test_padding_changes_nothing(variables):
    model = ClipText(ONE)
    encode = run(model)
    hidden = encode(variables, IDS, MASK)
    other = jnp.where(MASK, IDS, 33)
    np.testing.assert_allclose(encode(variables, other, MASK)[MASK], hidden[MASK], atol=1e-6)
    np.testing.assert_array_equal(model.pool(hidden, other, MASK), model.pool(hidden, IDS, MASK))
    short = encode(variables, IDS[:1, :5], MASK[:1, :5])
    np.testing.assert_allclose(hidden[0, :5], short[0], atol=1e-6)


def test_a_token_changes_what_comes_after_it_and_nothing_before(variables):
    encode, at = run(ClipText(ONE)), 4
    one, other = (
        encode(variables, IDS[1:2].at[0, at].set(token), MASK[1:2])[0] for token in (14, 77)
    )
    np.testing.assert_array_equal(one[:at], other[:at])
    assert (np.abs(one - other).max(1)[at:] > 1e-3).all()


def test_a_text_without_tokens_is_zero_and_finite(variables):
    model, none = ClipText(ONE), jnp.zeros_like(MASK)
    hidden = run(model)(variables, IDS, none)
    assert np.isfinite(hidden).all()
    pooled = model.pool(hidden, IDS, none.at[0].set(MASK[0]))
    np.testing.assert_array_equal(pooled[1:], 0)
    assert np.abs(pooled[0]).max() > 0.1


def test_closing_tokens_in_the_padding_are_not_read():
    hidden = jnp.arange(6.0).reshape(1, 6, 1)
    ids = jnp.array([[90, 90, 89, 7, 90, 90]])
    mask = jnp.array([[0, 0, 1, 1, 1, 0]], bool)
    for eos in (2, 90):
        model = ClipText(dataclasses.replace(ONE, eos_token_id=eos))
        assert model.pool(hidden, ids, mask) == 4


def test_dropout_is_of_the_attention_in_training_only(variables):
    still = run(ClipText(ONE))(variables, IDS, MASK)
    encode = run(ClipText(ONE.with_dropout(0.5)), train=True)
    one, again, other = (
        encode(variables, IDS, MASK, rngs={"dropout": jax.random.key(seed)}) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 0.01
    without = run(ClipText(ONE.with_dropout(0.0)), train=True)
    np.testing.assert_array_equal(without(variables, IDS, MASK), still)


def test_half_precision_gives_float32_features_near_the_exact_ones(variables):
    pooled = []
    for dtype in (jnp.float32, jnp.bfloat16):
        model = ClipText(ONE, dtype)
        hidden = run(model)(variables, IDS, MASK)
        assert hidden.dtype == dtype
        pooled.append(model.pool(hidden, IDS, MASK))
    exact, half = pooled
    assert half.dtype == jnp.float32
    assert 1e-5 < np.abs(half - exact).max() < 0.05


def test_double_precision_is_double_throughout(variables, reference):
    model = ClipText(CONFIG, jnp.float64)
    with jax.enable_x64(True):
        double = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), variables)
        hidden = run(model)(double, IDS, MASK)
        pooled = model.pool(hidden, IDS, MASK)
        assert pooled.dtype == jnp.float64
    near(pooled, reference["clip_text|features"], 1e-6)


def test_a_text_longer_than_the_positions_is_refused(variables):
    assert CONFIG.max_length == 12
    ids = jnp.zeros((1, 13), int)
    with pytest.raises(ValueError, match=r"13 tokens.*12 positions"):
        ClipText(ONE).apply(variables, ids, ids == 0, train=False)


def test_what_a_config_leaves_out_is_as_in_vit_b_32():
    assert ClipTextConfig.from_json({"model_type": "clip"}) == ClipTextConfig()
    wider = {"hidden_size": 768, "num_attention_heads": 12}
    expected = dataclasses.replace(ClipTextConfig(), **wider)
    for config in (
        {"model_type": "clip", "text_config": wider, "text_config_dict": None},
        {"model_type": "clip", "text_config": None, "text_config_dict": wider},
        {"model_type": "clip", "text_config": {"hidden_size": 1}, "text_config_dict": wider},
        {"model_type": "clip_text_model", **wider, "dropout": 0.0},
    ):
        assert ClipTextConfig.from_json(config) == expected


@pytest.mark.parametrize("change", [{"hidden_act": "swish"}, {"eos_token_id": [90, 91]}])
def test_a_config_of_another_model_is_an_error(change, tmp_path):
    config = {"model_type": "clip", "text_config": CLIP["text_config"] | change}
    (name,) = change
    with pytest.raises(UserError, match=rf"config.json does not describe .* {name}="):
        encoders.load_text(write(tmp_path, config, {}))
