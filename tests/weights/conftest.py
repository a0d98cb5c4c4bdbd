"""Weights of a small encoder of each kind, in files."""

import contextlib
import json

import jax.numpy as jnp
import ml_dtypes
import pytest
import safetensors.numpy
from hub import serve
from huggingface_hub import constants
from weights_files import ROBERTA, in_a_file

from otter_jax.weights import encoders


@pytest.fixture(scope="session")
def resnet():
    """A ResNet-18's tensors, with a classifier of 7 classes."""
    module = encoders.load_image("", arch="resnet18").module.clone(num_classes=7)
    return in_a_file(module, jnp.zeros((1, 32, 32, 3)), dtype=ml_dtypes.bfloat16)


@pytest.fixture
def text_folder(tmp_path):
    """A folder as the hub's repositories are, with a file that no one here needs."""
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(ROBERTA))
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\notter")
    (folder / "flax_model.msgpack").write_bytes(b"not needed")
    module = encoders.load_text(str(folder), pretrained=False).module
    tensors = in_a_file(module, jnp.zeros((1, 2), int), jnp.ones((1, 2), bool))
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.fixture
def hub_of(monkeypatch, tmp_path):
    """Serves repositories as the hub, with an empty cache on this side."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    @contextlib.contextmanager
    def serving(repositories):
        with serve(repositories) as (address, asked):
            monkeypatch.setattr(constants, "ENDPOINT", address)
            files = address + "/{repo_id}/resolve/{revision}/{filename}"
            monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
            yield asked

    return serving
