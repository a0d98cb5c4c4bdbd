"""Loads published encoders from a file, folder, package or hub name."""

import dataclasses
import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from otter_jax.errors import UserError
from otter_jax.models.bert import Bert, BertConfig
from otter_jax.models.clip import ClipText, ClipTextConfig
from otter_jax.models.efficientnet import EFFICIENTNETS, EfficientNet
from otter_jax.models.mobilenet import MOBILENETS, MobileNet
from otter_jax.models.resnet import RESNETS, ResNet
from otter_jax.models.vit import VITS, ViT
from otter_jax.weights import naming, tensors
from otter_jax.weights.folders import check_architecture, check_pixels, with_pruned
from otter_jax.weights.hub import locate, weights_file

IMAGE_ENCODERS: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    **{name: (ResNet, arguments) for name, arguments in RESNETS.items()},
    **{name: (EfficientNet, arguments) for name, arguments in EFFICIENTNETS.items()},
    **{name: (MobileNet, arguments) for name, arguments in MOBILENETS.items()},
    **{name: (ViT, arguments) for name, arguments in VITS.items()},
}
TEXT_ENCODERS = {  # by model_type in config.json
    "bert": (Bert, BertConfig),
    "roberta": (Bert, BertConfig),
    "clip": (ClipText, ClipTextConfig),  # a whole CLIP, of which this is the text side
    "clip_text_model": (ClipText, ClipTextConfig),
}


class Encoder(NamedTuple):
    """Holds a module, its weights, and its width, the number of its features.

    `variables` are float32 NumPy arrays, or {} if the caller must initialise the module;
    `tokenizer` is the folder with a text encoder's config and tokenizer.
    """

    module: nn.Module
    variables: dict[str, Any]
    width: int
    tokenizer: Path | None = None


def load_image(
    weights: str,
    *,
    arch: str,
    classifier: bool = False,
    dtype: Any = jnp.float32,
    pretrained: bool = True,
    pixels: tuple[Sequence[float], Sequence[float]] | None = None,
) -> Encoder:
    """Loads the image encoder `arch` with the given weights.

    Args:
      weights: a file (.safetensors, .pth, .pt, .bin) or a folder with model.safetensors or
        pytorch_model.bin, under the names that timm, torchvision or Hugging Face give (see
        `naming.FAMILIES`); a hub name, "owner/name" or "owner/name@revision"; a name in
        `hub.PACKAGES`; or "" for none.
      arch: a name in `IMAGE_ENCODERS`; the names are timm's.
      classifier: the module returns the logits of the file's own classifier, not features.
      dtype: of the computation; the parameters are float32.
      pretrained: False takes only the architecture, pruned if a local folder's config says so.
      pixels: mean and deviation, per channel in 0..255, that the weights must have been trained
        with; None accepts any.

    Raises:
      UserError: `arch` is unknown, or the weights are missing, unreadable or not of `arch`, or a
        folder's config gives another mean or deviation of pixels.
    """
    if arch not in IMAGE_ENCODERS:
        near = difflib.get_close_matches(arch, IMAGE_ENCODERS, n=1, cutoff=0)[0]
        raise UserError(
            f"There is no image encoder {arch!r}; did you mean {near!r}? "
            f"There are {', '.join(IMAGE_ENCODERS)}."
        )
    make, arguments = IMAGE_ENCODERS[arch]
    module = make(**arguments, dtype=dtype)
    if not weights:
        return Encoder(module, {}, module.width)
    if not pretrained:
        module = with_pruned(module, Path(weights).expanduser())
        return Encoder(module, {}, module.width)
    path = locate(weights)
    if path.is_dir():
        check_architecture(path, arch, module)
        if pixels:
            check_pixels(path, *pixels)
        module = with_pruned(module, path)
        path = weights_file(path)
    found, families = tensors.read(path), naming.families(module)
    if classifier:
        path_of_bias = ("params", module.classifier, "bias")
        biases = [naming.file_names(path_of_bias, family)[0] for family in families]
        there = [bias for bias in biases if bias in found]
        if not there:
            raise UserError(f"{path} has no classifier: there is no {biases[0]} in it.")
        module = module.clone(num_classes=len(found[there[0]]))
    like = variable_shapes(module, jnp.zeros((1, 32, 32, 3)))
    return Encoder(module, naming.convert(found, like, families, source=path), module.width)


def load_text(
    weights: str,
    *,
    dropout: float | None = None,
    dtype: Any = jnp.float32,
    pretrained: bool = True,
) -> Encoder:
    """Loads the text encoder of a Hugging Face folder that also holds its tokenizer.

    Args:
      weights: a folder with config.json and model.safetensors (or pytorch_model.bin); a hub name,
        "owner/name" or "owner/name@revision"; or a name in `hub.PACKAGES`. The config's model_type
        is one of `TEXT_ENCODERS`.
      dropout: replaces the rates in the config.
      dtype: of the computation; the parameters are float32.
      pretrained: False takes the architecture and the tokenizer only.

    Raises:
      UserError: the weights are missing, unreadable or not of such an encoder.
    """
    folder = locate(weights, pretrained=pretrained)
    make, config = read_config(folder)
    if dropout is not None:
        config = config.with_dropout(dropout)
    module = make(config, dtype)
    if not pretrained:
        return Encoder(module, {}, module.width, folder)
    path = weights_file(folder)
    like = variable_shapes(module, jnp.zeros((1, 2), int), jnp.ones((1, 2), bool))
    variables = naming.convert(tensors.read(path), like, naming.families(module), source=path)
    return Encoder(module, variables, module.width, folder)


def read_config(folder: Path) -> tuple[type[nn.Module], Any]:
    """Reads config.json of a Hugging Face folder; returns the encoder's class, and its config.

    Raises UserError if it is missing, or describes none of `TEXT_ENCODERS`.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise UserError(
            f"There is no {file}: a text encoder is a Hugging Face folder, with config.json, "
            "model.safetensors and the files of the tokenizer."
        )
    try:
        content = json.loads(file.read_text("utf-8"))
        model_type = content.get("model_type", "bert")
        if model_type not in TEXT_ENCODERS:
            known = ", ".join(TEXT_ENCODERS)
            raise ValueError(f"model_type={model_type!r} is not supported; {known} are")
        make, make_config = TEXT_ENCODERS[model_type]
        config = make_config.from_json(content)
        check_numbers(config)
    except (ValueError, TypeError, AttributeError) as error:  # not JSON is one, too
        raise UserError(f"{file} does not describe a text encoder: {error}.") from error
    return make, config


def check_numbers(config: Any) -> None:
    """Raises ValueError for sizes that no encoder has."""
    values = dataclasses.asdict(config)
    for field in dataclasses.fields(config):
        value = values[field.name]
        if type(field.default) is int and type(value) is not int:
            raise ValueError(f"{field.name}={value!r} is not a number")
    divides = config.hidden_size % max(config.num_attention_heads, 1) == 0
    if config.hidden_size < 1 or (config.num_hidden_layers and not divides):
        raise ValueError(
            f"hidden_size={config.hidden_size} does not divide into "
            f"num_attention_heads={config.num_attention_heads}"
        )


def variable_shapes(module: nn.Module, *inputs: Any) -> dict[str, Any]:
    """Returns the shapes and types of the module's variables; nothing is computed."""
    return jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs, train=False))
