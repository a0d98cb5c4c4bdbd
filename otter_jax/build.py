"""From the model section of a config to the two towers and what they start from."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util
from jax.sharding import Sharding
from jaxtyping import Array, Key, PyTree
from ml_collections import ConfigDict

from otter_jax import gates, record, weights
from otter_jax.checkpoint import Checkpoints
from otter_jax.data.captions import Tokenizer
from otter_jax.errors import UserError
from otter_jax.models.towers import Towers
from otter_jax.models.vit import ViT
from otter_jax.weights import Encoder

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def towers(
    *,
    dim: int,
    img: Mapping[str, Any],
    txt: Mapping[str, Any],
    dtype: str,
    gate_shape: str = "",
    key: Key[Array, ""],
) -> tuple[Towers, PyTree, Path]:
    """The model, its variables {"params", "batch_stats"}, and the folder of its tokenizer.

    Arguments are those of `configs/common.py`, section model; with `gate_shape` the convolutions of
    the image tower get gates of 1 (`gates.create`).
    Variables that no weights were given for are drawn from `key`. Raises UserError as
    `weights.load_image` and `weights.load_text` do.
    """
    model, image, text = join(dim=dim, img=img, txt=txt, dtype=dtype)
    given = {
        (collection, tower, *path): leaf
        for tower, encoder in (("img", image), ("txt", text))
        for collection, tree in encoder.variables.items()
        for path, leaf in traverse_util.flatten_dict(tree).items()
    }

    def draw():
        flat = traverse_util.flatten_dict(initialise(model, key))
        return {path: leaf for path, leaf in flat.items() if path not in given}

    # Compiled without optimisation and without what is given: a second instead of a minute.
    drawn = jax.jit(draw, compiler_options={"xla_backend_optimization_level": 0})()
    variables = traverse_util.unflatten_dict(given | drawn)
    return model, {"batch_stats": {}} | gated(variables, gate_shape), text.tokenizer


def shapes(
    *,
    dim: int,
    img: Mapping[str, Any],
    txt: Mapping[str, Any],
    dtype: str,
    gate_shape: str = "",
) -> tuple[Towers, PyTree, Path]:
    """As `towers`, with the variables' shapes alone; no weights are read."""
    img, txt = {**img, "weights": ""}, {**txt, "pretrained": False}
    model, _, text = join(dim=dim, img=img, txt=txt, dtype=dtype)
    like = jax.eval_shape(lambda: gated(initialise(model, jax.random.key(0)), gate_shape))
    return model, {"batch_stats": {}} | like, text.tokenizer


def gated(variables: PyTree, shape: str) -> PyTree:
    """`variables` with gates of 1 on the image tower; as they are if `shape` is ""."""
    if not shape:
        return variables
    params = variables["params"]
    own = {"gates": {"img": gates.create(params["img"], shape)}}
    return variables | {"params": params | own}


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
    checkpoints = Checkpoints(workdir, best=config.eval.best, read_only=True)
    try:
        step = checkpoints.best
        if step is None:
            raise UserError(f"There is no checkpoint in {workdir}: train first, or mend --workdir.")
        averaged = not config.teacher.checkpoint and "teacher" in checkpoints.entries(step)
        wanted = like | ({"teacher": like} if averaged else {})
        state = checkpoints.restore_part(step, wanted, sharding)
    finally:
        checkpoints.close()
    weights_of = {"student": {name: state[name] for name in like}}
    if averaged:
        weights_of["ema"] = state["teacher"]
    folded = {
        name: tree | {"params": gates.fold(tree["params"])} for name, tree in weights_of.items()
    }
    return model, folded, tokenizer, step


def image_encoder(
    source: str, *, arch: str, dtype: str, mean: Sequence[float], std: Sequence[float], ema: bool
) -> tuple[nn.Module, PyTree]:
    """An image encoder without a classifier, and its variables, {} for none.

    `source` is what `weights.load_image` takes, or the directory of a contrastive run, whose image
    tower is taken (with the gates that it has folded in): that of its EMA weights if `ema`.

    Raises UserError as `weights.load_image` does, if the run's tower is not of `arch` or has seen
    other pixels than `mean` and `std` make, or for `ema` where there is none.
    """
    if dtype not in DTYPES:
        raise UserError(f"model.dtype={dtype!r}: one of {', '.join(DTYPES)}.")
    folder = Path(source).expanduser()
    if not (source and (folder / "checkpoints").is_dir()):
        if ema:
            raise UserError(f"model.ema is for the weights of a run, and {source!r} is none.")
        found = weights.load_image(source, arch=arch, dtype=DTYPES[dtype])
        return found.module, found.variables
    config = record.config_of(folder)
    if "img" not in config.model:
        raise UserError(f"{folder} is a run of another program; `--export` it, and take that.")
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


def join(
    *, dim: int, img: Mapping[str, Any], txt: Mapping[str, Any], dtype: str
) -> tuple[Towers, Encoder, Encoder]:
    """The model, and its image and text encoder as they were loaded."""
    if dtype not in DTYPES:
        raise UserError(f"model.dtype={dtype!r}: one of {', '.join(DTYPES)}.")
    image = weights.load_image(img["weights"], arch=img["arch"], dtype=DTYPES[dtype])
    text = weights.load_text(
        txt["weights"], dropout=txt["dropout"], dtype=DTYPES[dtype], pretrained=txt["pretrained"]
    )
    model = Towers(
        img=image.module,
        txt=text.module,
        dim=dim,
        txt_width=text.width,
        mean=tuple(img["mean"]),
        std=tuple(img["std"]),
    )
    return model, image, text


def check_sizes(config: ConfigDict, model: Towers, tokenizer: Tokenizer) -> None:
    """Raises UserError if an encoder cannot read such images, or captions so tokenised."""
    words = model.txt.config.vocab_size
    if tokenizer.vocab_size > words:
        raise UserError(
            f"The tokenizer of model.txt.weights={config.model.txt.weights!r} has "
            f"{tokenizer.vocab_size} tokens, but the encoder there embeds {words}: "
            "they do not belong together."
        )
    longest = model.txt.config.max_length
    if config.data.max_tokens > longest:
        raise UserError(
            f"data.max_tokens={config.data.max_tokens}: the text encoder has {longest} positions."
        )
    if isinstance(model.img, ViT) and config.data.image_size % model.img.patch:
        raise UserError(
            f"data.image_size={config.data.image_size}: {config.model.img.arch} cuts images into "
            f"patches, so it must be a multiple of {model.img.patch}."
        )


def initialise(model: Towers, key: Key[Array, ""]) -> PyTree:
    """Fresh variables; their shapes do not depend on the sizes of images and texts."""
    image, ids = jnp.zeros((1, 64, 64, 3), jnp.uint8), jnp.zeros((1, 8), jnp.int32)
    return model.init(key, image, ids, jnp.ones((1, 8), bool), train=False)
