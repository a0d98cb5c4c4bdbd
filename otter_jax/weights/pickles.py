"""Reads the pickles of PyTorch files: of what they hold only tensors are made, and nothing is run.

A pickle is a program that may call anything. Here it can call what makes a tensor, and stand-ins
for what training runs keep beside tensors; before it is read at all, memory and nesting that would
end the process are refused.
"""

import io
import math
import mmap
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax.numpy as jnp
import numpy as np

from otter_jax.errors import UserError
from otter_jax.files import open_regular

DEPTH = 100  # of tuples in tuples; Python hashes, compares and frees them by recursion
# Objects that keys may hold in all: each is visited whenever a tuple that holds it is hashed.
HASHED, HASHED_PER_OPERATION, MOST_PARTS = 1_000_000, 100, 1 << 40
HASHING = ("SETITEM", "SETITEMS", "ADDITEMS", "FROZENSET", "DICT", "REDUCE", "BINPERSID")
BIG = "has its numbers in big-endian order, which is not read; save it on another kind of machine."
MAGIC = 0x1950A86A20F9469CFC6C  # the first object in a file of an older PyTorch


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


class Ignored:
    """Stands in for objects that training runs pickle beside tensors; takes anything, does nothing.

    Its class stands in for functions as well: a call makes one more of it.
    """

    def __init__(self, *_, **__):
        pass

    def __setstate__(self, _):
        pass

    def __setitem__(self, _, __):
        pass

    def append(self, _):
        """Passes over an item of what was a list."""

    def extend(self, _):
        """Passes over items of what was a list."""

    def add(self, _):
        """Passes over an item of what was a set."""


def of_type(make: Any, _: Any, arguments: tuple[Any, ...], *__: Any) -> Any:
    """Makes a tensor that had a class or attributes of its own, without these."""
    return make(*arguments) if make in (tensor, parameter) else Ignored()


def tensor(*arguments: Any) -> Tensor:
    """Makes a tensor of (storage, offset, shape, strides) and what does not matter here."""
    return Tensor(*arguments[:4])


def parameter(value: Any, *_: Any) -> Any:
    """Returns a parameter's tensor."""
    return value


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
    ("torch._utils", "_rebuild_tensor"): tensor,
    ("torch._utils", "_rebuild_tensor_v2"): tensor,
    ("torch._utils", "_rebuild_parameter"): parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): of_type,
    **{("torch", name): dtype for name, dtype in DTYPES.items()},
}
# What the stand-in takes the place of: in these modules these names, or all of them.
BUILTINS = {"bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int", "list",
            "object", "range", "set", "slice", "str", "tuple"}  # fmt: skip
IGNORED: dict[str, set[str] | None] = {
    "__builtin__": BUILTINS | {"long", "unicode", "xrange"},
    "builtins": BUILTINS,
    "_codecs": {"encode"},
    "argparse": {"Namespace"},
    "collections": {"Counter", "defaultdict", "deque"},
    "copy_reg": {"_reconstructor"},
    "copyreg": {"_reconstructor"},
    "datetime": None,
    "decimal": {"Decimal"},
    "fractions": {"Fraction"},
    "numpy": None,
    "omegaconf": None,
    "pathlib": None,
    "pytorch_lightning": None,
    "lightning": None,
    "lightning_fabric": None,
    "mmengine": None,
    "types": {"SimpleNamespace"},
    "uuid": {"UUID"},
    "yacs": None,
    "torch": {"Size", "Tensor", "device", "dtype", "strided", "float16", "float32", "float64",
              "bfloat16", "int64", "int32", "uint8", "bool"},
    "torch.nn.parameter": {"Parameter"},
}  # fmt: skip


def is_ignored(module: str, name: str) -> bool:
    """Tells whether a global is harmless beside tensors, and is replaced by `Ignored`."""
    if module in IGNORED:
        names = IGNORED[module]
        return names is None or name in names
    root = module.partition(".")[0]
    return root in IGNORED and IGNORED[root] is None  # all of a package


class TensorUnpickler(pickle.Unpickler):
    """Unpickles dicts, lists, numbers, strings and `Tensor`s; refuses all other classes."""

    def __init__(self, file: io.BufferedIOBase):
        super().__init__(file)
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> Callable[..., Any] | str:
        if (module, name) in GLOBALS:
            return GLOBALS[module, name]
        if is_ignored(module, name):
            return Ignored
        if module.startswith("__torch__"):
            raise UserError(
                "is a TorchScript program, which is not run; save its state_dict() alone, best as "
                "safetensors."
            )
        raise UserError(
            f"asks for {module}.{name}, which is not a part of a tensor and was not run; "
            "save the state_dict alone, best as safetensors."
        )

    def persistent_load(self, pid: Any) -> Storage:
        _, dtype, key, *_ = pid
        return self.storages.setdefault(key, Storage(dtype, key))


def read_file(path: Path) -> tuple[Any, dict[str, bytes]]:
    """Reads a PyTorch file of either format; returns the pickled object, and storages by key.

    Raises UserError, whose message goes on after the file's name, if it asks for more than
    tensors; damage may raise anything.
    """
    with open_regular(path) as file:
        if file.peek(2)[:2] == b"PK":
            return read_zip(file, path.stat().st_size)
        # Not the file, whose read(n) makes room for n bytes even where there are fewer.
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return read_legacy(content)


