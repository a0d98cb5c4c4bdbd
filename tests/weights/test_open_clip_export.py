"""The folder for open_clip computes what the model does, as far as that can be told without it."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import tiny

from otter_jax.configs import common
from otter_jax.models.bert import Bert, Projection
from otter_jax.models.clip import ClipText, ClipTextConfig
from otter_jax.models.towers import unit
from otter_jax.models.vit import ViT
from otter_jax.run.model import initialise
from otter_jax.weights import encoders, open_clip_export, two_towers

RNG = np.random.default_rng(0)
IDS = jnp.arange(14).reshape(2, 7) + 1
MASK = jnp.arange(7) < jnp.array([[7], [4]])
CLIP = ClipTextConfig(
    vocab_size=30, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
    max_position_embeddings=9, eos_token_id=7, hidden_act="gelu", layer_norm_eps=1e-6,
)  # fmt: skip


def norm(x, gain, shift):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12) * gain + shift


@pytest.mark.parametrize("dim", [5, 16, 40], ids=["narrower", "square", "wider"])
def test_a_bias_is_folded_into_matrix_and_norm_whatever_the_widths(dim):
    weight, bias = RNG.normal(size=(dim, 16)), RNG.normal(size=dim)
    gain, shift = RNG.normal(size=16), RNG.normal(size=16)  # gains may be negative
    tokens = RNG.normal(size=(10, 4, 16)).astype(np.float32)
    new_weight, new_shift = open_clip_export.folded(weight, bias, gain, shift)
    expected = norm(tokens, gain, shift).mean(1) @ weight.T + bias
    found = norm(tokens, gain, new_shift).mean(1) @ new_weight.T
    assert new_weight.dtype == new_shift.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=3e-6)
    found, expected = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (found, expected))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_norm_without_a_gain_cannot_take_a_bias():
    gain = np.array([1.0, 0.0, 1.0])
    with pytest.raises(open_clip_export.NotHeldError, match=r"smallest gain is 0\.0e\+00"):
        open_clip_export.folded(np.eye(3), np.ones(3), gain, np.zeros(3))


def towers(**changes):
    """The tiny towers with weights that are all different, biases included."""
    model = tiny.towers().clone(**changes)
    if isinstance(model.txt, ClipText):
        model = model.clone(txt_width=8)
    like = jax.eval_shape(functools.partial(initialise, model, jax.random.key(0)))
    drawn = jax.tree.map(lambda x: RNG.normal(size=x.shape).astype(np.float32) / 4, like)
    drawn["params"]["log_scale"]["pairs"] = np.float32(9.0)  # above the limit of 100
    return model, {"batch_stats": {}} | drawn


@pytest.fixture
def written(tmp_path):
    """Writes a model; returns its config, and its tensors."""

    out = tmp_path / "scratch"

    def call(model, variables, arch="resnet18", size=16):
        config = common.get_config()
        config.model.img.arch, config.data.image_size = arch, size
        config.data.max_tokens = 7
        original = tmp_path / "text"
        original.mkdir(exist_ok=True)
        (original / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\notter")
        bert = dataclasses.asdict(tiny.BERT)
        bert.pop("roberta_positions")
        (original / "config.json").write_text(json.dumps(bert | {"model_type": "bert"}))
        open_clip_export.write(out, config, model, variables, original, home=tmp_path / "out")
        about = json.loads((out / "open_clip_config.json").read_text())
        return about, safetensors.numpy.load_file(out / "open_clip_model.safetensors")

    call.folder = out
    return call


def by_berts_names(model, variables, tensors):
    """The texts' vectors of BERT with the changed norm, and the matrix after it."""
    params = dict(variables["params"]["txt"])
    last = f"layer_{model.txt.config.num_hidden_layers - 1}"
    name = f"text.transformer.encoder.layer.{last[6:]}.output.LayerNorm.bias"
    params = jax.tree.map(np.asarray, params)
    params["encoder"][last]["output"]["LayerNorm"]["bias"] = tensors[name]
    bert = Bert(model.txt.config, pooling=model.txt.pooling)
    hidden = bert.apply({"params": params}, IDS, MASK, train=False)
    pooled = bert.apply({"params": params}, hidden, IDS, MASK, method="pool")
    return pooled @ tensors["text.proj.weight"].T


