"""Tensors come out of files as they are, and nothing in a file is run."""

import argparse
import datetime
import gzip
import io
import pathlib
import pickle
import sys
import zipfile
from collections import Counter, OrderedDict, defaultdict, deque
from unittest import mock

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from pickles import Run, Tensor, write_legacy, write_zip
from weights_files import VALUES

from otter_jax.errors import UserError
from otter_jax.weights.tensors import read

both_formats = pytest.mark.parametrize("write", [write_zip, write_legacy])
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
    more = {
        "best": np.float64(3),
        "args": argparse.Namespace(a=1),
        "milestones": Counter({30: 1}),
        "losses": defaultdict(list, {1: [0.5]}),
        "last": deque([1, 2]),
        "out": pathlib.PurePosixPath("/runs/1"),
        "dtype": np.dtype("float32"),
        "means": np.arange(3.0),
        "when": datetime.datetime(2026, 1, 2),
        "ids": {1, 2},
        "range": range(3),
    }
    with mock.patch.dict(sys.modules, {"numpy.core.multiarray": np._core.multiarray}):
        write(path, {"state_dict": TREE} | more)
    assert read(path).keys() == TREE.keys()


EMA = OrderedDict(weight=Tensor(VALUES, (2, 3), (3, 1)))


@pytest.mark.parametrize(
    "top", ["model_state_dict", "model", "net", "teacher", "state_dict_ema", "model_ema", "mine"]
)
def test_the_only_part_of_a_file_that_holds_tensors_is_taken(top, tmp_path):
    write_zip(tmp_path / "model.pth", {"epoch": 3, top: TREE, "optimizer": {"lr": 0.1}})
    said = []
    assert read(tmp_path / "model.pth", tell=said.append).keys() == TREE.keys()
    assert bool(said) == (top == "mine")  # an unknown name is said


def test_averaged_weights_beside_others_are_said_and_taken_on_request(tmp_path):
    path = tmp_path / "model.pth"
    write_zip(path, {"state_dict": TREE, "state_dict_ema": EMA, "epoch": 3})
    said = []
    assert read(path, tell=said.append).keys() == TREE.keys()
    (note,) = said
    assert "are those of 'state_dict'; beside it: state_dict_ema" in note
    assert "(weights=PATH#state_dict_ema takes it)" in note
    np.testing.assert_array_equal(
        read(path, part="state_dict_ema", tell=said.append)["weight"], [[0, 1, 2], [3, 4, 5]]
    )
    assert len(said) == 1
    with pytest.raises(UserError, match="no part 'ema': there are 'state_dict', 'state_dict_ema'"):
        read(path, part="ema")


def test_a_part_within_a_part_is_named_by_both(tmp_path):
    path = tmp_path / "model.pth"
    write_zip(path, {"model": {"student": TREE, "teacher": EMA}})
    assert read(path, part="model/teacher").keys() == EMA.keys()
    assert read(path).keys() == TREE.keys()


def test_parts_of_unknown_names_are_named_and_none_is_taken(tmp_path):
    path = tmp_path / "model.pth"
    write_zip(path, {"generator": TREE, "discriminator": EMA})
    with pytest.raises(UserError, match=r"2 parts \('generator', 'discriminator'\).*pth#generator"):
        read(path)


NOTHING = {
    "a dictionary of numbers": ({"epoch": 3, "lr": 0.1}, "a dictionary of 'epoch', 'lr'"),
    "a tensor": (TREE["weight"], "one tensor alone"),
    "a list": ([TREE["weight"]], "a list"),
}


@pytest.mark.parametrize("name", NOTHING)
def test_a_file_without_named_tensors_says_what_it_holds(name, tmp_path):
    tree, words = NOTHING[name]
    write_zip(tmp_path / "model.pth", tree)
    with pytest.raises(UserError, match=f"holds no named tensors, but {words}"):
        read(tmp_path / "model.pth")


def npz():
    file = io.BytesIO()
    np.savez(file, weight=VALUES)
    return file.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 90868376\n"
NO_WEIGHTS = {
    "a Git LFS pointer": (LFS, "is a Git LFS pointer.*`git lfs pull`"),
    "a web page": (b"\n<!DOCTYPE html><html><body>404</body></html>", "is a web page"),
    "an error of a store": (b'<?xml version="1.0"?><Error/>', "is XML"),
    "an error of the hub": (b"Entry not found", "a server's error"),
    "nothing": (b"", "is empty"),
    "Keras's": (b"\x89HDF\r\n\x1a\n" + bytes(100), "is an HDF5 file"),
    "compressed": (gzip.compress(b"weights"), "is compressed by gzip"),
    "NumPy's": (npz(), "not PyTorch's: it holds weight.npy, no data.pkl"),
}


