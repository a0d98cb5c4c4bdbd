"""Loads trained weights from a run's directory."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util
from jax.sharding import Sharding
from jaxtyping import Array, Key, PyTree
from ml_collections import ConfigDict

from otter_jax import gates
from otter_jax import mesh as meshes
from otter_jax.errors import UserError
from otter_jax.models.towers import Towers
from otter_jax.run import directory, model
from otter_jax.run.reading import restore_best
from otter_jax.weights import encoders
from otter_jax.weights.tensors import Tell, quiet

Flat = dict[tuple[str, ...], Any]  # variables by their paths


class Trained(NamedTuple):
    """Holds a trained model.

    Attributes:
      model: the module.
      variables: {"params", "batch_stats"} of the "student" and, where there is one, of the "ema".
      tokenizer: the folder of its tokenizer.
      step: the step of the run after which they were saved.
      taken: the step, and why it was taken, for people.
    """

    model: Towers
    variables: dict[str, PyTree]
    tokenizer: Path
    step: int
    taken: str

    def of(self, weights: str, workdir: Path) -> PyTree:
        """Returns the variables of "student" or "ema". Raises UserError if there are none."""
        if weights not in self.variables:
            raise UserError(
                f"{workdir} has no {weights} weights; there is {', '.join(self.variables)}."
            )
        return self.variables[weights]


def kept_weights(config: ConfigDict) -> tuple[str, ...]:
    """Names the weights of a contrastive run: "student", and "ema" unless its teacher is fixed."""
    return ("student",) if config.teacher.checkpoint else ("student", "ema")


def load(
    config: ConfigDict,
    workdir: Path,
    sharding: Sharding,
    *,
    dtype: str | None = None,
    step: int | None = None,
    ema: bool = True,
) -> Trained:
    """Restores the checkpoint `step` of a contrastive run, else its best by eval.best, or latest.

    The model computes in `dtype`, by default the one it was trained in; gates are folded in. "ema"
    is left out if the run has none, or a fixed teacher in its place, or if not `ema`. Raises
    UserError if there is no checkpoint, or it is of another model than the config's.
    """
    section = config.model.to_dict()
    section |= {"dtype": dtype or section["dtype"], "gate_shape": config.gates.shape}
    module, like, tokenizer = model.shapes(**section)
    teacher = {"teacher": like} if ema and "ema" in kept_weights(config) else {}
    state, taken = restore_best(
        workdir, like, sharding, best=config.eval.best, step=step, optional=teacher
    )
    found = {"student": {name: state[name] for name in like}}
    if "teacher" in state:
        found["ema"] = state["teacher"]
    folded = {name: gates.folded(variables) for name, variables in found.items()}
    return Trained(module, folded, tokenizer, taken.step, str(taken))


def fresh(
    config: ConfigDict, *, key: Key[Array, ""], tell: Tell = quiet
) -> tuple[Towers, PyTree, Path]:
    """Makes the model of a config as `model.fresh` does, from a run's weights where it names a run.

    `model.img.weights` and `model.txt.weights` may be the directory of a contrastive run, or
    "DIR#ema": then its best or latest tower is taken, with its head if it has as many outputs, and
    both temperatures if both towers are of one run; gates are folded in. Other temperatures start
    at `objective.log_scale`. `tell` is told which checkpoint that is. Raises UserError if the run's
    tower is of another architecture.
    """
    section = config.model.to_dict()
    made, variables, tokenizer = model.fresh(
        **section, gate_shape=config.gates.shape, key=key, tell=tell
    )
    flat = traverse_util.flatten_dict(variables)
    start = jnp.float32(config.objective.log_scale)
    flat |= {path: start for path in flat if path[1] == "log_scale"}
    sources = {tower: section[tower]["weights"] for tower in ("img", "txt")}
    for weights in dict.fromkeys(sources.values()):
        if directory.is_run(weights.partition("#")[0]):
            towers = [tower for tower, source in sources.items() if source == weights]
            flat |= _of_run(config, weights, towers, flat, tell)
    return made, traverse_util.unflatten_dict(flat), tokenizer


def _of_run(
    config: ConfigDict, weights: str, towers: Sequence[str], flat: Flat, tell: Tell
) -> Flat:
    """Returns what towers, whose fresh variables are in `flat`, take from a run, by its path."""
    name, _, part = weights.partition("#")
    folder, part = Path(name).expanduser(), part or "student"
    theirs = directory.config_of(folder)
    if "img" in towers:
        _check_alike(config.model.img, theirs.model.img, folder, "model.img")
    run = load(theirs, folder, meshes.one_device())
    tell(f"{' and '.join(towers)} begin with the {part} weights of {folder}, {run.taken}.")
    found = traverse_util.flatten_dict(jax.device_get(run.of(part, folder)))
    heads = [f"{tower}_head" for tower in towers]
    names = [*towers, *heads, *(["log_scale"] if len(towers) == 2 else [])]
    found = {path: leaf for path, leaf in found.items() if path[1] in names}
    wanted = {path: leaf for path, leaf in flat.items() if path[1] in names}
    other = [
        path
        for path in found | wanted
        if path not in found or path not in wanted or found[path].shape != wanted[path].shape
    ]
    if any(path[1] not in heads for path in other):
        some = ", ".join("/".join(path[1:]) for path in other[:4])
        raise UserError(
            f"The run in {folder} has towers of other sizes: {len(other)} tensors differ, such as "
            f"{some}. Choose the same encoders."
        )
    if other:
        tell(f"The heads of {folder} have another size than model.dim={config.model.dim}: anew.")
    return {path: leaf for path, leaf in found.items() if path not in other}


def _check_alike(
    ours: Mapping[str, Any] | ConfigDict, theirs: ConfigDict, folder: Path, section: str
) -> None:
    """Raises UserError if a run's image tower is of another arch, or used to other pixels."""
    for key in ("arch", "mean", "std"):
        pair = ours[key], theirs[key]
        own, there = pair if key == "arch" else map(tuple, pair)  # read from JSON, it is a list
        if own != there:
            raise UserError(f"{section}.{key}={own!r}, but the run in {folder} has {there!r}.")


