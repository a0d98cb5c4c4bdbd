"""Labelled squares to transfer to: pictures in folders, a tiny network, a config, a run of it."""

import contextlib
import io
from unittest import mock

import rich.console
from pictures import coloured

from otter_jax.configs import transfer as configs
from otter_jax.errors import Stopped
from otter_jax.models.resnet import ResNet
from otter_jax.report import transfer as report
from otter_jax.training.compiling import compiled
from otter_jax.transfer import task

COLOURS = {"red": (200, 30, 30), "green": (20, 180, 40), "dark blue": (30, 40, 220)}
PROGRAMS = {}  # compiled steps
TINY = (ResNet, {"stage_sizes": (1, 1), "block": "basic", "channels": (8, 12)})


def write(root):
    """12 squares to train on and 4 to validate on of each of three classes, in folders."""
    for split, count, first in (("train", 12, 0), ("validation", 4, 100)):
        for name, colour in COLOURS.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                (folder / f"{i}.png").write_bytes(coloured(colour, first + i))
    (root / "train" / "red" / "torn.png").write_bytes(b"\x89PNG torn")
    return root


def make_config(squares):
    """Four epochs, a second each, on the squares in that folder."""
    config = configs.get_config()
    config.phases = "Fa[bf]a"
    config.model.arch, config.model.weights = "tiny", ""
    config.data.dir = str(squares.parent / "sets")
    config.data.name, config.data.folder = "squares", str(squares)
    config.data.resize, config.data.image_size = 36, 32
    config.train.batch_size, config.train.log_every = 8, 3
    config.train.stored_statistics = False  # there are none
    config.optim.learning_rate = 3e-2
    config.eval.batch_size = 8
    return config


def run(config, workdir, compile_by=compiled, **how):
    """What the program prints, when it goes on with a run as `how` says.

    Two shares are pruned, and a step is compiled once for all runs.
    """
    file = io.StringIO()
    console = rich.console.Console(file=file, width=200)
    sections = "".join(config[key].to_json() for key in ("model", "gates", "optim", "train"))

    def remembered(jitted, *shapes, name, console):
        key = name, str(shapes), sections, compile_by
        if key not in PROGRAMS:
            PROGRAMS[key] = compile_by(jitted, *shapes, name=name, console=console)
        return PROGRAMS[key]

    with (
        contextlib.suppress(Stopped),
        mock.patch.object(task, "compiled", remembered),
        mock.patch.object(report, "SHARES", (0.2, 0.5)),
    ):
        validation = task.run(config, workdir, console=console, **how)
        if config.report:
            report.write(config, workdir, validation, console=console)
    return file.getvalue()
