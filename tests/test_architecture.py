"""docs/architecture.md is true: what it names is there, and adding things goes as it says."""

import importlib
import pathlib
import re
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest

import otter_jax.__main__
import otter_jax.commands
from otter_jax import objective
from otter_jax.commands import configs, flags, start
from otter_jax.objective import METHODS, Objective
from otter_jax.training import contrastive

REPO = pathlib.Path(__file__).parent.parent
PACKAGE = REPO / "otter_jax"
PAGE = (REPO / "docs" / "architecture.md").read_text("utf-8")


def section(heading):
    """The text below a heading, up to the next one."""
    return re.split(r"^#+ ", PAGE.split(f"# {heading}\n")[1], flags=re.MULTILINE)[0]


@pytest.mark.parametrize(
    ("file", "name"), sorted(set(re.findall(r"`(\w[\w/]*)\.py:(\w+)`", PAGE))), ids=str
)
def test_what_the_page_names_is_there(file, name):
    module = importlib.import_module(f"otter_jax.{file.replace('/', '.')}")
    assert hasattr(module, name)


def test_the_page_is_as_short_as_it_was_meant_to_be():
    assert len(section("Words").strip().splitlines()) <= 25
    for what in ("An objective", "A command", "A data format", "An encoder"):
        assert len(section(what).strip().splitlines()) < 15


def test_an_objective_is_added_as_the_page_says(monkeypatch):
    (line,) = re.findall(r"```python\n(.*?)\n```", section("An objective"), re.DOTALL)
    ((name, made),) = eval(f"{{{line}}}", {"Objective": Objective}).items()
    assert name not in METHODS
    monkeypatch.setitem(METHODS, name, made)
    config = configs.load(f"quickstart:{name}", ["--config.objective.num_iters=50"])
    contrastive.check_config(config, devices=8)
    found = Objective(**config.objective)
    rows = np.random.RandomState(0).standard_normal((2, 6, 4))
    img, txt = jnp.array(rows / np.linalg.norm(rows, axis=2, keepdims=True))
    targets = found.teacher_targets(img, txt)
    np.testing.assert_allclose(targets["image"].sum(axis=1), 1, rtol=1e-5)
    softer = METHODS["otter"].teacher_targets(img, txt)
    assert targets["image"].max(axis=1).mean() > softer["image"].max(axis=1).mean()
    log_scale = {"pairs": jnp.array(3.9), "teacher": jnp.array(3.9)}
    _, terms = found.loss(img, txt, targets, log_scale)
    assert terms.keys() == {"pairs", "teacher"}


def test_a_teacher_has_words_for_the_log():
    assert contrastive.TEACHERS.keys() == set(objective.TEACHERS)
    assert contrastive.TRUSTS.keys() >= set(objective.TRUSTS) - {""}


def test_a_command_is_added_as_the_page_says(monkeypatch, capsys):
    module = types.ModuleType("otter_jax.commands.method")

    def parser():
        made = start.Parser(
            "method",
            "--config NAME[:VARIANT] [FLAGS]",
            "Says by which method a config trains.",
            ("--config quickstart", "--config pairs:kd"),
        )
        flags.add_config(made)
        return made

    def run(options):
        print(flags.config(options, needs="objective").method)

    def main(argv):
        return start.status(lambda: run(flags.parse(parser(), argv)))

    module.main = main
    monkeypatch.setitem(sys.modules, module.__name__, module)
    commands = otter_jax.__main__.COMMANDS
    monkeypatch.setitem(commands, "method", (module.__name__, "say by which method it trains"))

    assert start.choose(commands, ["method", "--config", "pairs:kd"]) == 0
    assert capsys.readouterr().out == "kd\n"
    assert start.choose(commands, ["--help"]) == 0
    assert "  method    say by which method it trains\n" in capsys.readouterr().out
    assert start.choose(commands, ["metod"]) == 2
    assert "did you mean method?" in capsys.readouterr().err
    assert start.choose(commands, ["method", "--confg=pairs"]) == 2
    assert "did you mean --config?" in capsys.readouterr().err