def image_module(weights: str, *, arch: str, dtype: str) -> nn.Module:
    """Returns the module that `image_encoder` returns, without reading weights.

    The weights need not exist any more.
    """
    dtype = model.dtype_of(dtype)
    weights = model.origin(weights, "img")
    return encoders.load_image(weights, arch=arch, dtype=dtype, pretrained=False).module


def image_encoder(
    weights: str,
    *,
    arch: str,
    dtype: str,
    mean: Sequence[float],
    std: Sequence[float],
    ema: bool,
    tell: Tell = quiet,
) -> tuple[nn.Module, PyTree]:
    """Returns an image encoder without a classifier, and its variables ({} if it has no weights).

    `weights` is the same as for `weights.load_image`, or the directory of a contrastive run: then
    the encoder is the run's image tower, gates folded in, with its EMA weights if `ema`. `tell` is
    told what the user should see.

    Raises UserError as `weights.load_image` does, if the run's tower is not of `arch`, if the run
    or the folder's config has another `mean` or `std`, or for `ema` where there are no such
    weights.
    """
    as_dtype = model.dtype_of(dtype)
    folder = Path(weights).expanduser()
    if not directory.is_run(weights):
        if ema:
            raise UserError(f"model.ema is for the weights of a run, and {weights!r} is none.")
        pixels = (mean, std)
        found = encoders.load_image(weights, arch=arch, dtype=as_dtype, pixels=pixels, tell=tell)
        return found.module, found.variables
    config = directory.config_of(folder)
    given = {"arch": arch, "mean": tuple(mean), "std": tuple(std)}
    _check_alike(given, config.model.img, folder, "model")
    trained = load(config, folder, meshes.one_device(), dtype=dtype)
    variables = trained.of("ema" if ema else "student", folder)
    return trained.model.img, {k: tree["img"] for k, tree in variables.items() if "img" in tree}


def fixed_teacher(config: ConfigDict, like: PyTree) -> PyTree:
    """Restores the best, else the latest, student of the run config.teacher.checkpoint.

    The run's gates are folded in; where `like` has gates, the teacher's are 1. Raises UserError if
    there is no such run, or it is of another model.
    """
    folder = Path(config.teacher.checkpoint).expanduser()
    own = {name: tree for name, tree in like["params"].items() if name != "gates"}
    try:
        theirs = directory.config_of(folder)
        like = model.gated(like | {"params": own}, theirs.gates.shape)
        teacher, _ = restore_best(folder, like, meshes.one_device(), best=theirs.eval.best)
    except UserError as error:
        raise UserError(f"teacher.checkpoint={config.teacher.checkpoint!r}: {error}") from error
    return model.gated(gates.folded(teacher), config.gates.shape)