@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
@pytest.mark.parametrize("name", NO_WEIGHTS)
def test_a_file_that_is_no_weights_is_named(name, suffix, tmp_path):
    content, words = NO_WEIGHTS[name]
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    if name == "NumPy's":
        path = path.rename(tmp_path / "model.pth")
    with pytest.raises(UserError, match=words):
        read(path)


def test_safetensors_are_known_by_their_content_whatever_their_name(tmp_path):
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(safetensors.numpy.save({"weight": VALUES}))
    np.testing.assert_array_equal(read(path)["weight"], VALUES)
    with pytest.raises(UserError, match="has no parts such as 'ema'"):
        read(path, part="ema")


def test_a_script_is_refused_by_its_kind(tmp_path):
    pickled = b"c__torch__.torch.nn\nResNet\n."
    with zipfile.ZipFile(tmp_path / "model.pt", "w") as archive:
        archive.writestr("model/data.pkl", pickled)
    with pytest.raises(UserError, match=r"is a TorchScript program.*state_dict\(\)"):
        read(tmp_path / "model.pt")


# A tuple that holds the one before twice, fifty times: hashing it visits 2^50 tuples.
DOUBLED = b")q\x00" + b"".join(b"0h%ch%c\x86q%c" % (n, n, n + 1) for n in range(50))
DEEP = pickle.MARK + pickle.EMPTY_TUPLE + pickle.TUPLE1 * 200_000
BOMBS = {
    # 2**28 places for memorised objects, each of 8 bytes.
    "memory": (pickle.NONE + pickle.LONG_BINPUT + (2**28).to_bytes(4, "little"), "more memory"),
    # Hashed by recursion, as a key of a dictionary.
    "nesting": (pickle.EMPTY_DICT + DEEP + pickle.NONE + pickle.SETITEMS, "levels of nesting"),
    "doubling": (pickle.EMPTY_DICT + DOUBLED + pickle.NONE + pickle.SETITEM, "over and over"),
    "doubling in a set": (b"\x8f(" + DOUBLED + b"\x90", "over and over"),
}


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("name", BOMBS)
def test_what_would_end_the_process_is_refused_before_it_is_read(name, packed, tmp_path):
    content, words = BOMBS[name]
    content = pickle.PROTO + b"\x02" + content + pickle.STOP
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    if packed:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("model/data.pkl", content)
    with pytest.raises(UserError, match=words):
        read(path)


def test_an_archive_that_unpacks_to_far_more_is_refused(tmp_path):
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/data.pkl", b"N." + bytes(2**24))
    with pytest.raises(UserError, match="unpacks to far more than its size"):
        read(path)


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


def test_numbers_beside_a_model_are_no_part_of_it(tmp_path):
    path = tmp_path / "model.pth"
    best = Tensor(VALUES, (), ())
    write_zip(path, {"best_acc1": best, "state_dict": TREE})  # as PyTorch's ImageNet example does
    assert read(path).keys() == TREE.keys()


def test_a_second_model_of_an_unknown_name_is_told_and_an_optimiser_is_not(tmp_path):
    path, said = tmp_path / "model.pth", []
    write_zip(path, {"model": TREE, "averaged": TREE, "optimizer": {"exp_avg": TREE}})
    read(path, tell=said.append)
    (note,) = said
    assert "those of 'model'; beside it: averaged (" in note


@pytest.mark.parametrize("zeros", [True, False])
def test_matrices_of_zeros_alone_are_told(zeros, tmp_path):
    path, said = tmp_path / "model.safetensors", []
    kernel = np.zeros((2, 3), np.float32)
    kernel[1, 2] = not zeros
    # A bias, and the one kind of token that RoBERTa has, are zeros in good files.
    more = {"bias": np.zeros(3, np.float32), "types": np.zeros((1, 3), np.float32)}
    safetensors.numpy.save_file({"kernel": kernel} | more, path)
    read(path, tell=said.append)
    expected = [f"{path}: 1 of 1 matrices are all zeros, such as kernel; is the file complete?"]
    assert said == expected * zeros


def test_numbers_of_a_big_endian_machine_are_refused(tmp_path):
    path = tmp_path / "model.pth"
    write_zip(path, TREE)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/byteorder", "big")
    with pytest.raises(UserError, match="big-endian"):
        read(path)
    write_legacy(path, TREE, little_endian=False)
    with pytest.raises(UserError, match="big-endian"):
        read(path)
