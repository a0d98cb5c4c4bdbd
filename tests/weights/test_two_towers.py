"""CLIPs of transformers and open_clip are read whole, and embed as they do there."""

import json
import shutil

import foreign
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from pickles import tensor, write_zip

from otter_jax.data.captions import Tokenizer
from otter_jax.data.fitting import fit
from otter_jax.errors import UserError
from otter_jax.weights import encoders, open_clip, two_towers

TEXTS = ["A photo of an otter.", "the otter's  OTTERS, two of them, hold hands as they sleep", ""]
EVERY = sorted(foreign.CASES)
WEIGHTS = "open_clip_model.safetensors"


@pytest.fixture(scope="module", autouse=True)
def registered():
    with pytest.MonkeyPatch.context() as patch:
        foreign.register(patch)
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folders by case; not to be changed."""
    folder = tmp_path_factory.mktemp("foreign")
    return {case: foreign.write(folder / case, case) for case in EVERY}


@pytest.fixture(scope="module")
def reference(golden):
    return golden("two_towers.npz")


@pytest.fixture
def copy(made, tmp_path):
    """Copies a case's folder; returns it."""
    return lambda case: shutil.copytree(made[case], tmp_path / case)


def config_of(folder):
    return json.loads((folder / open_clip.CONFIG).read_text())


def write_config(folder, **changes):
    """Changes entries of an open_clip_config.json, named as in `vision_cfg__layers`."""
    about = config_of(folder)
    for name, value in changes.items():
        *above, last = name.split("__")
        entry = about["model_cfg"] if above != ["preprocess_cfg"] else about
        for step in above:
            entry = entry[step]
        entry[last] = value
    (folder / open_clip.CONFIG).write_text(json.dumps(about))


@pytest.mark.parametrize("case", EVERY)
def test_embeddings_and_scale_are_those_of_the_other_project(case, made, reference):
    model = two_towers.read(str(made[case]))
    mask = reference.get(f"{case}|mask")
    ids = reference[f"{case}|token_ids"].astype(np.int32)
    if mask is None:  # open_clip tells padding by its token
        mask = ids != getattr(model.module.txt.config, "pad_token_id", -1)

    @jax.jit
    def embed(variables, pixels, token_ids, mask):
        apply, module = model.module.apply, model.module
        images = apply(variables, pixels, method=module.embed_images)
        return images, apply(variables, token_ids, mask, method=module.embed_texts)

    pixels = reference[f"{case}|pixels"]
    images, texts = embed(model.variables, pixels, ids, mask.astype(bool))
    np.testing.assert_allclose(images, reference[f"{case}|images"], atol=3e-6)
    np.testing.assert_allclose(texts, reference[f"{case}|texts"], atol=1e-6)
    logits = model.scale * images @ texts.T
    np.testing.assert_allclose(logits, reference[f"{case}|logits"], atol=1e-5)


@pytest.mark.parametrize("case", EVERY)
def test_pictures_and_texts_become_what_the_other_project_makes_of_them(case, made, reference):
    found = two_towers.layout_of(made[case]).pictures
    fitted = np.stack([fit(picture, found) for picture in foreign.pictures()])
    # transformers resizes by torchvision, whose rounding is another than Pillow's.
    most = 1 if case.startswith("hf") else 0
    assert np.abs(fitted.astype(int) - reference[f"{case}|pixels"]).max() <= most
    ids, mask = Tokenizer(made[case], two_towers.layout_of(made[case]).max_tokens).encode(TEXTS)
    theirs = reference[f"{case}|token_ids"]
    assert mask.sum(1)[1] == theirs.shape[1]  # the second text is cut
    np.testing.assert_array_equal(ids[mask], theirs[mask])