def unpickler_at(file: mmap.mmap | io.BytesIO) -> TensorUnpickler:
    """Returns what reads the pickle that begins here, and moves behind it.

    Raises UserError for one that would take memory or nesting out of proportion.
    """
    start = file.tell()
    check(file)
    end = file.tell()
    file.seek(start)
    return TensorUnpickler(io.BytesIO(file.read(end - start)))


class Size(NamedTuple):
    """Says how deep an object nests, and how many it holds where each is counted wherever it is.

    A mark on the pickle's stack has depth -1.
    """

    depth: int
    parts: int = 1


def check(file: mmap.mmap | io.BytesIO) -> None:
    """Reads the pickle that begins here without making its objects.

    Python's unpickler makes room for as many memorised objects as the largest number says; hashing
    a tuple of tuples of tuples may overflow the stack, or, if each holds the one before twice, take
    as good as for ever. Raises UserError for all three.
    """
    stack: list[Size] = []
    memo: dict[int, Size] = {}
    limit = len(file) if isinstance(file, mmap.mmap) else len(file.getbuffer())
    hashed = 0  # objects that keys of dictionaries and items of sets hold
    for operations, (code, argument, _) in enumerate(pickletools.genops(file)):
        if code.name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            number = len(memo) if argument is None else int(argument)
            if number > limit:
                raise UserError("has a pickle that asks for far more memory than its size; refused")
            memo[number] = stack[-1]
        elif code.name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[int(argument)])
        else:
            hashed += _apply(code, stack)
            if stack and stack[-1].depth > DEPTH:
                raise UserError(f"has a pickle with more than {DEPTH} levels of nesting; refused")
            if hashed > HASHED + HASHED_PER_OPERATION * operations:
                raise UserError("has a pickle whose keys hold each other over and over; refused")


def _apply(code: pickletools.OpcodeInfo, stack: list[Size]) -> int:
    """Does to sizes what an operation does to the stack; returns how many objects it may hash."""
    before, after = code.stack_before, code.stack_after
    taken: list[Size] = []
    if pickletools.stackslice in before:
        while (top := stack.pop()).depth >= 0:
            taken.append(top)
        before = before[: before.index(pickletools.markobject)]
    for _ in before:
        taken.append(stack.pop())
    parts = min(1 + sum(size.parts for size in taken), MOST_PARTS)
    if code.name in ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"):
        *items, whole = taken  # they return the object that they add to
        depth = max(whole.depth, 1 + max((size.depth for size in items), default=0))
        stack.append(Size(depth, parts))
        keys = items[1::2] if code.name.startswith("SETITEM") else items
        return sum(size.parts for size in keys) if code.name in HASHING else 0
    if code.name == "DUP":
        stack += taken * 2
    elif after == [pickletools.markobject]:
        stack.append(Size(-1))
    else:
        depth = 1 + max((size.depth for size in taken), default=0)
        stack += [Size(depth, parts)] * len(after)
    return parts if code.name in HASHING else 0


def read_zip(file: BinaryIO, size: int) -> tuple[Any, dict[str, bytes]]:
    """Reads a file of PyTorch 1.6 or later; returns the pickled object, and storages by key."""
    with zipfile.ZipFile(file) as archive:
        names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(names) != 1:
            held = ", ".join(archive.namelist()[:3])
            raise UserError(f"is a zip archive, but not PyTorch's: it holds {held}, no data.pkl.")
        if sum(info.file_size for info in archive.infolist()) > 4 * size + 2**20:
            raise UserError("is an archive that unpacks to far more than its size; refused.")
        folder = names[0].removesuffix(".pkl")
        order = folder.removesuffix("data") + "byteorder"
        if order in archive.namelist() and archive.read(order).strip() != b"little":
            raise UserError(BIG)
        unpickler = unpickler_at(io.BytesIO(archive.read(names[0])))
        tree = unpickler.load()
        return tree, {key: archive.read(f"{folder}/{key}") for key in unpickler.storages}


def read_legacy(file: mmap.mmap) -> tuple[Any, dict[str, bytes]]:
    """Reads a file of an older PyTorch; returns the pickled object, and storages by key.

    It has pickles of a magic number, two headers, the tensors and the keys of the storages, and
    then the storages, each after its length in elements.
    """
    first = unpickler_at(file).load()
    if first != MAGIC:
        raise UserError("is not a PyTorch file.")
    _, machine = (unpickler_at(file).load() for _ in ("protocol", "sizes of numbers"))
    if isinstance(machine, dict) and not machine.get("little_endian", True):
        raise UserError(BIG)
    unpickler = unpickler_at(file)
    tree = unpickler.load()
    storages = {}
    for key in unpickler_at(file).load():
        count = int.from_bytes(file.read(8), "little")
        storages[key] = file.read(count * jnp.dtype(unpickler.storages[key].dtype).itemsize)
    return tree, storages
