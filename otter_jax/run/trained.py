"""The models of runs: their weights, their image towers, fixed teachers."""

import pathlib
from collections.abc import Sequence
from pathlib import Path

import jax
from flax import linen as nn
from jax.sharding import Sharding
from jaxtyping import PyTree
from ml_collections import ConfigDict

from otter_jax import gates
from otter_jax.errors import UserError
from otter_jax.models.towers import Towers
from otter_jax.run import directory
from otter_jax.run.checkpoint import restore_best
from otter_jax.run.model import DTYPES, gated, shapes
from otter_jax.weights import encoders


def trained(
    config: ConfigDict, workdir: Path, sharding: Sharding, *, dtype: str | None = None
) -> tuple[Towers, dict[str, PyTree], Path, int]:
    """A run's model, its weights {"student", "ema"}, its tokenizer's folder, and which step it is.

    The model computes in `dtype`, by default as it was trained; gates are folded in.
    The step is the best by eval.best, else the latest. "ema" is left out where there is none, or a
    fixed teacher in its place. Raises UserError if there is no checkpoint, or it is of another
    model than the config's.
    """
    section = config.model.to_dict()
    section |= {"dtype": dtype or section["dtype"], "gate_shape": config.gates.shape}
    model, like, tokenizer = shapes(**section)
    teacher = {} if config.teacher.checkpoint else {"teacher": like}
    state, step = restore_best(workdir, like, sharding, best=config.eval.best, optional=teacher)
    weights_of = {"student": {name: state[name] for name in like}}
    if "teacher" in state:
        weights_of["ema"] = state["teacher"]
    folded = {
        name: tree | {"params": gates.fold(tree["params"])} for name, tree in weights_of.items()
    }
    return model, folded, tokenizer, step


def is_run(source: str) -> bool:
    """Whether these weights are the directory of a run."""
    folder = Path(source).expanduser()
    return bool(source) and (folder / "checkpoints").is_dir() and (folder / "run.json").is_file()


def image_module(source: str, *, arch: str, dtype: str) -> nn.Module:
    """The module of `image_encoder` alone; no weights are read, nor need they be there still."""
    if is_run(source):
        source = directory.config_of(Path(source).expanduser()).model.img.weights
    return encoders.load_image(source, arch=arch, dtype=DTYPES[dtype], pretrained=False).module


def image_encoder(
    source: str, *, arch: str, dtype: str, mean: Sequence[float], std: Sequence[float], ema: bool
) -> tuple[nn.Module, PyTree]:
    """An image encoder without a classifier, and its variables, {} for none.

    `source` is what `weights.load_image` takes, or the directory of a contrastive run, whose image
    tower is taken (with the gates that it has folded in): that of its EMA weights if `ema`.

    Raises UserError as `weights.load_image` does, if the run's tower is not of `arch`, if the run
    (or what a folder's config tells of) has seen other pixels than `mean` and `std` make, or for
    `ema` where there is none.
    """
    if dtype not in DTYPES:
        raise UserError(f"model.dtype={dtype!r}: one of {', '.join(DTYPES)}.")
    folder = Path(source).expanduser()
    if not is_run(source):
        if ema:
            raise UserError(f"model.ema is for the weights of a run, and {source!r} is none.")
        pixels = (mean, std)
        found = encoders.load_image(source, arch=arch, dtype=DTYPES[dtype], pixels=pixels)
        return found.module, found.variables
    config = directory.config_of(folder)
    theirs = config.model.img
    for key, ours in (("arch", arch), ("mean", tuple(mean)), ("std", tuple(std))):
        there = theirs[key] if key == "arch" else tuple(theirs[key])
        if there != ours:
            raise UserError(f"model.{key}={ours!r}, but the run in {folder} has {there!r}.")
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    model, weights_of, _, _ = trained(config, folder, here, dtype=dtype)
    which = "ema" if ema else "student"
    if which not in weights_of:
        raise UserError(f"{folder} has no {which} weights; there is {', '.join(weights_of)}.")
    found = weights_of[which]
    return model.img, {kind: tree["img"] for kind, tree in found.items() if "img" in tree}


def fixed_teacher(config: ConfigDict, like: PyTree) -> PyTree:
    """The student's weights in the run config.teacher.checkpoint: its best, else its latest.

    Its gates are folded in; where `like` has gates, the teacher's are 1.
    """
    folder = pathlib.Path(config.teacher.checkpoint).expanduser()
    own = {name: tree for name, tree in like["params"].items() if name != "gates"}
    try:
        theirs = directory.config_of(folder)
        like = gated(like | {"params": own}, theirs.gates.shape)
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        teacher, _ = restore_best(folder, like, sharding, best=theirs.eval.best)
    except UserError as error:
        raise UserError(f"teacher.checkpoint={config.teacher.checkpoint!r}: {error}") from error
    folded = teacher | {"params": gates.fold(teacher["params"])}
    return gated(folded, config.gates.shape)
