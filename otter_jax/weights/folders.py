"""Folders of weights as timm, transformers and sentence-transformers read them."""

import dataclasses
import json
import pathlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from otter_jax.errors import UserError
from otter_jax.models.bert import Bert
from otter_jax.models.efficientnet import EfficientNet
from otter_jax.models.mobilenet import MobileNet
from otter_jax.models.resnet import ResNet
from otter_jax.models.towers import Towers
from otter_jax.models.vit import ACTIVATIONS, ViT
from otter_jax.run import directory
from otter_jax.weights import hub, naming, tensors
from otter_jax.weights.tensors import Tensors


def check_architecture(folder: Path, arch: str, module: nn.Module) -> None:
    """Raises UserError if a folder's config names another architecture than `arch`.

    Names and shapes of tensors do not tell a padding or an activation.
    """
    file = folder / "config.json"
    if not file.is_file():
        return
    try:
        about = json.loads(file.read_text("utf-8"))
        theirs = about.get("architecture")  # timm's
        if about.get("model_type") in ("clip", "clip_vision_model"):
            vision = about.get("vision_config") or about
            theirs = vision.get("hidden_act", "quick_gelu")
    except (ValueError, AttributeError):
        return  # the weights themselves do not need it
    # timm gives OpenAI's weights under both of its CLIPs, with and without quickgelu.
    ours = arch.removesuffix("_mean").replace("_quickgelu", "")
    if isinstance(module, ViT) and theirs in ACTIVATIONS:
        ours = module.activation
    if theirs and theirs.replace("_quickgelu", "") != ours:
        raise UserError(
            f"{file} says {theirs}, but model.img.arch={arch!r} is {ours}. Choose the arch that "
            "fits, or give the file of weights itself."
        )


def check_pixels(folder: Path, mean: Sequence[float], std: Sequence[float]) -> None:
    """Raises UserError if a folder's config names another mean or deviation of the pixels.

    Both are per channel, in 0..255; a folder from timm says what its weights are used to.
    """
    try:
        about = json.loads((folder / "config.json").read_text("utf-8"))
        theirs = about["pretrained_cfg"]
        theirs = {key: [255 * float(x) for x in theirs[key]] for key in ("mean", "std")}
        same = np.allclose(list(theirs.values()), (mean, std), rtol=0, atol=1)
    except (OSError, ValueError, KeyError, TypeError):
        return  # it does not say
    if not same:
        flags = (
            f"--config.model.{key}='({', '.join(f'{x:.6g}' for x in values)})'"
            for key, values in theirs.items()
        )
        raise UserError(
            f"The weights in {folder} are used to other pixels than mean={tuple(mean)} and "
            f"std={tuple(std)} make. Set {' '.join(flags)}."
        )


def with_pruned(module: nn.Module, folder: Path) -> nn.Module:
    """The module with the channels that a folder's config says, if it is of a pruned network."""
    try:
        blocks = json.loads((folder / "config.json").read_text("utf-8")).get("pruned")
        kept = {name: tuple(n) if isinstance(n, list) else n for name, n in (blocks or {}).items()}
    except (OSError, ValueError, AttributeError):
        return module  # the weights themselves do not need it
    return module.clone(pruned=tuple(kept.items())) if kept else module


def write_timm(
    folder: Path,
    values: tensors.Tensors,
    module: nn.Module,
    *,
    arch: str,
    classes: int,
    size: int,
    resize: int,
    mean: Sequence[float],
    std: Sequence[float],
    **more: Any,
) -> None:
    """A new folder that timm opens as "local-dir:FOLDER": an image encoder of `classes` outputs.

    `size` of the crop and `resize` are in pixels, `mean` and `std` in 0..255; `more` goes into
    config.json.
    """
    folder.mkdir(parents=True)
    tensors.write(folder / "model.safetensors", values)
    arguments: dict[str, Any] = {}
    if isinstance(module, ViT):
        arguments["img_size"] = size  # timm resamples the position embeddings as it loads them
        if module.pool == "mean":
            arguments |= {"global_pool": "avg", "fc_norm": False}
    about = {
        "architecture": arch.removesuffix("_mean"),
        "model_args": arguments,
        "num_classes": classes,
        "num_features": module.width,
        "pruned": dict(kept(module)),
        **more,
        "pretrained_cfg": {
            "input_size": [3, size, size],
            "crop_pct": size / resize,
            "interpolation": "bicubic",
            "mean": [value / 255 for value in mean],
            "std": [value / 255 for value in std],
            "num_classes": classes,
            "classifier": module.classifier,
        },
    }
    directory.write_json(folder / "config.json", about)


