"""Reads the config of a weights folder, and writes folders for timm and transformers.

Such folders are timm's (image encoders), and those of transformers and sentence-transformers (text
encoders): weights, a config.json beside them, and for texts the files of the tokenizer.
"""

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flax import linen as nn
from ml_collections import ConfigDict

from otter_jax.errors import UserError
from otter_jax.files import read_json
from otter_jax.models.bert import Bert, Projection
from otter_jax.models.efficientnet import EfficientNet
from otter_jax.models.mobilenet import MobileNet
from otter_jax.models.resnet import ResNet
from otter_jax.models.towers import Towers
from otter_jax.models.vit import ACTIVATIONS, ViT
from otter_jax.weights import hub, naming, sentences, tensors
from otter_jax.weights.image_config import flags, is_same, pixels_of
from otter_jax.weights.tensors import Tensors


def check_architecture(folder: Path, arch: str, module: nn.Module) -> None:
    """Raises UserError if a folder's config names another architecture than `arch`.

    Names and shapes of tensors cannot show it: they do not depend on padding or activation.
    """
    file = folder / "config.json"
    if not file.is_file():
        return
    try:
        about = read_json(file)
        theirs = about.get("architecture")  # timm's
        if about.get("model_type") in ("clip", "clip_vision_model"):
            vision = about.get("vision_config") or about
            theirs = vision.get("hidden_act", "quick_gelu")
    except (ValueError, AttributeError):
        return  # an unreadable config is no obstacle: the weights can be read without it
    # timm gives OpenAI's weights under both of its CLIPs, with and without quickgelu.
    ours = arch.removesuffix("_mean").replace("_quickgelu", "")
    if isinstance(module, ViT) and theirs in ACTIVATIONS:
        ours = module.activation
    if theirs and str(theirs).replace("_quickgelu", "") != ours:
        raise UserError(
            f"{file} says {theirs}, but model.img.arch={arch!r} is {ours}. Choose the arch that "
            "fits, or give the file of weights itself."
        )


def check_pixels(folder: Path, mean: Sequence[float], std: Sequence[float]) -> None:
    """Raises UserError if a folder's config names another mean or deviation of the pixels.

    Both are per channel, in 0..255; the config of a timm folder says what its weights were trained
    with.
    """
    theirs = pixels_of(folder)
    if theirs and not is_same(theirs, (tuple(mean), tuple(std))):
        raise UserError(
            f"The weights in {folder} are used to other pixels than mean={tuple(mean)} and "
            f"std={tuple(std)} make. Set {flags('model', theirs)}."
        )


def with_pruned(module: nn.Module, folder: Path) -> nn.Module:
    """Returns the module with the channels that config.json says are kept."""
    try:
        blocks = read_json(folder / "config.json").get("pruned")
        kept = {name: tuple(n) if isinstance(n, list) else n for name, n in (blocks or {}).items()}
    except (OSError, ValueError, AttributeError):
        return module  # an unreadable config is no obstacle: the weights can be read without it
    return module.clone(pruned=tuple(kept.items())) if kept else module