@pytest.mark.parametrize("dim", [6, 24])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_texts_are_embedded_as_before_by_a_projection_without_a_bias(written, dim, pooling):
    model, variables = towers(dim=dim, txt=Bert(tiny.BERT, pooling=pooling))
    about, tensors = written(model, variables)
    expected = model.apply(variables, IDS, MASK, method="embed_texts")
    np.testing.assert_allclose(unit(by_berts_names(model, variables, tensors)), expected, atol=1e-6)
    text = about["model_cfg"]["text_cfg"]
    assert text["hf_proj_type"] == "linear"
    assert text["hf_pooler_type"] == open_clip_export.POOLERS[pooling]
    assert tensors["text.proj.weight"].shape == (dim, 16)


def test_linear_layers_after_the_pooling_become_one_matrix(written):
    layers = (Projection(9, "Identity"), Projection(16, "Identity", False))
    model, variables = towers(txt=Bert(tiny.BERT, projections=layers))
    _, tensors = written(model, variables)
    expected = model.apply(variables, IDS, MASK, method="embed_texts")
    assert not any("dense." in name and "transformer" not in name for name in tensors)
    assert not any(name.startswith("text.transformer.dense") for name in tensors)
    np.testing.assert_allclose(unit(by_berts_names(model, variables, tensors)), expected, atol=1e-6)


def test_a_text_encoder_of_the_common_width_has_no_projection(written):
    model, variables = towers(dim=16, txt=Bert(tiny.BERT, pooling="mean_sqrt_len_tokens"))
    about, tensors = written(model, variables)
    text = about["model_cfg"]["text_cfg"]
    assert text["hf_proj_type"] is None
    assert text["hf_pooler_type"] == "mean_pooler"  # the same direction
    assert "text.proj.weight" not in tensors
    shift = "text.transformer.encoder.layer.0.output.LayerNorm.bias"
    own = variables["params"]["txt"]["encoder"]["layer_0"]["output"]["LayerNorm"]["bias"]
    np.testing.assert_array_equal(tensors[shift], own)


def test_image_tower_temperature_and_sizes_are_where_open_clip_looks(written, tmp_path):
    model, variables = towers()
    about, tensors = written(model, variables)
    head = variables["params"]["img_head"]
    np.testing.assert_array_equal(tensors["visual.trunk.fc.weight"], head["kernel"].T)
    np.testing.assert_array_equal(tensors["visual.trunk.fc.bias"], head["bias"])
    assert tensors["visual.trunk.layer1.0.conv1.weight"].shape == (14, 64, 3, 3)
    assert tensors["logit_scale"].shape == ()
    assert tensors["logit_scale"] == np.float32(np.log(100))
    assert about["model_cfg"] == {
        "embed_dim": 6,
        "vision_cfg": {
            "timm_model_name": "resnet18",
            "timm_model_pretrained": False,
            "timm_pool": "avg",
            "timm_proj": "",
            "image_size": 16,
        },
        "text_cfg": {
            "hf_pooler_type": "mean_pooler",
            "hf_proj_type": "linear",
            "hf_model_name": str(tmp_path / "out"),
            "hf_tokenizer_name": str(tmp_path / "out"),
            "context_length": 7,
        },
    }
    assert about["preprocess_cfg"]["mean"] == [127 / 255] * 3
    assert json.loads((tmp_path / "scratch/config.json").read_text())["model_type"] == "bert"
    assert (tmp_path / "scratch/vocab.txt").is_file()


def test_texts_that_are_lower_cased_before_the_tokenizer_are_so_there(written, tmp_path):
    (tmp_path / "text").mkdir()
    (tmp_path / "text/sentence_bert_config.json").write_text('{"do_lower_case": true}')
    about, _ = written(*towers())
    assert about["model_cfg"]["text_cfg"]["tokenizer_kwargs"] == {"clean": "lower"}