def kept(model: nn.Module) -> tuple[tuple[str, Any], ...]:
    """The blocks of a network that have fewer channels than their architecture, and how many."""
    return model.pruned if isinstance(model, ResNet | EfficientNet | MobileNet) else ()


def tower(variables: dict[str, Any], name: str) -> dict[str, Any]:
    """One tower's own variables, {"params", "batch_stats"}."""
    return {kind: tree[name] for kind, tree in variables.items() if name in tree}


def image_tensors(model: Towers, variables: dict[str, Any]) -> Tensors:
    """The image encoder with its head as the classifier, in timm's names."""
    own = tower(variables, "img")
    own["params"] = own["params"] | {model.img.classifier: variables["params"]["img_head"]}
    return naming.export(own, naming.families(model.img)[0])


def text_tensors(model: Towers, variables: dict[str, Any]) -> Tensors:
    """The text encoder in Hugging Face's names."""
    return naming.export(tower(variables, "txt"), naming.families(model.txt)[0])


def write_image(
    folder: pathlib.Path, config: ConfigDict, model: Towers, variables: dict[str, Any]
) -> None:
    """A folder that timm opens as "local-dir:FOLDER"."""
    write_timm(
        folder,
        image_tensors(model, variables),
        model.img,
        arch=config.model.img.arch,
        classes=model.dim,
        size=config.data.image_size,
        resize=config.data.resize,
        mean=model.mean,
        std=model.std,
    )


def write_text(
    folder: pathlib.Path,
    config: ConfigDict,
    model: Towers,
    variables: dict[str, Any],
    source: pathlib.Path,
) -> None:
    """A folder that transformers opens, and sentence-transformers if it pools by the mean.

    The config and the tokenizer are those of `source`.
    """
    folder.mkdir(parents=True)
    for name in hub.TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    if isinstance(model.txt, Bert):
        about = {"model_type": "bert"} | json.loads((source / "config.json").read_text("utf-8"))
    else:  # there it may be a whole CLIP's; here is one side
        about = dataclasses.asdict(model.txt.config.with_dropout(0.0))
        about["model_type"] = "clip_text_model"
    about.pop("torch_dtype", None)  # of the file there; here it is float32
    about["dtype"] = "float32"
    directory.write_json(folder / "config.json", about)
    tensors.write(folder / "model.safetensors", text_tensors(model, variables))

    steps = [("", "Transformer"), ("1_Pooling", "Pooling")]
    if model.txt_width != model.dim:
        steps.append(("2_Dense", "Dense"))
        head = variables["params"]["txt_head"]
        linear = {
            "linear.weight": np.ascontiguousarray(head["kernel"].T),
            "linear.bias": head["bias"],
        }
        (folder / "2_Dense").mkdir()
        tensors.write(folder / "2_Dense" / "model.safetensors", linear)
        about = {"in_features": model.txt_width, "out_features": model.dim, "bias": True}
        about["activation_function"] = "torch.nn.modules.linear.Identity"
        directory.write_json(folder / "2_Dense" / "config.json", about)
    if not isinstance(model.txt, Bert):
        return  # CLIP's text transformer is read at one token, which that library has no name for
    steps.append(("3_Normalize", "Normalize"))
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(steps)
    ]
    directory.write_json(folder / "modules.json", modules)
    directory.write_json(
        folder / "1_Pooling" / "config.json",
        {"word_embedding_dimension": model.txt_width, "pooling_mode_mean_tokens": True},
    )
    directory.write_json(
        folder / "sentence_bert_config.json",
        {"max_seq_length": config.data.max_tokens, "do_lower_case": False},
    )
