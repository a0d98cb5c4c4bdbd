"""Checks what the config.json of an image folder says, and tensors cannot show, against a module.

timm's files say how a model is built (model_args, global_pool) and what its pictures were
(pretrained_cfg); those of Hugging Face's CLIP have a vision_config and preprocessor_config.json.
"""

from pathlib import Path
from typing import Any

import numpy as np
from flax import linen as nn

from otter_jax.errors import UserError
from otter_jax.files import read_json
from otter_jax.models.efficientnet import EfficientNet
from otter_jax.models.mobilenet import MobileNet
from otter_jax.models.vit import ViT
from otter_jax.weights.tensors import Tell, quiet

Pixels = tuple[tuple[float, ...], tuple[float, ...]]
# Arguments of timm's models that change nothing of what is computed from given weights here.
NO_EFFECT = {
    "num_classes", "img_size", "pretrained", "drop_rate", "drop_path_rate", "drop_block_rate",
    "proj_drop_rate", "attn_drop_rate", "patch_drop_rate", "pos_drop_rate", "dynamic_img_size",
    "strict_img_size", "scriptable", "exportable",
}  # fmt: skip
ACTIVATIONS = {"swish": "silu", "hardswish": "hard_swish", "quickgelu": "quick_gelu"}  # same
AVERAGES = ("avg", "fast", "fastavg")  # names of one pooling
INTERPOLATIONS = ("bicubic", "random", 3)  # the last is Pillow's number
REMEDY = "or give the file of weights itself, if it is to be read as {arch} all the same"


def check_arguments(folder: Path, arch: str, module: nn.Module, *, tell: Tell = quiet) -> None:
    """Raises UserError if a folder's config builds another model than `module`, which is `arch`.

    Names and shapes of tensors do not show pooling, activation or heads. `tell` is told of another
    interpolation than the one here.
    """
    about = _read(folder / "config.json")
    file = folder / "config.json"
    given = about.get("model_args")
    given = dict(given) if isinstance(given, dict) else {}
    for key in ("global_pool", "act_layer"):  # timm repeats them above
        if about.get(key) is not None:
            given.setdefault(key, about[key])
    if about.get("model_type") in ("clip", "clip_vision_model"):
        vision = about.get("vision_config") or about
        given |= {"num_heads": vision.get("num_attention_heads", 12)}
    own = arguments(module)
    fc_norm = given.pop("fc_norm", None)
    for key, value in given.items():
        if key in NO_EFFECT or value is None:
            continue
        theirs = ACTIVATIONS.get(value, value) if isinstance(value, str) else value
        if key == "global_pool" and theirs in AVERAGES:
            theirs = "avg"
        if key not in own or own[key] != theirs:
            ours = f"has {own[key]!r}" if key in own else "has no such argument"
            raise UserError(
                f"{file} says {key}={value!r}, and {arch} {ours}: {_remedy(arch, key, theirs)}."
            )
        if key == "global_pool" and theirs == "avg" and isinstance(module, ViT) and fc_norm is None:
            fc_norm = True  # timm's default beside "avg"
    if fc_norm:
        raise UserError(
            f"{file} has its norm after the mean over patches (fc_norm), and {arch} before it: "
            f"{_remedy(arch, 'fc_norm', fc_norm)}."
        )
    _check_pictures(file, about, arch, module, tell)


def arguments(module: nn.Module) -> dict[str, Any]:
    """Returns timm's arguments that build such a module, as far as they are known."""
    own: dict[str, Any] = {"in_chans": 3, "output_stride": 32, "global_pool": "avg"}
    if isinstance(module, ViT):
        return {
            "in_chans": 3,
            "global_pool": "token" if module.pool == "token" else "avg",
            "act_layer": module.activation,
            "patch_size": module.patch,
            "embed_dim": module.width,
            "depth": module.depth,
            "num_heads": module.heads,
            "pre_norm": module.pre_norm,
            "class_token": True,
            "reg_tokens": 0,
            "mlp_ratio": 4,
            "qkv_bias": True,
            "init_values": None,
        }
    if isinstance(module, EfficientNet):
        return own | {"act_layer": "relu6" if module.lite else "silu"}
    return own | {"act_layer": "hard_swish" if isinstance(module, MobileNet) else "relu"}