def test_clips_text_tower_has_open_clips_own_names(written):
    model, variables = towers(txt=ClipText(CLIP))
    about, tensors = written(model, variables)
    params = variables["params"]
    of_block = {
        "ln_1.weight": (8,), "ln_1.bias": (8,), "ln_2.weight": (8,), "ln_2.bias": (8,),
        "attn.in_proj_weight": (24, 8), "attn.in_proj_bias": (24,),
        "attn.out_proj.weight": (8, 8), "attn.out_proj.bias": (8,),
        "mlp.c_fc.weight": (24, 8), "mlp.c_fc.bias": (24,),
        "mlp.c_proj.weight": (8, 24), "mlp.c_proj.bias": (8,),
    }  # fmt: skip
    expected = {
        "token_embedding.weight": (30, 8), "positional_embedding": (7, 8),
        "ln_final.weight": (8,), "ln_final.bias": (8,),
        "text_projection": (8, 6),
    }  # fmt: skip
    for number in range(2):
        expected |= {f"transformer.resblocks.{number}.{k}": v for k, v in of_block.items()}
    found = {k[5:]: v.shape for k, v in tensors.items() if k.startswith("text.")}
    assert found == expected
    qkv = params["txt"]["blocks_1"]["attn"]["qkv"]["kernel"]
    np.testing.assert_array_equal(
        tensors["text.transformer.resblocks.1.attn.in_proj_weight"], qkv.T
    )
    text = about["model_cfg"]["text_cfg"]
    assert about["model_cfg"]["custom_text"]
    assert not about["model_cfg"]["quick_gelu"]
    assert (text["pool_type"], text["eos_id"]) == ("eos", 7)
    assert (text["mlp_ratio"], text["norm_kwargs"]) == (3.0, {"eps": 1e-6})


VIT = ViT(patch=8, width=16, heads=2, depth=1, image_size=16)
TANH = (Projection(16, "Tanh"),)


@pytest.mark.parametrize(
    ("changes", "size", "words"),
    [
        ({"img": VIT}, 32, "for 16 pixels alone, and this one sees 32"),
        ({"txt": Bert(tiny.BERT, projections=TANH)}, 16, "activation Tanh after the pooling"),
        ({"txt": Bert(tiny.BERT, pooling="max")}, 16, "after the pooling max none can be folded"),
        ({"txt": Bert(tiny.BERT, pooling="mean_sqrt_len_tokens")}, 16, "no pooling mean_sqrt"),
        ({"txt": ClipText(dataclasses.replace(CLIP, hidden_act="relu"))}, 16, "activation relu"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else str(value),
)
def test_what_open_clip_has_no_place_for_is_said_and_not_written(
    written, tmp_path, changes, size, words
):
    model, variables = towers(**changes)
    with pytest.raises(open_clip_export.NotHeldError, match=words):
        written(model, variables, arch="an_arch", size=size)
    assert not (tmp_path / "scratch").exists()


@pytest.mark.parametrize(("pool", "timms"), [("token", "token"), ("mean", "avg")])
@pytest.mark.parametrize("dim", [6, 8])
def test_what_is_written_is_read_again_as_the_same_model(written, monkeypatch, pool, timms, dim):
    arch = {"token": "small_vit", "mean": "small_vit_mean"}[pool]
    arguments = {"patch": 8, "width": 16, "heads": 2, "depth": 1, "image_size": 16}
    for name, more in (("small_vit", {}), ("small_vit_mean", {"pool": "mean"})):
        monkeypatch.setitem(encoders.IMAGE_ENCODERS, name, (ViT, arguments | more))
    texts = {6: Bert(tiny.BERT), 8: ClipText(dataclasses.replace(CLIP, layer_norm_eps=1e-5))}
    model, variables = towers(dim=dim, img=VIT.clone(pool=pool), txt=texts[dim])
    about, _ = written(model, variables, arch=arch)
    assert about["model_cfg"]["vision_cfg"]["timm_pool"] == timms
    found = two_towers.read(str(written.folder))
    assert (found.max_tokens, found.pictures.size) == (7, 16)
    np.testing.assert_allclose(found.scale, 100, rtol=1e-6)
    pictures = jnp.asarray(RNG.integers(0, 256, (2, 16, 16, 3)), jnp.uint8)
    for method, batch in (("embed_images", (pictures,)), ("embed_texts", (IDS, MASK))):
        expected = model.apply(variables, *batch, method=method)
        again = found.module.apply(found.variables, *batch, method=method)
        np.testing.assert_allclose(again, expected, atol=1e-6)
