"""BERT and RoBERTa are Hugging Face's."""

import dataclasses
import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from golden.recipe import recipe_variables
from gradients import compare

from otter_jax.models.bert import Bert, BertConfig
from otter_jax.models.pooling import pool
from otter_jax.weights import encoders, naming

GOLDEN = Path(__file__).parents[1] / "golden"
CONFIGS = json.loads((GOLDEN / "arch_text_configs.json").read_text())
SMALL = BertConfig(
    vocab_size=50,
    hidden_size=32,
    num_hidden_layers=1,
    num_attention_heads=4,
    intermediate_size=64,
    max_position_embeddings=16,
)
IDS = jnp.arange(24).reshape(2, 12) % 50
MASK = jnp.arange(12) < jnp.array([[12], [7]])


def run(model, train=False):
    # What takes time here is compiling.
    options = {"xla_backend_optimization_level": 0}
    return jax.jit(partial(model.apply, train=train), compiler_options=options)


@pytest.mark.parametrize("name", CONFIGS)
def test_hidden_states_are_those_of_transformers(name, golden):
    expected = golden("arch_text.npz")
    ids, mask = jnp.asarray(expected[f"{name}_ids"]), jnp.asarray(expected[f"{name}_mask"], bool)
    model = Bert(BertConfig.from_json(CONFIGS[name]))
    variables = recipe_variables(model, ids, mask)
    hidden = run(model)(variables, ids, mask)
    if f"{name}_last_hidden" in expected:
        token = np.asarray(mask)
        np.testing.assert_allclose(
            np.asarray(hidden)[token], expected[f"{name}_last_hidden"][token], rtol=1e-4, atol=2e-5
        )
    np.testing.assert_allclose(
        pool(hidden, mask), expected[f"{name}_txt_emb"], rtol=1e-4, atol=2e-5
    )


@pytest.mark.parametrize("name", ["bert_small", "roberta_small"])
def test_features_and_gradients_are_those_of_transformers(name, golden):
    texts = golden("arch_text.npz")
    ids, mask = jnp.asarray(texts[f"{name}_ids"]), jnp.asarray(texts[f"{name}_mask"], bool)
    model = Bert(BertConfig.from_json(CONFIGS[name]))

    def encode(variables):
        return model.pool(model.apply(variables, ids, mask, train=False), ids, mask)

    variables = recipe_variables(model, ids, mask)
    family = naming.families(model)[0]
    compare(encode, variables, family, golden("transformers.npz"), name)


