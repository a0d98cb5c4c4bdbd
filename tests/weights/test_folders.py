"""Folders of weights say what they are for, and are written so that others say the same."""

import json
import re

import pytest
import safetensors.numpy
from weights_files import VALUES

from otter_jax.configs.common import CLIP_MEAN, CLIP_STD
from otter_jax.errors import UserError
from otter_jax.models.resnet import RESNETS, ResNet
from otter_jax.run.model import load_towers
from otter_jax.run.trained import image_encoder
from otter_jax.weights import encoders, folders

SIZES = {"classes": 3, "size": 192, "resize": 224, "mean": (127.0,) * 3, "std": (128.0,) * 3}


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