def _remedy(arch: str, key: str, theirs: Any) -> str:
    """Returns what to do if an argument differs."""
    plain = arch.removesuffix("_mean")
    other = ""
    if arch.startswith("vit_"):
        if key == "global_pool" and theirs in ("token", "avg"):
            other = plain if theirs == "token" else f"{plain}_mean"
        elif key == "act_layer" and "_clip_" in arch and theirs in ("gelu", "quick_gelu"):
            quick = plain.replace("_quickgelu", "").replace("_clip_", "_clip_quickgelu_")
            end = arch.removeprefix(plain)
            other = (quick if theirs == "quick_gelu" else plain.replace("_quickgelu", "")) + end
    mend = f"choose the arch that fits, {other}" if other else "take other weights"
    return f"{mend}, {REMEDY.format(arch=arch)}"


def _check_pictures(
    file: Path, about: dict[str, Any], arch: str, module: nn.Module, tell: Tell
) -> None:
    """Checks what pretrained_cfg says of a model's pictures, other than mean and deviation."""
    cfg = _pictures(about)
    size = cfg.get("input_size")
    if isinstance(size, list) and len(size) == 3 and size[0] != 3:
        raise UserError(
            f"{file} is of pictures with {size[0]} channels; those here have 3. Take other weights."
        )
    way = cfg.get("interpolation")
    if way and way not in INTERPOLATIONS:
        tell(f"{file}: pictures were resized by {way} interpolation in training; here bicubic.")
    native = "quickgelu" in str(cfg.get("notes", "")).lower()
    if native and isinstance(module, ViT) and module.activation != "quick_gelu":
        other = arch.replace("_clip_", "_clip_quickgelu_")
        tell(f"{file} notes that the weights were trained with quick_gelu, that is {other}.")


def _pictures(about: dict[str, Any]) -> dict[str, Any]:
    """Returns what a config.json of timm's says of pictures: before timm 0.6 all of it did."""
    found = about.get("pretrained_cfg", about)
    return found if isinstance(found, dict) else {}


def pixels_of(folder: Path) -> Pixels | None:
    """Returns mean and deviation, per channel in 0..255, of the pictures of a folder's weights.

    None if its files do not say.
    """
    cfg = _pictures(_read(folder / "config.json"))
    theirs = _read(folder / "preprocessor_config.json")
    if "mean" in cfg:
        theirs = {"image_mean": cfg["mean"], "image_std": cfg.get("std")}
    elif theirs.get("do_normalize") is False:
        theirs = {"image_mean": [0, 0, 0], "image_std": [1, 1, 1]}
    try:
        mean, std = ([float(x) for x in theirs[key]] for key in ("image_mean", "image_std"))
    except (KeyError, TypeError, ValueError):
        return None
    if not len(mean) == len(std) == 3:
        return None
    most = 1 if max(mean) > 1 else 255  # some files give both in 0..255, as here
    return tuple(most * x for x in mean), tuple(most * x for x in std)


def is_same(one: Pixels, other: Pixels) -> bool:
    """Tells whether two means and deviations agree within 1 in 255."""
    return bool(np.allclose(one, other, rtol=0, atol=1))


def flags(section: str, pixels: Pixels) -> str:
    """Returns the flags that set mean and deviation of a config's section."""
    return " ".join(
        f"--config.{section}.{key}='({', '.join(f'{x:.6g}' for x in values)})'"
        for key, values in zip(("mean", "std"), pixels, strict=True)
    )


def _read(file: Path) -> dict[str, Any]:
    """Returns a JSON object; {} if there is none, since weights can be read without it."""
    try:
        found = read_json(file)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
