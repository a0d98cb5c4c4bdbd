"""Loads published encoders from a file, folder, package or hub name."""

import dataclasses
import difflib
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util

from otter_jax import caches
from otter_jax.errors import UserError
from otter_jax.files import read_json
from otter_jax.models.bert import Bert, BertConfig
from otter_jax.models.clip import ClipText, ClipTextConfig
from otter_jax.models.efficientnet import EFFICIENTNETS, EfficientNet
from otter_jax.models.mobilenet import MOBILENETS, MobileNet
from otter_jax.models.resnet import RESNETS, ResNet
from otter_jax.models.vit import VITS, ViT
from otter_jax.weights import naming, tensors
from otter_jax.weights.folders import check_architecture, check_pixels, with_pruned
from otter_jax.weights.hub import locate, parted, weights_file
from otter_jax.weights.image_config import check_arguments, pixels_of
from otter_jax.weights.sentences import projection_tensors, read_layout
from otter_jax.weights.tensors import Tell, Tensors, quiet

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
# By the beginning of a name in `architectures`, where config.json has no model_type.
ARCHITECTURES = {
    "BertModel": "bert",
    "BertFor": "bert",
    "RobertaModel": "roberta",
    "RobertaFor": "roberta",
    "CLIPModel": "clip",
    "CLIPTextModel": "clip_text_model",
}


class Encoder(NamedTuple):
    """Holds a module, its weights, and its width, the number of its features.

    `variables` are float32 NumPy arrays, or {} if the caller must initialise the module;
    `tokenizer` is the folder with a text encoder's config and tokenizer; `pixels` are mean and
    deviation, per channel in 0..255, that an image folder's config gives.
    """

    module: nn.Module
    variables: dict[str, Any]
    width: int
    tokenizer: Path | None = None
    pixels: tuple[tuple[float, ...], tuple[float, ...]] | None = None


def load_image(
    weights: str,
    *,
    arch: str,
    classifier: bool = False,
    dtype: Any = jnp.float32,
    pretrained: bool = True,
    pixels: tuple[Sequence[float], Sequence[float]] | None = None,
    tell: Tell = quiet,
) -> Encoder:
    """Loads the image encoder `arch` with the given weights.

    Args:
      weights: a file (.safetensors, .pth, .pt, .bin) or a folder with model.safetensors or
        pytorch_model.bin, under the names that timm, torchvision or Hugging Face give (see
        `naming.FAMILIES`); a hub name, "owner/name" or "owner/name@revision"; a name in
        `hub.PACKAGES`; or "" for none. "#PART" at its end takes this part of a PyTorch file.
      arch: a name in `IMAGE_ENCODERS`; the names are timm's.
      classifier: the module returns the logits of the file's own classifier, not features.
      dtype: of the computation; the parameters are float32.
      pretrained: False takes only the architecture, pruned if a local folder's config says so.
      pixels: mean and deviation, per channel in 0..255, that the weights must have been trained
        with; None accepts any.
      tell: is told what was chosen or left aside.

    Raises:
      UserError: `arch` is unknown, or the weights are missing, unreadable or not of `arch`, or a
        folder's config gives another architecture, or mean or deviation of pixels.
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
    weights, part = parted(weights)
    if not pretrained:
        module = with_pruned(module, Path(weights).expanduser())
        return Encoder(module, {}, module.width)
    path, used_to = locate(weights), None
    if path.is_dir():
        check_architecture(path, arch, module)
        check_arguments(path, arch, module, tell=tell)
        if pixels:
            check_pixels(path, *pixels)
        used_to = pixels_of(path)
        module = with_pruned(module, path)
        path = weights_file(path)
    else:
        tell_name(path, arch, tell)
    found, families = tensors.read(path, part=part, tell=tell), naming.families(module)
    if classifier:
        module = module.clone(num_classes=count_classes(found, module, path))
    like = variable_shapes(module, np.zeros((1, 32, 32, 3), np.float32))
    variables = naming.convert(found, like, families, source=path)
    return Encoder(module, variables, module.width, pixels=used_to)


def tell_name(path: Path, arch: str, tell: Tell) -> None:
    """Tells if a file is called by another arch than `arch`.

    The names and shapes of tensors may be the same: they do not show padding or activation.
    """
    named = [
        name
        for name in IMAGE_ENCODERS
        if re.search(rf"(?<![a-z0-9_]){name}(?![a-z0-9])", path.name)
    ]
    theirs = max(named, key=len, default="")
    if theirs and theirs != arch.removesuffix("_mean"):
        tell(
            f"{path} is called {theirs}, and is read as {arch}; names and shapes alone do not show "
            "the difference."
        )


def count_classes(found: Tensors, module: nn.Module, source: Path) -> int:
    """Returns the number of outputs of a file's classifier. Raises UserError if it has none."""
    path = ("params", module.classifier, "bias")
    biases = tuple(naming.file_names(path, family)[0] for family in naming.families(module))
    there = [values for name, values in found.items() if name.endswith(biases)]
    if not there:
        raise UserError(f"{source} has no classifier: there is no {biases[0]} in it.")
    return len(there[0])