@pytest.mark.parametrize(
    ("vision", "text", "dim", "parameters"),
    [
        ({}, {}, 512, 151_277_313),  # ViT-B/32, by transformers' defaults
        (
            {
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
                "patch_size": 14,
            },
            {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
            768,
            427_616_513,  # ViT-L/14
        ),
    ],
)
def test_openais_models_are_built_from_their_config(vision, text, dim, parameters, tmp_path):
    about = {"model_type": "clip", "projection_dim": dim}
    about |= {"vision_config": vision, "text_config": text}
    (tmp_path / "config.json").write_text(json.dumps(about))
    told = []
    module = two_towers.layout_of(tmp_path, tell=told.append).module
    assert "prepared as for OpenAI's" in told[0]
    captions = {"token_ids": jnp.zeros((1, 2), int), "mask": jnp.ones((1, 2), bool)}
    like = encoders.variable_shapes(module, jnp.zeros((1, 224, 224, 3), jnp.uint8), captions)
    count = sum(x.size for x in jax.tree.leaves(like["params"]))
    assert count - 1 == parameters  # here are two temperatures


def test_a_pickle_with_the_prefix_of_parallel_training_is_read(copy):
    folder = copy("vit_quick_gelu")
    expected = two_towers.read(str(folder))
    state = {f"module.{name}": tensor(x) for name, x in foreign.weights_of(folder.name).items()}
    (folder / WEIGHTS).unlink()
    write_zip(folder / "open_clip_pytorch_model.bin", {"epoch": 3, "state_dict": state})
    found = two_towers.read(str(folder))
    jax.tree.map(np.testing.assert_array_equal, found.variables, expected.variables)


def test_of_a_folder_with_both_forms_the_one_with_weights_is_read(copy, made):
    folder = copy("hf_quick_gelu")
    shutil.copy(made["vit_quick_gelu"] / open_clip.CONFIG, folder)
    assert two_towers.read(str(folder)).pictures.halves == "down"  # transformers' way
    shutil.copy(made["vit_quick_gelu"] / WEIGHTS, folder)
    assert two_towers.read(str(folder)).pictures.halves == "even"


def test_buffers_that_older_versions_saved_are_passed_over(copy):
    ids = np.arange(12)[None]
    for case, names in (
        ("hf_quick_gelu", ("text_model.embeddings.position_ids",)),
        ("resnet_bert", ("text.transformer.embeddings.position_ids",)),
        ("vit_quick_gelu", ("attn_mask",)),
    ):
        folder = copy(case)
        file = folder / foreign.CASES[case]["weights"]
        buffers = dict.fromkeys(names, ids)
        safetensors.numpy.save_file(foreign.weights_of(case) | buffers, file)
        two_towers.read(str(folder))
    buffers["input_resolution"] = ids  # of OpenAI's archives, which are not read here
    safetensors.numpy.save_file(foreign.weights_of(case) | buffers, file)
    with pytest.raises(UserError, match="1 unexpected .input_resolution"):
        two_towers.read(str(folder))


def test_pictures_are_described_alike_by_old_files_and_new_ones(copy):
    folder = copy("hf_larger")
    expected = two_towers.layout_of(folder)
    file = folder / "preprocessor_config.json"
    about = json.loads(file.read_text())
    kept = {name: about[name] for name in ("image_mean", "image_std", "resample")}
    old = {"feature_extractor_type": "CLIPFeatureExtractor", "size": 41, "crop_size": 32}
    file.write_text(json.dumps(kept | old))
    assert two_towers.layout_of(folder).pictures == expected.pictures
    file.unlink()
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": about}))
    found = two_towers.layout_of(folder)
    assert found.pictures == expected.pictures
    assert found.module.mean == expected.module.mean
    (folder / "processor_config.json").unlink()
    with pytest.raises(UserError, match="cropped to 224"):  # that of OpenAI's models
        two_towers.layout_of(folder)


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"visual.ln_post.weight": None}, "image tower.*1 missing .ln_post.weight"),
        ({"ln_final.bias": None}, "text tower.*1 missing .ln_final.bias"),
        ({"text_projection": None}, "1 missing .txt_head.weight"),
        ({"logit_scale": None}, "1 missing .logit_scale"),
        ({"visual.attn_pool.query": np.ones(3)}, "1 unexpected .attn_pool.query"),
        ({"text.proj.weight": np.ones((3, 3))}, "1 unexpected .proj.weight"),
        ({"decoder.weight": np.ones(3)}, "1 unexpected .decoder.weight"),
        ({"visual.proj": np.ones((20, 24), np.float32)}, r"of another shape .*\(24, 20\)"),
        ({"visual.conv1.weight": np.ones((24, 3, 4, 4))}, "of another shape .conv1.weight"),
        ({"logit_bias": np.full((), -10.0)}, "logit_bias.*SigLIP.*softmax"),
        ({"ln_final.bias": np.full(16, np.nan)}, "NaN or infinity"),
        ({"module.ln_final.bias": np.ones(16)}, "twice"),
    ],
)
def test_tensors_that_do_not_fit_are_named(change, match, copy):
    folder = copy("vit_quick_gelu")
    tensors = foreign.weights_of(folder.name) | change
    tensors = {name: x.astype(np.float32) for name, x in tensors.items() if x is not None}
    safetensors.numpy.save_file(tensors, folder / WEIGHTS)
    with pytest.raises(UserError, match=match) as raised:
        two_towers.read(str(folder))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("case", "change", "match"),
    [
        ("vit_quick_gelu", {"vision_cfg__layers": [3, 4, 6, 3]}, "ModifiedResNet"),
        ("vit_quick_gelu", {"vision_cfg__attentional_pool": True}, "attentional_pool=True"),
        ("vit_quick_gelu", {"vision_cfg__mlp_ratio": 4.5}, "mlp_ratio=4.5"),
        ("vit_quick_gelu", {"vision_cfg__registers": 4}, "registers=4, whose meaning"),
        ("vit_quick_gelu", {"vision_cfg__head_width": 48}, "24 does not divide into 0 heads"),
        ("vit_quick_gelu", {"vision_cfg__image_size": 30}, "do not divide into patches of 8x8"),
        ("vit_quick_gelu", {"vision_cfg__image_size": [32, 40]}, "not the side of a square"),
        ("vit_quick_gelu", {"text_cfg__no_causal_mask": True}, "no_causal_mask=True"),
        ("vit_quick_gelu", {"text_cfg__pool_type": "last"}, "pool_type='last'"),
        ("vit_quick_gelu", {"text_cfg__pool_type": "eos"}, "pool_type='eos' of token 2"),
        ("vit_quick_gelu", {"text_cfg__proj_bias": True}, "proj_bias=True"),
        (
            "vit_quick_gelu",
            {"text_cfg__tokenizer_kwargs": {"clean": "canonicalize"}},
            "clean='canonicalize'",
        ),
        ("vit_quick_gelu", {"multimodal_cfg": {}}, "multimodal_cfg"),
        ("vit_quick_gelu", {"preprocess_cfg__interpolation": "nearest"}, "interpolation='nearest'"),
        ("vit_quick_gelu", {"preprocess_cfg__fill_color": 255}, "fill_color=255"),
        ("vit_quick_gelu", {"preprocess_cfg__std": [0.2, 0.2]}, "not three numbers"),
        ("vit_quick_gelu", {"quick_gelu": False, "embed_dim": 0}, "embed_dim=0"),
        ("resnet_bert", {"vision_cfg__timm_proj": "mlp"}, "timm_proj='mlp'"),
        ("resnet_bert", {"vision_cfg__timm_pool": "abs_attn"}, "timm_pool='abs_attn'"),
        ("resnet_bert", {"vision_cfg__timm_model_name": "convnext_base"}, "'convnext_base'"),
        ("resnet_bert", {"text_cfg__hf_proj_type": "gated"}, "hf_proj_type='gated'"),
        ("resnet_bert", {"text_cfg__hf_pooler_type": "max_pooler"}, "hf_pooler_type='max_pooler'"),
        ("resnet_bert", {"text_cfg__context_length": 21}, "20 positions"),
        ("resnet_bert", {"embed_dim": 20}, "hf_proj_type=null, but the text encoder is 16 wide"),
        # Its norm would come after the mean.
        ("vit_trunk_token", {"vision_cfg__timm_pool": "avg"}, "timm_pool='avg'"),
    ],
)
def test_settings_of_open_clip_that_are_not_followed_are_refused(case, change, match, copy):
    folder = copy(case)
    write_config(folder, **change)
    with pytest.raises(UserError, match=match) as raised:
        two_towers.layout_of(folder)
    assert open_clip.CONFIG in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("file", "change", "match"),
    [
        ("config.json", {"vision_config": {"hidden_act": "silu"}}, "hidden_act='silu'"),
        ("config.json", {"vision_config": {"intermediate_size": 512}}, "intermediate_size=512"),
        ("config.json", {"vision_config": {"image_size": 64}}, "cropped to 32 .*reads 64"),
        ("config.json", {"text_config": {"hidden_act": "silu"}}, "hidden_act='silu'"),
        ("preprocessor_config.json", {"resample": 0}, "resample=0"),
        ("preprocessor_config.json", {"do_center_crop": False}, "do not give a full square"),
        ("preprocessor_config.json", {"crop_size": 40}, "do not give a full square"),
        ("preprocessor_config.json", {"do_resize": False}, "do_resize=False"),
        ("preprocessor_config.json", {"do_pad": True}, "do_pad=True"),
        ("preprocessor_config.json", {"rescale_factor": 1}, "rescale_factor=1"),
        ("preprocessor_config.json", {"size": {"longest_edge": 32}}, "size=.*longest_edge"),
        ("preprocessor_config.json", {"image_processor_type": "ViTImageProcessor"}, "ViTImage"),
    ],
)
def test_settings_of_transformers_that_are_not_followed_are_refused(file, change, match, copy):
    folder = copy("hf_quick_gelu")
    about = json.loads((folder / file).read_text())
    for name, value in change.items():
        about[name] = about[name] | value if name.endswith("_config") else value
    (folder / file).write_text(json.dumps(about))
    with pytest.raises(UserError, match=match):
        two_towers.layout_of(folder)


