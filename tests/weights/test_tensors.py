"""Tensors come out of files as they are, and nothing in a file is run."""

import argparse
import sys
from collections import OrderedDict
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
