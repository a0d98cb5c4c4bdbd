"""Reads named tensors from safetensors files and PyTorch pickles, whose code is not run."""

import io
import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from otter_jax.errors import UserError

Tensors = dict[str, np.ndarray]


def write(path: Path, tensors: Tensors) -> None:
    """Writes a safetensors file."""
    # transformers refuses a file that is not marked as PyTorch's.
    safetensors.numpy.save_file(tensors, path, metadata={"format": "pt"})


def read(path: Path) -> Tensors:
    """Reads the named tensors of a safetensors or PyTorch file, in the file's dtypes.

    A PyTorch file is a pickle, which could run any code; this reader makes only tensors from it.

    Raises:
      UserError: the file is missing, is damaged, or asks for more than tensors.
    """
    if not path.is_file():
        raise UserError(f"There is no file of weights {path}.")
    try:
        if path.suffix == ".safetensors":
            return safetensors.numpy.load_file(path)
        with path.open("rb") as file:
            tree, storages = (read_zip if file.peek(2)[:2] == b"PK" else read_legacy)(file)
        for key in ("state_dict", "model"):  # where a training run's file has it
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
        """Returns the values, given the storages by key."""
        values = np.frombuffer(storages[self.storage.key], jnp.dtype(self.storage.dtype))
        size = math.prod(self.shape)
        if size == 0:
            return np.empty(self.shape, values.dtype)
        last = self.offset + sum(
            (n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True)
        )
        if min(self.offset, *self.shape, *self.strides, 0) < 0 or last >= len(values):
            raise UserError("has a tensor that reaches beyond its storage; is it complete?")
        if size > len(values):  # strides of 0 could turn a few bytes into terabytes
            raise UserError("has a tensor that is larger than its storage; is it complete?")
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


class Ignored:
    """Stands in for objects that training runs pickle beside tensors."""

    def __init__(self, *_, **__):
        pass

    def __setstate__(self, _):
        pass


IGNORED = {
    ("argparse", "Namespace"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("_codecs", "encode"),
    ("torch", "Size"),
    ("torch", "device"),
}


class TensorUnpickler(pickle.Unpickler):
    """Unpickles dicts, lists, numbers, strings and `Tensor`s; refuses all other classes."""

    def __init__(self, file: io.BufferedIOBase):
        super().__init__(file)
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> Callable[..., Any] | str:
        if (module, name) in IGNORED:
            return Ignored
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
    """Reads a file of PyTorch 1.6 or later; returns the pickled object, and storages by key."""
    with zipfile.ZipFile(file) as archive:
        (pickled,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        unpickler = TensorUnpickler(io.BytesIO(archive.read(pickled)))
        tree = unpickler.load()
        folder = pickled.removesuffix(".pkl")
        return tree, {key: archive.read(f"{folder}/{key}") for key in unpickler.storages}


def read_legacy(file: io.BufferedIOBase) -> tuple[Any, dict[str, bytes]]:
    """Reads a file of an older PyTorch; returns the pickled object, and storages by key.

    It has pickles of a magic number, two headers, the tensors and the keys of the storages, and
    then the storages, each after its length in elements.
    """
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
