"""Imports only go down the floors of the house, and never from one command to another."""

import ast
import pathlib

import pytest

from otter_jax.__main__ import COMMANDS

PACKAGE = pathlib.Path(__file__).parent.parent / "otter_jax"
FLOORS = (  # from the ground up; modules of the method's line may import each other
    ("errors", "files", "caches"),
    ("models", "ot", "gates", "mesh", "optimizer", "objective", "freezing", "affinity", "panels"),
    ("embedding",),
    ("step",),
    ("weights",),
    ("data",),
    ("run",),
    ("zeroshot",),
    ("predict",),
    ("training",),
    ("transfer",),
    ("study",),
    ("report", "demo"),
    ("commands", "configs"),
    ("main", "__main__", "__init__"),
)
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted({*PACKAGE.rglob("*.py"), *(PACKAGE / "configs").glob("*.py")})


def name(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def imports(path):
    """Modules of this package that a file imports, as "data.source", wherever it does so."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} has a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for each in names:
            if each.startswith("otter_jax."):
                yield each.removeprefix("otter_jax.")


def module_of(imported):
    """The file that an import such as "data.source.Source" reads."""
    parts = imported.split(".")
    while parts:
        if PACKAGE.joinpath(*parts).with_suffix(".py").exists():
            return ".".join(parts)
        if PACKAGE.joinpath(*parts, "__init__.py").exists():
            return ".".join(parts)
        parts.pop()
    raise AssertionError(f"{imported} is no module of this package")


@pytest.mark.parametrize("path", FILES, ids=name)
def test_imports_only_go_down(path):
    here = name(path).split(".")[0]
    assert here in LEVEL, f"{name(path)} has no floor: give its room one in {__file__}"
    for imported in imports(path):
        there = module_of(imported).split(".")[0]
        climbs = LEVEL[there] > LEVEL[here]
        assert not climbs, f"{name(path)} climbs to {imported}"


def test_weights_and_data_do_not_know_each_other():
    for path in FILES:
        if name(path).split(".")[0] == "data":
            assert not [i for i in imports(path) if i.startswith("weights")], name(path)


def test_no_command_leans_on_another():
    commands = {module.removeprefix("otter_jax.") for module, _ in COMMANDS.values()}
    assert len(commands) > 5
    assert "commands.train" in {module_of(i) for i in imports(PACKAGE / "main.py")}
    for path in FILES:
        leans = {module_of(i) for i in imports(path)} & commands
        assert not leans or name(path) == "main", f"{name(path)} leans on {leans}"


def test_no_module_imports_itself_in_a_circle():
    graph = {name(path): {module_of(i) for i in imports(path)} for path in FILES}
    done, under_way = set(), []

    def visit(module):
        assert module not in under_way, " -> ".join([*under_way, module])
        if module not in done:
            under_way.append(module)
            for there in graph[module]:
                visit(there)
            done.add(under_way.pop())

    for module in graph:
        visit(module)


def test_the_walk_sees_imports():
    """So that the tests above cannot pass by finding nothing."""
    assert "objective.health" in set(imports(PACKAGE / "step.py"))
    assert module_of("data.source.Source") == "data.source"
    assert "zeroshot.evaluator.Evaluator" in set(imports(PACKAGE / "training" / "contrastive.py"))


@pytest.mark.parametrize("path", FILES, ids=name)
def test_neither_torch_nor_tensorflow_is_imported(path):
    text = ast.dump(ast.parse(path.read_text()))
    for library in ("torch", "tensorflow", "timm"):
        assert f"alias(name='{library}'" not in text
        assert f"alias(name='{library}." not in text
        assert f"ImportFrom(module='{library}" not in text.replace("tensorflow_datasets", "")


def test_rooms_are_of_a_size_that_one_can_read():
    """At most 400 lines per module and 60 per function; tables are as long as they need to be."""
    long = []
    for path in FILES:
        if path.parent.name == "configs":
            continue  # tables
        text = path.read_text()
        lines = text.count("\n")
        if lines > 400:
            long.append(f"{name(path)}: {lines} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                size = node.end_lineno - node.lineno + 1
                if size > 60:
                    long.append(f"{name(path)}.{node.name}: {size} lines")
    assert not long, "; ".join(long)


@pytest.mark.parametrize("folder", sorted({path.parent for path in FILES}), ids=lambda p: p.name)
def test_every_room_says_what_it_is_for(folder):
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
    assert text
    assert len(text.splitlines()) <= 6
