"""From the model section of a config to the two towers and what they start from."""

import functools
from collections.abc import Callable, Mapping, Sequence
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
from otter_jax.checkpoint import restore_best
from otter_jax.data.captions import Tokenizer
from otter_jax.errors import UserError
from otter_jax.models.bert import Bert
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
    given: dict[str, Any] = {}
    for tower, encoder in (("img", image), ("txt", text)):
        for collection, tree in encoder.variables.items():
            given.setdefault(collection, {})[tower] = tree
    variables = complete(given, functools.partial(initialise, model, key))
    return model, {"batch_stats": {}} | gated(variables, gate_shape), text.tokenizer


def complete(given: PyTree, fresh: Callable[[], PyTree]) -> PyTree:
    """The variables that `fresh` makes, those of them that are given as given."""
    given = traverse_util.flatten_dict(given)

    def draw():
        flat = traverse_util.flatten_dict(fresh())
        return {path: leaf for path, leaf in flat.items() if path not in given}

    # Compiled without optimisation and without what is given: a second instead of a minute.
    drawn = jax.jit(draw, compiler_options={"xla_backend_optimization_level": 0})()
    return traverse_util.unflatten_dict(given | drawn)


def shapes(
    *,
    dim: int,
    img: Mapping[str, Any],
    txt: Mapping[str, Any],
    dtype: str,
    gate_shape: str = "",
) -> tuple[Towers, PyTree, Path]:
    """As `towers`, with the variables' shapes alone; no weights are read."""
    txt = {**txt, "pretrained": False}
    model, _, text = join(dim=dim, img=img, txt=txt, dtype=dtype, pretrained=False)
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
        source = record.config_of(Path(source).expanduser()).model.img.weights
    return weights.load_image(source, arch=arch, dtype=DTYPES[dtype], pretrained=False).module


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
        found = weights.load_image(source, arch=arch, dtype=DTYPES[dtype], pixels=pixels)
        return found.module, found.variables
    config = record.config_of(folder)
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
    *,
    dim: int,
    img: Mapping[str, Any],
    txt: Mapping[str, Any],
    dtype: str,
    pretrained: bool = True,
) -> tuple[Towers, Encoder, Encoder]:
    """The model, and its image and text encoder as they were loaded; see `weights.load_image`."""
    if dtype not in DTYPES:
        raise UserError(f"model.dtype={dtype!r}: one of {', '.join(DTYPES)}.")
    image = weights.load_image(
        img["weights"], arch=img["arch"], dtype=DTYPES[dtype], pretrained=pretrained
    )
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
    if config.data.packed and not isinstance(model.txt, Bert):
        raise UserError(
            f"data.packed=True: the text encoder of {config.model.txt.weights!r} cannot read "
            "packed captions; BERT and RoBERTa can. Set --config.data.packed=False."
        )
    check_image_size(config.data.image_size, model.img, config.model.img.arch)


def check_image_size(size: int, module: nn.Module, arch: str) -> None:
    """Raises UserError if the encoder cannot read images of size x size."""
    if isinstance(module, ViT) and size % module.patch:
        raise UserError(
            f"data.image_size={size}: {arch} cuts images into patches, so it must be a multiple of "
            f"{module.patch}."
        )


def initialise(model: Towers, key: Key[Array, ""]) -> PyTree:
    """Fresh variables; their shapes do not depend on the sizes of images and texts."""
    image, ids = jnp.zeros((1, 64, 64, 3), jnp.uint8), jnp.zeros((1, 8), jnp.int32)
    return model.init(key, image, ids, jnp.ones((1, 8), bool), train=False)
