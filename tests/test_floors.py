"""Imports only go down the floors, and never sideways between programs."""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parent.parent / "otter_jax"
FLOORS = {  # module or folder -> floor; 0 mathematics, ..., 5 the door
    "errors": 0, "ot": 0, "objective": 0, "gates": 0, "mesh": 0,
    "models": 1,
    "tensors": 2, "names": 2, "weights": 2, "build": 2, "data": 2, "record": 2,
    "checkpoint": 2, "pruning": 2, "filters": 2, "page": 2, "cluster": 2,
    "step": 3, "phased": 3, "labelled": 3, "loop": 3, "command": 3, "feed": 3, "job": 3,
    "evalset": 3,
    "train": 4, "zeroshot": 4, "released": 4, "export": 4, "transfer": 4,
    "prepare": 4, "doctor": 4,
    "main": 5,
    "__init__": 5,
}  # fmt: skip
FILES = sorted(PACKAGE.rglob("*.py"))


def floor_of(parts):
    assert parts[0] in FLOORS, f"{'/'.join(parts)} has no floor: give it one in {__file__}"
    return FLOORS[parts[0]]


def imports(path):
    """Modules of this package that a file imports, as ("data", "store"), wherever it does so."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} has a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.startswith("otter_jax."):
                yield tuple(name.split(".")[1:])


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_only_go_down(path):
    here = path.relative_to(PACKAGE).with_suffix("").parts
    for there in imports(path):
        same_folder = len(here) > 1 and here[0] == there[0]
        if same_folder:
            continue
        if there[0] not in FLOORS:
            raise AssertionError(f"{path.name} imports {there}, which has no floor")
        climbs = floor_of(there) > floor_of(here)
        sideways = floor_of(there) == floor_of(here) == 4
        assert not climbs, f"{'.'.join(here)} climbs to {'.'.join(there)}"
        assert not sideways, f"program {'.'.join(here)} leans on program {'.'.join(there)}"


def test_the_walk_sees_imports():
    """So that the test above cannot pass by finding nothing."""
    assert ("objective", "health") in set(imports(PACKAGE / "step.py"))
    assert ("zeroshot",) in set(imports(PACKAGE / "main.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_neither_torch_nor_tensorflow_is_imported(path):
    text = ast.dump(ast.parse(path.read_text()))
    for name in ("torch", "tensorflow", "timm"):
        assert f"alias(name='{name}'" not in text
        assert f"alias(name='{name}." not in text
        assert f"ImportFrom(module='{name}" not in text.replace("tensorflow_datasets", "")