def test_a_folder_like_distilrobertas_is_six_layers_of_roberta(tmp_path):
    # As in the config.json of distilroberta-base, but narrow.
    config = {
        "architectures": ["RobertaForMaskedLM"], "attention_probs_dropout_prob": 0.1,
        "bos_token_id": 0, "eos_token_id": 2, "hidden_act": "gelu", "hidden_dropout_prob": 0.1,
        "hidden_size": 16, "initializer_range": 0.02, "intermediate_size": 20,
        "layer_norm_eps": 1e-5, "max_position_embeddings": 514, "model_type": "roberta",
        "num_attention_heads": 2, "num_hidden_layers": 6, "pad_token_id": 1, "type_vocab_size": 1,
        "vocab_size": 30,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = encoders.load_text(str(tmp_path), pretrained=False).module
    drawn = recipe_variables(model, IDS, MASK)
    tensors = naming.export(drawn, naming.families(model)[0])
    heads = {"lm_head.bias": np.zeros(30), "lm_head.dense.weight": np.zeros((16, 16))}
    file = {f"roberta.{name}": x for name, x in tensors.items()} | heads
    safetensors.numpy.save_file(file, tmp_path / "model.safetensors")
    encoder = encoders.load_text(str(tmp_path), dropout=0.0)
    assert list(encoder.variables["params"]["encoder"]) == [f"layer_{i}" for i in range(6)]
    assert encoder.module.config.max_length == 512
    assert encoder.width == 16
    jax.tree.map(np.testing.assert_array_equal, encoder.variables, drawn)


@pytest.fixture(scope="module")
def variables():
    return recipe_variables(Bert(SMALL), IDS, MASK)


def test_padding_changes_nothing(variables):
    encode = run(Bert(SMALL))
    short = encode(variables, IDS[:, :7], MASK[:, :7] & MASK[1, :7])
    padded = encode(variables, IDS, MASK & MASK[1])
    np.testing.assert_allclose(padded[:, :7], short, atol=1e-5)


def test_a_text_without_tokens_is_finite(variables):
    hidden = run(Bert(SMALL))(variables, IDS, jnp.zeros_like(MASK))
    assert np.isfinite(hidden).all()


def test_dropout_needs_an_rng_only_in_training_and_at_a_rate_above_zero(variables):
    model = Bert(SMALL)
    still = run(model)(variables, IDS, MASK)
    encode = run(model, train=True)
    one, again, other = (
        encode(variables, IDS, MASK, rngs={"dropout": jax.random.key(seed)}) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 0.1
    without = dataclasses.replace(SMALL, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    np.testing.assert_array_equal(run(Bert(without), train=True)(variables, IDS, MASK), still)


def test_half_precision_is_near_the_exact_result(variables):
    exact = run(Bert(SMALL))(variables, IDS, MASK)
    half = run(Bert(SMALL, jnp.bfloat16))(variables, IDS, MASK)
    assert half.dtype == jnp.bfloat16
    assert pool(half, MASK).dtype == jnp.float32
    np.testing.assert_allclose(pool(half, MASK), pool(exact, MASK), atol=0.05)


def test_a_text_longer_than_the_positions_is_refused(variables):
    ids = jnp.zeros((1, 17), int)
    with pytest.raises(ValueError, match=r"17 tokens.*16 positions"):
        Bert(SMALL).apply(variables, ids, ids == 0, train=False)


def test_a_mask_or_segment_ids_are_needed_and_not_both(variables):
    for given in ({}, {"mask": MASK, "segment_ids": MASK.astype(int)}):
        with pytest.raises(TypeError, match="either a mask or segment_ids"):
            Bert(SMALL).apply(variables, IDS, **given, train=False)


def test_a_roberta_config_may_leave_out_what_is_robertas():
    config = BertConfig.from_json({"model_type": "roberta"})
    assert (config.vocab_size, config.pad_token_id, config.max_length) == (50265, 1, 510)
    assert BertConfig.from_json({}).vocab_size == 30522


def test_roberta_gives_up_the_positions_of_its_padding():
    assert BertConfig(max_position_embeddings=514).max_length == 514
    roberta = BertConfig(max_position_embeddings=514, pad_token_id=1, roberta_positions=True)
    assert roberta.max_length == 512


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_act": "swish"},
        {"position_embedding_type": "relative_key"},
    ],
)
def test_a_config_of_another_model_is_refused(change):
    (value,) = change.values()
    with pytest.raises(ValueError, match=value):
        BertConfig.from_json({**CONFIGS["bert_small"], **change})


def test_pooling_and_its_gradient_are_those_of_the_official_code(golden):
    expected = {name: jnp.asarray(value) for name, value in golden("text_pool.npz").items()}
    hidden, mask = expected["seq"], expected["mask"].astype(bool)
    np.testing.assert_allclose(pool(hidden, mask), expected["emb_id"], atol=1e-6)
    projected = hidden @ expected["fc_weight"].T + expected["fc_bias"]
    np.testing.assert_allclose(pool(projected, mask), expected["emb_fc"], atol=1e-6)

    texts = mask.any(1)  # a text without tokens has no direction

    def normalised(hidden):
        pooled = pool(hidden, mask[texts])
        pooled /= jnp.linalg.norm(pooled, axis=1, keepdims=True)
        return (pooled * expected["w_id"][texts]).sum()

    gradient = jax.grad(normalised)(hidden[texts])
    np.testing.assert_allclose(gradient, expected["dseq_id"][texts], atol=1e-5)


def test_pooling_no_tokens_gives_zero():
    pooled = pool(jnp.ones((2, 3, 4)), jnp.array([[0, 0, 0], [1, 1, 0]], bool))
    np.testing.assert_array_equal(pooled, [[0] * 4, [1] * 4])
