"""What a config says of an image encoder and its tensors cannot show is checked, or told."""

import json

import pytest
import safetensors.numpy
from weights_files import VALUES

from otter_jax.configs.common import CLIP_MEAN, CLIP_STD
from otter_jax.errors import UserError
from otter_jax.run import model as models
from otter_jax.weights import encoders, folders, image_config

VIT, CLIP = "vit_small_patch32_224", "vit_base_patch32_clip_224"


def write(folder, **about):
    (folder / "config.json").write_text(json.dumps(about))
    return folder


def module_of(arch):
    make, arguments = encoders.IMAGE_ENCODERS[arch]
    return make(**arguments)


AVERAGE = {"global_pool": "avg", "model_args": {"fc_norm": False}}
ARGUMENTS = {"global_pool": "avg", "fc_norm": False}
REFUSED = {
    "mean for token": (VIT, AVERAGE, f"has 'token': choose the arch that fits, {VIT}_mean,"),
    "token for mean": (f"{VIT}_mean", {"global_pool": "token"}, f"that fits, {VIT},"),
    "in model_args": (VIT, {"model_args": ARGUMENTS}, f"that fits, {VIT}_mean,"),
    "norm after the mean": (f"{VIT}_mean", {"global_pool": "avg"}, "before it"),
    "attention pooling": (VIT, {"global_pool": "map"}, "'map'"),
    "maximum": ("resnet18", {"global_pool": "max"}, "global_pool='max'"),
    "activation": ("resnet18", {"model_args": {"act_layer": "silu"}}, "act_layer='silu'"),
    "activation of CLIP": (
        CLIP,
        {"model_args": {"act_layer": "quick_gelu"}},
        "that fits, vit_base_patch32_clip_quickgelu_224,",
    ),
    "heads": (CLIP, {"model_type": "clip_vision_model", "num_attention_heads": 8}, "num_heads=8"),
    "stride": ("resnet18", {"model_args": {"output_stride": 8}}, "output_stride=8"),
    "an unknown argument": ("resnet18", {"model_args": {"aa_layer": "blur"}}, "no such argument"),
    "one channel": ("resnet18", {"pretrained_cfg": {"input_size": [1, 28, 28]}}, "1 channels"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_is_built_otherwise_is_refused_with_the_arch_that_fits(name, tmp_path):
    arch, about, words = REFUSED[name]
    with pytest.raises(UserError) as error:
        image_config.check_arguments(write(tmp_path, **about), arch, module_of(arch))
    assert words in str(error.value)


TAKEN = {
    "nothing said": ("resnet18", {}),
    "average": ("tf_efficientnet_lite0", {"global_pool": "avg", "model_args": {}}),
    "mean without a norm after it": (f"{VIT}_mean", AVERAGE),
    "token": (VIT, {"global_pool": "token", "model_args": {"img_size": 96, "drop_rate": 0.1}}),
    "the same activation by another name": (
        "efficientnet_b0",
        {"model_args": {"act_layer": "swish"}},
    ),
    "no object": ("resnet18", {"model_args": None, "pretrained_cfg": None}),
}


@pytest.mark.parametrize("name", TAKEN)
def test_a_model_that_is_built_like_this_is_read(name, tmp_path):
    arch, about = TAKEN[name]
    said = []
    image_config.check_arguments(write(tmp_path, **about), arch, module_of(arch), tell=said.append)
    assert not said


@pytest.mark.parametrize("arch", [VIT, f"{VIT}_mean", CLIP, "resnet18", "tf_efficientnet_lite0"])
def test_an_exported_folder_is_read_as_its_own_arch_alone(arch, tmp_path):
    sizes = {"classes": 3, "size": 96, "resize": 100, "mean": (127.0,) * 3, "std": (128.0,) * 3}
    module, folder, said = module_of(arch), tmp_path / "image", []
    folders.write_timm(folder, {"bias": VALUES}, module, arch=arch, **sizes)
    folders.check_architecture(folder, arch, module)
    image_config.check_arguments(folder, arch, module, tell=said.append)
    assert not said
    assert image_config.pixels_of(folder) == (sizes["mean"], sizes["std"])
    if arch == f"{VIT}_mean":
        with pytest.raises(UserError, match=f"choose the arch that fits, {arch},"):
            image_config.check_arguments(folder, VIT, module_of(VIT))


def test_another_interpolation_and_openais_activation_are_told(tmp_path):
    cfg = {"interpolation": "bilinear", "notes": ["natively QuickGELU, use quickgelu variant"]}
    said = []
    folder = write(tmp_path, pretrained_cfg=cfg)
    image_config.check_arguments(folder, CLIP, module_of(CLIP), tell=said.append)
    assert len(said) == 2
    assert "by bilinear interpolation" in said[0]
    assert said[1].endswith("that is vit_base_patch32_clip_quickgelu_224.")


def test_other_pixels_than_the_weights_are_used_to_are_told_with_the_flags(
    resnet, text_folder, tmp_path
):
    cfg = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    folder = write(tmp_path, architecture="resnet18", pretrained_cfg=cfg)
    safetensors.numpy.save_file(resnet, tmp_path / "model.safetensors")
    img = {"arch": "resnet18", "weights": str(folder), "mean": CLIP_MEAN, "std": CLIP_STD}
    txt = {"weights": str(text_folder), "dropout": None, "pretrained": True}
    said = []
    towers = {"dim": 8, "img": img, "txt": txt, "dtype": "float32"}
    models.load_towers(**towers, tell=said.append)
    (note,) = said
    assert "--config.model.img.mean='(123.675, 116.28, 103.53)'" in note
    said.clear()
    img |= {"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)}
    models.load_towers(**towers, tell=said.append)
    assert not said


def test_the_pixels_of_hugging_faces_clip_are_those_of_its_preprocessor(tmp_path):
    about = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(about))
    assert image_config.pixels_of(tmp_path) == ((127.5,) * 3, (63.75,) * 3)
    (tmp_path / "preprocessor_config.json").write_text("{")
    assert image_config.pixels_of(tmp_path) is None


PIXELS = (127.5, 127.5, 127.5)
SAID = {
    "of timm": ("config.json", {"pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}),
    "of timm before 0.6": ("config.json", {"mean": [0.5] * 3, "std": [0.5] * 3}),
    "in 0..255": ("preprocessor_config.json", {"image_mean": PIXELS, "image_std": PIXELS}),
}


@pytest.mark.parametrize("name", SAID)
def test_pixels_are_read_wherever_a_folder_says_them(name, tmp_path):
    file, about = SAID[name]
    (tmp_path / file).write_text(json.dumps(about))
    assert image_config.pixels_of(tmp_path) == (PIXELS, PIXELS)


def test_pictures_that_were_not_normalised_were_in_0_to_1(tmp_path):
    about = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_normalize": False}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(about))
    assert image_config.pixels_of(tmp_path) == ((0, 0, 0), (255, 255, 255))
