"""docs/tutorial.md works as it stands, its commands in their order; so does the README's Python."""

import importlib
import os
import pathlib
import re
import shlex
import shutil
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


README = (REPO / "README.md").read_text("utf-8")
# Of the README's config of own classes.
HERE = {
    "/data/animals-*.tar": "squares.tar",
    "json.species": "json.colour",
    "/data/species.txt": "names.txt",
}


def run(name, *words):
    """The exit status of a command in this process."""
    return importlib.import_module(otter_jax.__main__.COMMANDS[name][0]).main(words)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A home, where the page's reader is, too: two folders of pictures, and tiny encoders."""
    folder = world.make(tmp_path_factory.mktemp("home"))  # with text/, an encoder
    for name in ("pictures", "new"):
        (folder / name).mkdir()
        for i in range(60):
            colour = list(world.COLOURS)[i % 4]
            path = folder / name / f"{i}.jpg"
            path.write_bytes(coloured(world.COLOURS[colour], i))
            if name == "pictures":
                path.with_suffix(".txt").write_text(f"a {colour} square")
    make_mesh = mesh.make_mesh
    with pytest.MonkeyPatch.context() as patch, world.tiny():
        patch.setattr(mesh, "make_mesh", lambda count=None: make_mesh(count or 1))
        patch.setattr(doctor, "SECONDS", 0.2)
        patch.setenv("HOME", str(folder))
        patch.chdir(folder)
        yield folder


@pytest.fixture(scope="module")
def walked(home):
    """The home after the ten commands; their names and exit statuses; servers of the demo."""
    statuses, servers, start = [], [], server.running

    async def enough(counter):
        return True

    def running(app):  # ends as soon as it listens
        servers.append(start(app))
        servers[-1].on_tick = enough
        return servers[-1]

    with mock.patch.object(server, "running", running):
        for _, name, *words in COMMANDS:
            statuses.append((name, run(name, *words, *MORE.get(name, []))))
    return home, statuses, servers


def test_the_ten_commands_do_what_the_page_promises(walked):
    _, statuses, servers = walked
    assert len(statuses) == 10
    assert {status for _, status in statuses} == {0}, statuses
    assert [each.started for each in servers] == [True]
    promised = re.findall(r"`([\w~./]+(?:/|\.(?:html|png|csv|parquet|jsonl?|md)))`", PAGE)
    assert len(promised) > 10
    for path in promised:
        assert os.path.exists(os.path.expanduser(path)), path


def test_the_readmes_config_and_its_three_lines_of_python_work_on_that_run(walked, capsys):
    home, *_ = walked
    config, lines = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    for path, here in HERE.items():
        assert path in config
        config = config.replace(path, here)
    (home / "my_classes.py").write_text(config)
    words = ["--workdir", "runs/mine", "--config", "my_classes.py:cpu"]
    assert f"otter-jax eval {shlex.join(words)}".removesuffix(":cpu") in README
    assert run("eval", *words, "--config.data.name=mine", *CONFIG) == 0
    assert "animals, step 4: 40 images, 4 classes" in capsys.readouterr().out
    shutil.copy(home / "new" / "0.jpg", home / "photo.jpg")
    exec(lines, {})
    assert capsys.readouterr().out.strip() in ("dog", "sofa")
