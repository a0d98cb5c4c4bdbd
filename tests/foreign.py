"""Folders of small CLIPs of other projects, as tests/golden/two_towers.json describes them."""

import json
import pathlib

import numpy as np
import safetensors.numpy
from golden.draw import tensor
from golden.small_convnets import RESNET

from otter_jax.models.resnet import ResNet
from otter_jax.models.vit import ViT
from otter_jax.weights import encoders

GOLDEN = pathlib.Path(__file__).parent / "golden"
CASES = json.loads((GOLDEN / "two_towers.json").read_text("utf-8"))
VERSIONS = CASES.pop("versions")
# What make_two_towers.py registers with timm.
SMALL = {
    "small_resnet": (ResNet, RESNET),
    "small_vit": (ViT, {"patch": 8, "width": 64, "heads": 4, "depth": 1, "image_size": 32}),
}


def register(patch):
    """Makes the small image encoders known by their names."""
    for name, made in SMALL.items():
        patch.setitem(encoders.IMAGE_ENCODERS, name, made)


def weights_of(case):
    """The tensors of a case's file, by name."""
    about = CASES[case]
    drawn = {name: np.asarray(tensor(name, shape)) for name, shape in about["tensors"].items()}
    return drawn | {name: np.zeros((), np.int64) for name in about["counts"]}


def write(folder, case):
    """Writes a case's folder, which must not be there yet, and returns it."""
    about = CASES[case]
    folder.mkdir(parents=True)
    for name, text in about["files"].items():
        (folder / name).write_text(text, "utf-8")
    safetensors.numpy.save_file(weights_of(case), folder / about["weights"])
    return folder


def pictures():
    """The pictures of make_two_towers.py, bytes [H, W, 3]."""
    rng = np.random.RandomState(0)
    for height, width in ((61, 83), (83, 61), (35, 47)):
        blocks = rng.randint(0, 256, (height // 5 + 1, width // 5 + 1, 3), np.uint8)
        yield blocks.repeat(5, 0).repeat(5, 1)[:height, :width]
