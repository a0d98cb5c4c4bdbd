"""A small world to run the program in: 40 squares with captions, tiny encoders, a config."""

import contextlib
import importlib
import io
import json
import os
import pathlib
import socket
import subprocess
import sys
import tarfile
from unittest import mock

import numpy as np
from pictures import coloured

REPO = pathlib.Path(__file__).parent.parent
COLOURS = {"red": (200, 30, 30), "green": (20, 180, 40), "blue": (30, 40, 220), "white": (255,) * 3}
WORDS = [*COLOURS, "a", "photo", "of", "square", "."]
CONFIG = """
from otter_jax.configs import common

def get_config(method="otter"):
    config = common.get_config(method)
    config.model.dim = 16
    config.model.img.arch = "tiny"
    config.model.txt.weights = {text!r}
    config.model.txt.pretrained = False
    config.data.dir = {data!r}
    config.data.name = "squares"
    config.data.tars = ({tar!r},)
    config.data.resize = 36
    config.data.image_size = 32
    config.data.max_tokens = 8
    config.train.batch_size = 16
    config.train.epochs = 6.4
    config.train.log_every = 4
    config.optim.learning_rate = 1e-2
    config.eval.batch_size = 16
    config.checkpoint.every = 4
    config.eval.sets.colours = common.evaluation(
        "squares", tars=({tar!r},), label="json.colour", names={names!r}
    )
    return config
"""


# Of several processes JAX lets only the first write to the cache of compiled programs, so that the
# others compile anew at every start. Of those that are started with this each writes its own.
CACHED = """
import types
from jax._src import compiler

compiler.distributed = types.SimpleNamespace(global_state=types.SimpleNamespace(process_id=0))
"""
# An encoder that compiles in seconds, known to every process that is started with it on its path.
TINY = """
from otter_jax.models.resnet import ResNet
from otter_jax.weights import encoders

arguments = {"stage_sizes": (1,), "block": "basic", "channels": (8,)}
encoders.IMAGE_ENCODERS["tiny"] = (ResNet, arguments)
"""

# A config is a Python file. This one gives a fifth of a second to each step, in which to stop it.
SLOWLY = """
import time
from otter_jax.training.meters import Scalars

def slowly(*args, write=Scalars.write):
    time.sleep(0.2)
    write(*args)

Scalars.write = slowly
"""


def make(home: pathlib.Path) -> pathlib.Path:
    """Fills a folder with 40 pairs in a tar, a text encoder's folder, class names and a config."""
    with tarfile.open(home / "squares.tar", "w") as tar:
        for i in range(40):
            name = list(COLOURS)[i % 4]
            members = {
                "png": coloured(COLOURS[name], i),
                "txt": f"a {name} square".encode(),
                "json": json.dumps({"colour": name}).encode(),
            }
            for kind, content in members.items():
                info = tarfile.TarInfo(f"{i:04d}.{kind}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    text = home / "text"
    text.mkdir()
    (text / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]))
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    more = {"intermediate_size": 16, "vocab_size": 16, "max_position_embeddings": 12}
    (text / "config.json").write_text(json.dumps({"model_type": "bert", **sizes, **more}))
    (home / "names.txt").write_text("\n".join(COLOURS))
    paths = {
        "text": str(text),
        "data": str(home / "data"),
        "tar": str(home / "squares.tar"),
        "names": str(home / "names.txt"),
    }
    (home / "config.py").write_text(CONFIG.format(**paths))
    (home / "site").mkdir()
    (home / "site" / "sitecustomize.py").write_text(CACHED + TINY)
    return home


@contextlib.contextmanager
def tiny():
    """Context in which this process knows the encoder, too."""
    from otter_jax.weights import encoders

    with mock.patch.dict(encoders.IMAGE_ENCODERS):
        exec(TINY, {})
        yield


def command(world, *arguments, config=""):
    """A command line that trains, or with --mode=eval evaluates, in a process of its own."""
    return [
        *(sys.executable, "-u", "-m", "otter_jax.main"),
        *([] if config is None else ["--config", f"{world / 'config.py'}{config}"]),
        *arguments,
    ]


def environment(world, devices=1):
    return os.environ | {
        "PYTHONPATH": os.pathsep.join((str(world / "site"), str(REPO))),
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_COMPILATION_CACHE_DIR": os.environ.get("TESTS_CACHE", str(world / "cache")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    }


def call(world, *arguments, name="train", config="", devices=1):
    """The command `name` in this process, on so many of its devices: status, output and errors.

    A process of its own takes seconds to start, and compiles anew what this one has compiled.
    """
    from otter_jax import mesh
    from otter_jax.__main__ import COMMANDS

    argv = [*([] if config is None else ["--config", f"{world / 'config.py'}{config}"]), *arguments]
    command = importlib.import_module(COMMANDS[name][0])
    out, errors, make_mesh = io.StringIO(), io.StringIO(), mesh.make_mesh

    def some(num_devices=None):
        return make_mesh(num_devices or devices)

    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(errors),
        mock.patch.object(mesh, "make_mesh", some),
        tiny(),
    ):
        status = command.main([str(argument) for argument in argv])
    return subprocess.CompletedProcess(argv, status, out.getvalue(), errors.getvalue())


def run(world, *arguments, config="", devices=1):
    """`command` to its end, in a process of its own."""
    return subprocess.run(
        command(world, *arguments, config=config),
        cwd=REPO,
        env=environment(world, devices),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def start(world, *arguments):
    return subprocess.Popen(
        command(world, *arguments),
        cwd=REPO,
        env=environment(world),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens at."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def several(count: int) -> list[list[str]]:
    """The flags of each of so many processes of one run; none for one."""
    (port,) = free_ports(1)
    who = [f"--coordinator=127.0.0.1:{port}", f"--num_processes={count}"]
    return [[*who, f"--process_id={i}"] for i in range(count)] if count > 1 else [[]]


def state_of(workdir, step):
    """Every array of a checkpoint, by its path."""
    import jax
    import orbax.checkpoint as ocp

    folder = pathlib.Path(workdir) / "checkpoints" / str(step) / "state"
    with ocp.PyTreeCheckpointer() as checkpointer:
        tree = checkpointer.metadata(folder).item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        tree = checkpointer.restore(folder, restore_args=as_numpy)
    return {jax.tree_util.keystr(k): v for k, v in jax.tree_util.tree_flatten_with_path(tree)[0]}
