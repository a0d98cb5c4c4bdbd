"""A sentence-transformers folder says how its texts become vectors, and it is so or is refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import tiny
from pickles import tensor, write_zip
from weights_files import in_a_file

from otter_jax.data.captions import Tokenizer
from otter_jax.errors import UserError
from otter_jax.models.bert import Bert, BertConfig, Projection
from otter_jax.models.pooling import POOLINGS, pool, pool_packed
from otter_jax.weights import encoders, otter_release, sentences

CONFIG = {
    "model_type": "bert",
    "vocab_size": 20,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 10,
}
WORDS = "[PAD]\n[UNK]\n[CLS]\n[SEP]\notter"
IDS, MASK = jnp.arange(10).reshape(2, 5), jnp.arange(5) < jnp.array([[5], [3]])
KERNEL = np.random.default_rng(1).normal(size=(3, 8)).astype(np.float32)
BIAS = np.array([0.5, -0.5, 0.25], np.float32)
TANH = {"in_features": 8, "out_features": 3, "bias": True}


def modules(*kinds, package="sentence_transformers.models"):
    return [
        {"idx": i, "path": f"{i}_{kind}" if i else "", "type": f"{package}.{kind}"}
        for i, kind in enumerate(kinds)
    ]


def write(folder, chain=(), pooling=(), dense=None, home=""):
    """A folder of these modules; `home` is the path of its transformer in it."""
    inner = folder / home
    inner.mkdir(exist_ok=True)
    (inner / "config.json").write_text(json.dumps(CONFIG))
    (inner / "vocab.txt").write_text(WORDS)
    module = Bert(BertConfig.from_json(CONFIG))
    tensors = in_a_file(module, IDS, MASK)
    safetensors.numpy.save_file(tensors, inner / "model.safetensors")
    chain = chain or modules("Transformer", "Pooling", *(["Dense"] if dense else []), "Normalize")
    if home:
        chain[0]["path"] = home
    (folder / "modules.json").write_text(json.dumps(chain))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text(json.dumps(dict(pooling)))
    if dense:
        (folder / "2_Dense").mkdir()
        (folder / "2_Dense/config.json").write_text(json.dumps(dense))
        linear = {"linear.weight": KERNEL, "linear.bias": BIAS}
        safetensors.numpy.save_file(linear, folder / "2_Dense/model.safetensors")
    return str(folder)


def vectors(encoder):
    """(the last hidden states, each text's vector)"""
    hidden = encoder.module.apply(encoder.variables, IDS, MASK, train=False)
    apply = encoder.module.apply
    return hidden, apply(encoder.variables, hidden, IDS, MASK, method="pool")


MODES = {
    "cls": ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
    "max": ({"pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": False}, "max"),
    "mean": ({"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": False}, "mean"),
    "nothing said": ({"word_embedding_dimension": 8}, "mean"),
    "root of the length": (
        {"pooling_mode_mean_sqrt_len_tokens": True, "pooling_mode_mean_tokens": False},
        "mean_sqrt_len_tokens",
    ),
    "by name": ({"pooling_mode": "cls"}, "cls"),
}


@pytest.mark.parametrize("name", MODES)
def test_texts_are_pooled_as_the_folder_says(name, tmp_path):
    about, how = MODES[name]
    encoder = encoders.load_text(write(tmp_path, pooling=about))
    assert encoder.module.pooling == how
    hidden, found = vectors(encoder)
    texts = [np.asarray(hidden[0]), np.asarray(hidden[1, :3])]
    expected = {
        "cls": lambda text: text[0],
        "max": lambda text: text.max(0),
        "mean": lambda text: text.mean(0),
        "mean_sqrt_len_tokens": lambda text: text.sum(0) / np.sqrt(len(text)),
    }[how]
    np.testing.assert_allclose(found, [expected(text) for text in texts], atol=1e-5)


@pytest.mark.parametrize("how", POOLINGS)
def test_packed_texts_are_pooled_as_padded_ones_and_so_are_their_gradients(how):
    hidden = np.random.default_rng(0).normal(size=(1, 2, 6, 4)).astype(np.float32)
    segments = jnp.array([[[1, 1, 2, 2, 2, 0], [1, 1, 1, 1, 0, 0]]])
    positions = jnp.array([[0, 7, 1, 6]])  # the first of each row, the second, none
    parts = [hidden[0, 0, :2], hidden[0, 1, :4], hidden[0, 0, 2:5], hidden[0, 0, :0]]
    padded = np.stack([np.vstack([x, np.full((6 - len(x), 4), 9, np.float32)]) for x in parts])
    hidden, padded = jnp.asarray(hidden), jnp.asarray(padded)
    mask = jnp.arange(6) < jnp.array([[len(part)] for part in parts])
    packed, there = pool_packed(hidden, segments, positions, how)
    np.testing.assert_allclose(packed, pool(padded, mask, how), atol=1e-6)
    np.testing.assert_array_equal(there, [True, True, True, False])
    one = jax.grad(lambda x: (pool_packed(x, segments, positions, how)[0] ** 2).sum())(hidden)
    other = jax.grad(lambda x: (pool(x, mask, how) ** 2).sum())(padded)
    np.testing.assert_allclose(one[0, 0, 2:5], other[2, :3], atol=1e-5)
    assert not np.asarray(one[0, 1, 4:]).any()


@pytest.mark.parametrize("activation", ["Tanh", "Identity"])
def test_a_dense_layer_is_a_part_of_the_encoder(activation, tmp_path):
    group = "linear" if activation == "Identity" else "activation"
    about = TANH | {"activation_function": f"torch.nn.modules.{group}.{activation}"}
    encoder = encoders.load_text(write(tmp_path, pooling={"pooling_mode": "cls"}, dense=about))
    assert encoder.width == 3
    assert encoder.module.projections == (Projection(3, activation),)
    hidden, found = vectors(encoder)
    expected = np.asarray(hidden)[:, 0] @ KERNEL.T + BIAS
    expected = np.tanh(expected) if activation == "Tanh" else expected
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_dense_layer_may_be_a_pickle_and_the_transformer_in_a_folder_of_its_own(tmp_path):
    folder = write(tmp_path, dense=TANH, home="0_Transformer")
    (tmp_path / "2_Dense/model.safetensors").unlink()
    linear = {"linear.weight": tensor(KERNEL), "linear.bias": tensor(BIAS)}
    write_zip(tmp_path / "2_Dense/pytorch_model.bin", linear)
    encoder = encoders.load_text(folder)
    np.testing.assert_array_equal(encoder.variables["params"]["dense_0"]["kernel"], KERNEL.T)
    assert encoder.module.projections == (Projection(3, "Tanh"),)  # the library's default
    assert encoder.tokenizer == tmp_path / "0_Transformer"


def test_a_text_without_tokens_stays_zero_behind_a_dense_layer(tmp_path):
    encoder = encoders.load_text(write(tmp_path, dense=TANH))
    none = jnp.zeros_like(MASK)
    hidden = encoder.module.apply(encoder.variables, IDS, none, train=False)
    found = encoder.module.apply(encoder.variables, hidden, IDS, none, method="pool")
    assert not np.asarray(found).any()


CONCATENATED = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}
OTHER = {
    "two ways of pooling": ({"pooling": CONCATENATED}, "pools by mean and cls"),
    "another pooling": ({"pooling": {"pooling_mode": "lasttoken"}}, "pools by lasttoken"),
    "no pooling": ({"chain": modules("Transformer", "Normalize")}, "Transformer -> Normalize"),
    "another layer": (
        {"chain": modules("Transformer", "Pooling", "LayerNorm")},
        "Transformer -> Pooling -> LayerNorm",
    ),
    "a norm in between": (
        {"chain": modules("Transformer", "Pooling", "Normalize", "Dense")},
        "Pooling -> Normalize -> Dense",
    ),
    "code of its own": (
        {"chain": modules("Transformer", "Pooling", package="custom_st")},
        "custom_st.Transformer, which is not sentence-transformers'",
    ),
    "another activation": (
        {"dense": TANH | {"activation_function": "torch.nn.modules.activation.Mish"}},
        "activation.Mish",
    ),
    "a layer for each token": (
        {"dense": TANH | {"module_input_name": "token_embeddings"}},
        "applied to token_embeddings",
    ),
    "no path": ({"chain": [{"type": "sentence_transformers.models.Transformer"}]}, "no 'path'"),
    "no list": ({"chain": {"0": 1}}, "followed here: it is not a list of modules"),
}


