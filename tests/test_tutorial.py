"""docs/tutorial.md works as it stands: its commands, in their order, on tiny data and encoders."""

import importlib
import os
import pathlib
import re
import shlex
from unittest import mock

import pytest
import world
from pictures import coloured

import otter_jax.__main__
from otter_jax import mesh
from otter_jax.demo import server
from otter_jax.training import doctor

REPO = pathlib.Path(__file__).parent.parent
PAGE = (REPO / "docs" / "tutorial.md").read_text("utf-8")
COMMANDS = [
    shlex.split(block.replace("\\\n", " "))
    for block in re.findall(r"^```bash\n(otter-jax .*?)^```", PAGE, re.DOTALL | re.MULTILINE)
]
# What must be smaller in a test; these stand behind the page's own flags.
SMALLER = {
    "model.img.arch": "tiny",
    "model.img.weights": "",
    "model.txt.weights": "text",
    "model.txt.pretrained": False,
    "optim.freeze": "",
    "data.resize": 36,
    "data.image_size": 32,
    "data.max_tokens": 8,
    "train.batch_size": 16,
    "train.epochs": 1.0,
    "eval.best": "heldout/ema/FH@1",  # of three pictures
}
CONFIG = [f"--config.{key}={value}" for key, value in SMALLER.items()]
MORE = {
    "prepare": ["--tokenizer=text", "--max_tokens=8"],
    "doctor": CONFIG,
    "train": CONFIG,
    "demo": ["--port=0"],
}


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home, and the folder in which the page's reader is: two folders of pictures."""
    world.make(tmp_path)  # text/, an encoder
    for folder in ("pictures", "new"):
        (tmp_path / folder).mkdir()
        for i in range(60):
            name = list(world.COLOURS)[i % 4]
            path = tmp_path / folder / f"{i}.jpg"
            path.write_bytes(coloured(world.COLOURS[name], i))
            if folder == "pictures":
                path.with_suffix(".txt").write_text(f"a {name} square")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a command in this process, on one device; its status, and what it says."""
    make_mesh, start = mesh.make_mesh, server.running

    async def enough(counter):
        return True

    def running(app):  # ends as soon as it listens
        # Its logging would close what others log to, which here is stderr as pytest sees it.
        with mock.patch("logging.config.dictConfig"):
            made = start(app)
        monkeypatch.setattr(made, "on_tick", enough)
        return made

    monkeypatch.setattr(mesh, "make_mesh", lambda count=None: make_mesh(count or 1))
    monkeypatch.setattr(server, "running", running)
    monkeypatch.setattr(doctor, "SECONDS", 0.2)

    def status_and_words(name, *words):
        status = importlib.import_module(otter_jax.__main__.COMMANDS[name][0]).main(words)
        return status, "".join(capsys.readouterr())

    with world.tiny():
        yield status_and_words


def test_the_ten_commands_do_what_the_page_promises(home, run):
    assert len(COMMANDS) == 10
    for program, name, *words in COMMANDS:
        assert program == "otter-jax"
        status, said = run(name, *words, *MORE.get(name, []))
        assert status == 0, (name, said[-3000:])
    assert "in a browser. Ctrl-C ends it." in said
    promised = re.findall(r"`([\w~./]+(?:/|\.(?:html|png|csv|parquet|jsonl?|md)))`", PAGE)
    assert len(promised) > 10
    for path in promised:
        assert os.path.exists(os.path.expanduser(path)), path