def write_timm(
    folder: Path,
    values: Tensors,
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
    """Writes a new folder that timm opens as "local-dir:FOLDER": an image encoder.

    Args:
      folder: a path that does not exist yet.
      values: the tensors by timm's names.
      module: the encoder.
      arch: its name in `IMAGE_ENCODERS`.
      classes: the number of its outputs.
      size: side of the crop in pixels.
      resize: the shorter side before the crop in pixels.
      mean: per channel in 0..255.
      std: per channel in 0..255.
      more: further entries of config.json.
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
    _write_json(folder / "config.json", about)


def kept(model: nn.Module) -> tuple[tuple[str, Any], ...]:
    """Returns the pruned blocks, and how many channels each has kept."""
    return model.pruned if isinstance(model, ResNet | EfficientNet | MobileNet) else ()


def tower(variables: dict[str, Any], name: str) -> dict[str, Any]:
    """Returns the variables of one tower, {"params", "batch_stats"}, from those of both."""
    return {kind: tree[name] for kind, tree in variables.items() if name in tree}


def image_tensors(model: Towers, variables: dict[str, Any]) -> Tensors:
    """Returns the image encoder's tensors in timm's names, with its head as the classifier."""
    own = tower(variables, "img")
    own["params"] = own["params"] | {model.img.classifier: variables["params"]["img_head"]}
    return naming.export(own, naming.families(model.img)[0])


def text_tensors(model: Towers, variables: dict[str, Any]) -> Tensors:
    """Returns the text encoder's tensors in Hugging Face's names."""
    return naming.export(tower(variables, "txt"), naming.families(model.txt)[0])


def text_config(module: nn.Module, original: Path) -> dict[str, Any]:
    """Returns a text encoder's config.json; of BERT that of the folder it was loaded from."""
    if isinstance(module, Bert):
        about = read_json(original / "config.json")
        positions = module.config.roberta_positions
        about["model_type"] = "roberta" if positions else "bert"  # which may have been left out
    else:  # the original may describe a whole CLIP; only its text side is written
        about = dataclasses.asdict(module.config.with_dropout(0.0))
        about["model_type"] = "clip_text_model"
    about.pop("torch_dtype", None)  # the original's; these weights are float32
    return about | {"dtype": "float32"}


def write_image(folder: Path, config: ConfigDict, model: Towers, variables: dict[str, Any]) -> None:
    """Writes the image tower for timm, which opens it as "local-dir:FOLDER".

    The architecture and the size of the pictures come from a run's `config`.
    """
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
    folder: Path,
    config: ConfigDict,
    model: Towers,
    variables: dict[str, Any],
    original: Path,
) -> None:
    """Writes the text tower for transformers.

    sentence-transformers opens the folder, too, unless the encoder is CLIP's. config.json and the
    tokenizer come from the folder `original`, which the encoder was loaded from.
    """
    folder.mkdir(parents=True)
    for name in hub.TOKENIZER_FILES:
        if (original / name).is_file():
            shutil.copyfile(original / name, folder / name)
    _write_json(folder / "config.json", text_config(model.txt, original))
    own = text_tensors(model, variables)
    dense = {name: own.pop(name) for name in list(own) if name.startswith("dense.")}
    tensors.write(folder / "model.safetensors", own)
    layers = list(model.txt.projections) if isinstance(model.txt, Bert) else []
    if model.txt_width != model.dim:
        head = variables["params"]["txt_head"]
        dense |= {f"dense.{len(layers)}.weight": head["kernel"].T}
        dense |= {f"dense.{len(layers)}.bias": head["bias"]}
        layers.append(Projection(model.dim))
    sentences.write_projections(folder, layers, dense)
    if isinstance(model.txt, Bert):  # there is no module that pools as CLIP does
        lower = sentences.lower_case(original)
        sentences.write_modules(
            folder, model.txt, len(layers), max_tokens=config.data.max_tokens, lower_case=lower
        )


def write_towers(
    folder: Path, config: ConfigDict, model: Towers, variables: dict[str, Any]
) -> None:
    """Makes a model of sentence-transformers of image/ and text/, written in `folder` before."""
    head = variables["params"]["img_head"]
    is_bert = isinstance(model.txt, Bert)
    layers = len(model.txt.projections) if is_bert else 0
    sentences.write_towers(
        folder,
        {"dense.0.weight": head["kernel"].T, "dense.0.bias": head["bias"]},
        projections=layers + (model.txt_width != model.dim),
        pools=is_bert,
        max_tokens=config.data.max_tokens,
    )


def _write_json(path: Path, value: Any) -> None:
    """Writes JSON without the rename trick, since the folder is new."""
    path.write_text(json.dumps(value, indent=2), "utf-8")
