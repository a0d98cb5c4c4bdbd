"""Files as PyTorch writes them, without PyTorch."""

import io
import os
import pickle
import sys
import types
import zipfile
from collections import OrderedDict
from unittest import mock

import numpy as np


def stand_in(module, name):
    """What pickle writes as module.name."""
    return type(name, (), {"__module__": module})


STORAGE = {
    "float32": stand_in("torch", "FloatStorage"),
    "bfloat16": stand_in("torch", "BFloat16Storage"),
    "int64": stand_in("torch", "LongStorage"),
}
REBUILD = stand_in("torch._utils", "_rebuild_tensor_v2")
MODULES = {
    "torch": types.SimpleNamespace(**{cls.__name__: cls for cls in STORAGE.values()}),
    "torch._utils": types.SimpleNamespace(_rebuild_tensor_v2=REBUILD),
}


class Storage:
    """Written as a reference to data elsewhere in the file."""

    def __init__(self, values):
        self.values = values


class Tensor:
    """Written as a view of a storage."""

    def __init__(self, values, shape, strides, offset=0):
        self.view = Storage(values), offset, shape, strides, False, OrderedDict()

    def __reduce__(self):
        return REBUILD, self.view


class Run:
    """Written as a command that is to run when the file is read."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


class Pickler(pickle.Pickler):
    def __init__(self, file):
        super().__init__(file, protocol=2)
        self.storages = {}

    def persistent_id(self, value):
        if isinstance(value, Storage):
            key = str(len(self.storages))
            self.storages[key] = value.values
            return "storage", STORAGE[value.values.dtype.name], key, "cpu", value.values.size
        return None


def write_zip(path, tree):
    file = io.BytesIO()
    with mock.patch.dict(sys.modules, MODULES):
        pickler = Pickler(file)
        pickler.dump(tree)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", file.getvalue())
        for key, values in pickler.storages.items():
            archive.writestr(f"archive/data/{key}", values.tobytes())


def write_legacy(path, tree, *, little_endian=True):
    with path.open("wb") as file, mock.patch.dict(sys.modules, MODULES):
        for header in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": little_endian}):
            pickle.dump(header, file, protocol=2)
        pickler = Pickler(file)
        pickler.dump(tree)
        pickle.dump(list(pickler.storages), file, protocol=2)
        for values in pickler.storages.values():
            file.write(values.size.to_bytes(8, "little") + values.tobytes())


def tensor(values):
    """A whole array as a tensor."""
    values = np.ascontiguousarray(values)
    strides = tuple(stride // values.itemsize for stride in values.strides)
    return Tensor(values.ravel(), values.shape, strides)