@pytest.mark.parametrize("name", OTHER)
def test_a_folder_that_is_read_otherwise_is_refused_by_name(name, tmp_path):
    arguments, words = OTHER[name]
    folder = write(tmp_path, **arguments)
    with pytest.raises(UserError) as error:
        encoders.load_text(folder)
    assert words in str(error.value)
    assert "give a copy of the folder without modules.json" in str(error.value)


def test_without_modules_tokens_are_averaged_and_modules_that_lie_there_are_named(tmp_path):
    folder = write(tmp_path, pooling={"pooling_mode": "cls"})
    (tmp_path / "modules.json").unlink()
    said = []
    assert encoders.load_text(folder, tell=said.append).module.pooling == "mean"
    assert said == [f"{tmp_path} has no modules.json: 1_Pooling in it are left aside."]


def test_a_prompt_that_belongs_before_texts_is_named(tmp_path):
    folder = write(tmp_path)
    prompts = {"prompts": {"query": "query: "}, "default_prompt_name": "query"}
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    said = []
    encoders.load_text(folder, tell=said.append)
    assert len(said) == 1
    assert "puts the prompt 'query' before texts; captions go without it" in said[0]


def test_texts_are_lower_cased_first_if_the_folder_says_so(tmp_path):
    write(tmp_path)
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": False}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert Tokenizer(tmp_path, 8).tokens("OTTER") == ["[CLS]", "[UNK]", "[SEP]"]
    about = {"max_seq_length": 6, "do_lower_case": True}
    (tmp_path / "sentence_bert_config.json").write_text(json.dumps(about))
    assert Tokenizer(tmp_path, 8).tokens("OTTER") == ["[CLS]", "otter", "[SEP]"]
    assert sentences.most_tokens(tmp_path) == 6
    assert sentences.lower_case(tmp_path)


def test_the_released_code_averages_so_that_its_checkpoints_fit_no_other_pooling():
    model = tiny.towers().clone(txt=Bert(BertConfig(), pooling="cls"))
    with pytest.raises(UserError, match="averages a text's tokens"):
        otter_release.family_of(model)