@pytest.mark.parametrize(
    ("about", "match"),
    [
        ({"model_type": "siglip"}, "'siglip'.*CLIPModel.*open_clip"),
        ({"model_type": "align"}, "'align'"),
        ({"architecture": "resnet50"}, "'resnet50'"),
        ({"architectures": ["BlipModel"]}, "BlipModel"),
        (None, "no open_clip_config.json"),
    ],
)
def test_a_folder_of_another_model_is_refused_by_what_it_is(about, match, tmp_path):
    if about is not None:
        (tmp_path / "config.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match=match):
        two_towers.read(str(tmp_path))


@pytest.mark.parametrize("text", ["", "[]", "{", "version https://git-lfs.github.com/spec/v1"])
def test_a_damaged_config_is_an_error_that_names_it(text, copy):
    folder = copy("vit_quick_gelu")
    (folder / open_clip.CONFIG).write_text(text)
    with pytest.raises(UserError, match=open_clip.CONFIG):
        two_towers.read(str(folder))


# --- the hub, and files that lie elsewhere --------------------------------------------------------


def test_a_model_of_the_hub_is_fetched_once_and_without_what_is_not_needed(hub_of, copy):
    folder = copy("resnet_bert")
    (folder / "model.safetensors").write_bytes(b"timm's, not needed")
    with hub_of({"someone/clip": folder}) as asked:
        fetched = two_towers.read("someone/clip")
        assert not any(path.endswith("/model.safetensors") for path in asked)
    cached = two_towers.read("someone/clip")  # nothing is served any more
    for found in (fetched, cached):
        jax.tree.map(
            np.testing.assert_array_equal,
            found.variables,
            two_towers.read(str(folder)).variables,
        )
        assert (found.tokenizer / "vocab.txt").is_file()


def test_config_and_tokenizer_of_the_text_encoder_may_be_where_the_config_says(hub_of, copy):
    folder = copy("resnet_bert")
    text = folder.with_name("text")
    text.mkdir()
    for name in ("config.json", "vocab.txt"):
        (folder / name).rename(text / name)
    told = []
    with hub_of({"someone/text": text}):
        found = two_towers.read(str(folder), tell=told.append)
    assert (found.tokenizer / "vocab.txt").read_text() == (text / "vocab.txt").read_text()
    assert "that of someone/text is taken" in told[0]


def test_without_them_the_error_says_which_files_to_put_there(hub_of, copy):
    folder = copy("resnet_bert")
    (folder / "vocab.txt").unlink()
    with hub_of({}), pytest.raises(UserError, match=r"no tokenizer.*files of someone/text there"):
        two_towers.read(str(folder))
    (folder / "config.json").unlink()
    with hub_of({}), pytest.raises(UserError, match=r"Put the config.json of someone/text into"):
        two_towers.read(str(folder))


def test_the_tokenizer_of_openais_models_is_found_for_their_vocabulary_alone(copy, monkeypatch):
    folder = copy("vit_quick_gelu")
    write_config(folder, text_cfg__hf_tokenizer_name=None)
    assert two_towers.layout_of(folder).tokenizer == ""
    write_config(folder, text_cfg__vocab_size=49408)
    assert two_towers.layout_of(folder).tokenizer == "openai/clip-vit-base-patch32"
    folder = copy("hf_quick_gelu")
    assert two_towers.layout_of(folder).tokenizer == ""
    about = json.loads((folder / "config.json").read_text())
    about["text_config"]["vocab_size"] = 49408
    (folder / "config.json").write_text(json.dumps(about))
    assert two_towers.layout_of(folder).tokenizer == "openai/clip-vit-base-patch32"