def load_text(
    weights: str,
    *,
    dropout: float | None = None,
    dtype: Any = jnp.float32,
    pretrained: bool = True,
    tell: Tell = quiet,
) -> Encoder:
    """Loads the text encoder of a Hugging Face folder that also holds its tokenizer.

    Args:
      weights: a folder with config.json and model.safetensors (or pytorch_model.bin); a hub name,
        "owner/name" or "owner/name@revision"; or a name in `hub.PACKAGES`. The config's model_type
        is one of `TEXT_ENCODERS`. A modules.json says how texts are pooled and projected.
        "#PART" at its end takes this part of a PyTorch file.
      dropout: replaces the rates in the config.
      dtype: of the computation; the parameters are float32.
      pretrained: False takes the architecture and the tokenizer only.
      tell: is told what was chosen or left aside.

    Raises:
      UserError: the weights are missing, unreadable or not of such an encoder, or are to be read
        as no encoder here is.
    """
    weights, part = parted(weights)
    folder = locate(weights, pretrained=pretrained)
    layout = read_layout(folder, tell=tell)
    home = layout.transformer
    make, config = read_config(home, tell=tell)
    if dropout is not None:
        config = config.with_dropout(dropout)
    module = make(config, dtype)
    if layout.pooling:
        if not isinstance(module, Bert):
            raise UserError(
                f"{folder / 'modules.json'} pools by {layout.pooling}, but {home / 'config.json'} "
                "is of CLIP's text encoder, which is pooled at its closing token."
            )
        module = module.clone(pooling=layout.pooling, projections=layout.projections)
    if not pretrained:
        return Encoder(module, {}, module.width, home)
    path = weights_file(home)
    like = variable_shapes(module, np.zeros((1, 2), np.int32), np.ones((1, 2), bool))
    found = tensors.read(path, part=part, tell=tell) | projection_tensors(layout, tell=tell)
    source = folder if layout.folders else path  # a projection may be what does not fit
    variables = naming.convert(found, like, naming.families(module), source=source)
    return Encoder(module, variables, module.width, home)


def read_config(folder: Path, *, tell: Tell = quiet) -> tuple[type[nn.Module], Any]:
    """Reads config.json of a Hugging Face folder; returns the encoder's class, and its config.

    Raises UserError if it is missing, or describes none of `TEXT_ENCODERS`; tells if it has to
    take the kind of model from the name of a class.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise UserError(
            f"There is no {file}: a text encoder is a Hugging Face folder, with config.json, "
            "model.safetensors and the files of the tokenizer."
        )
    try:
        tensors.check_beginning(file)
    except UserError as error:
        raise UserError(f"{file} {error}") from None
    try:
        content = read_json(file)
        if not isinstance(content, dict):
            raise ValueError("it is not a JSON object")
        model_type = content.get("model_type") or type_of(content.get("architectures"))
        if content.get("auto_map"):
            tell(
                f"{file} names code of its own (auto_map), which is not run: the weights are read "
                f"as {model_type}."
            )
        if "model_type" not in content:
            tell(f"{file} has no model_type; its architectures say {model_type!r}.")
        if model_type not in TEXT_ENCODERS:
            known = ", ".join(TEXT_ENCODERS)
            raise ValueError(f"model_type={model_type!r} is not supported; {known} are")
        make, make_config = TEXT_ENCODERS[model_type]
        config = make_config.from_json(content | {"model_type": model_type})
        check_numbers(config)
    except (ValueError, TypeError, AttributeError) as error:  # not JSON is one, too
        raise UserError(f"{file} does not describe a text encoder: {error}.") from error
    return make, config


def type_of(architectures: Any) -> str:
    """Returns the model_type of the first of a config's architectures; raises ValueError if none.

    It is not guessed: a RoBERTa that is read as a BERT has all its positions off by two.
    """
    first = architectures[0] if isinstance(architectures, list) and architectures else None
    for beginning, model_type in ARCHITECTURES.items():
        if str(first).startswith(beginning):
            return model_type
    known = ", ".join(TEXT_ENCODERS)
    raise ValueError(
        f"it has no model_type, and architectures={architectures!r} do not show it; add "
        f'"model_type", one of {known}'
    )


def check_numbers(config: Any) -> None:
    """Raises ValueError for sizes that no encoder has."""
    values = dataclasses.asdict(config)
    for field in dataclasses.fields(config):
        value = values[field.name]
        numbers = {int: (int,), float: (int, float)}.get(type(field.default))
        if numbers and type(value) not in numbers:
            raise ValueError(f"{field.name}={value!r} is not a number")
    divides = config.hidden_size % max(config.num_attention_heads, 1) == 0
    if config.hidden_size < 1 or (config.num_hidden_layers and not divides):
        raise ValueError(
            f"hidden_size={config.hidden_size} does not divide into "
            f"num_attention_heads={config.num_attention_heads}"
        )


def variable_shapes(module: nn.Module, *inputs: Any) -> dict[str, Any]:
    """Returns the shapes and types of the module's variables; nothing is computed."""

    def init(*inputs):
        return module.init(jax.random.key(0), *inputs, train=False)

    facts = jax.tree.map(lambda x: (x.shape, str(x.dtype)), inputs)
    return remembered(lambda: jax.eval_shape(init, *inputs), module, facts)


def remembered(find: Callable[[], dict[str, Any]], *facts: Any) -> dict[str, Any]:
    """Returns the shapes and types of variables that `find` finds, and the facts alone decide.

    They are remembered on disk: to find them out takes about half a second for an encoder, which
    is much for one picture.
    """

    def make():
        flat = traverse_util.flatten_dict(find())
        return {
            "paths": np.array([json.dumps(path) for path in flat]),
            "shapes": np.array([json.dumps(leaf.shape) for leaf in flat.values()]),
            "dtypes": np.array([str(leaf.dtype) for leaf in flat.values()]),
        }

    path = caches.users() / caches.named("shapes", caches.code(), *facts)
    found = caches.kept(path, make)
    leaves = {
        tuple(json.loads(path)): jax.ShapeDtypeStruct(tuple(json.loads(shape)), dtype)
        for path, shape, dtype in zip(*(found[n].tolist() for n in found), strict=True)
    }
    return traverse_util.unflatten_dict(leaves)
