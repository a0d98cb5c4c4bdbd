"""Makes untrained towers from a config's `model` section, with their starting weights."""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util
from jaxtyping import Array, Key, PyTree
from ml_collections import ConfigDict

from otter_jax import gates
from otter_jax.data.captions import Tokenizer
from otter_jax.errors import UserError
from otter_jax.models.bert import Bert
from otter_jax.models.clip import ClipText, ClipTextConfig
from otter_jax.models.towers import Towers
from otter_jax.models.vit import ViT
from otter_jax.run import directory
from otter_jax.weights import encoders, image_config, sentences
from otter_jax.weights.encoders import Encoder
from otter_jax.weights.tensors import Tell, quiet

UNKNOWN = 0.05  # share of unknown tokens in captions that is worth a word
SPARE = 128, 0.1  # tokens that an encoder embeds beyond its tokenizer's: a number, or a share
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def fresh(
    *,
    dim: int,
    img: Mapping[str, Any],
    txt: Mapping[str, Any],
    dtype: str,
    gate_shape: str = "",
    key: Key[Array, ""],
    tell: Tell = quiet,
) -> tuple[Towers, PyTree, Path]:
    """Makes a model; returns it, its variables {"params", "batch_stats"}, its tokenizer's folder.

    The arguments are those of `configs/common.py`, section model; with `gate_shape` the
    convolutions of the image tower get gates of 1 (`gates.create`). Variables without weights are
    drawn from `key`; `tell` is told what the user should see. Raises UserError as
    `weights.load_image` and `weights.load_text` do.
    """
    model, image, text = load_towers(dim=dim, img=img, txt=txt, dtype=dtype, tell=tell)
    given: dict[str, Any] = {}
    for tower, encoder in (("img", image), ("txt", text)):
        for collection, tree in encoder.variables.items():
            given.setdefault(collection, {})[tower] = tree
    variables = complete(given, functools.partial(initialise, model, key))
    return model, {"batch_stats": {}} | gated(variables, gate_shape), text.tokenizer


def complete(given: PyTree, initial: Callable[[], PyTree]) -> PyTree:
    """Draws the variables that are not given, and returns all of them.

    `initial` draws all; the given ones replace their namesakes.
    """
    given = traverse_util.flatten_dict(given)

    def draw():
        flat = traverse_util.flatten_dict(initial())
        return {path: leaf for path, leaf in flat.items() if path not in given}

    # Compiled without optimisation, and only for missing variables: a second instead of a minute.
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
    """Returns what `fresh` returns, with shapes in place of weights; reads no weights."""
    txt = {**txt, "pretrained": False}
    model, _, text = load_towers(dim=dim, img=img, txt=txt, dtype=dtype, pretrained=False)

    def init():
        return gated(initialise(model, jax.random.key(0)), gate_shape)

    like = encoders.remembered(lambda: jax.eval_shape(init), model, gate_shape)
    return model, {"batch_stats": {}} | like, text.tokenizer


def gated(variables: PyTree, shape: str) -> PyTree:
    """Adds gates of 1 on the image tower; with `shape` "" returns the variables as they are."""
    if not shape:
        return variables
    params = variables["params"]
    own = {"gates": {"img": gates.create(params["img"], shape)}}
    return variables | {"params": params | own}


def load_towers(
    *,
    dim: int,
    img: Mapping[str, Any],
    txt: Mapping[str, Any],
    dtype: str,
    pretrained: bool = True,
    tell: Tell = quiet,
) -> tuple[Towers, Encoder, Encoder]:
    """Returns the model, and its two encoders from `weights.load_image` and `load_text`.

    Of weights that are a run's only the architecture is taken (`trained.fresh` has the rest).
    `tell` is told what they tell, and of weights that are used to other pixels.
    """
    as_dtype = dtype_of(dtype)
    base = origin(img["weights"], "img")
    image = encoders.load_image(
        base,
        arch=img["arch"],
        dtype=as_dtype,
        pretrained=pretrained and base == img["weights"],
        tell=tell,
    )
    base = origin(txt["weights"], "txt")
    text = encoders.load_text(
        base,
        dropout=txt["dropout"],
        dtype=as_dtype,
        pretrained=txt["pretrained"] and base == txt["weights"],
        tell=tell,
    )
    model = Towers(
        img=image.module,
        txt=text.module,
        dim=dim,
        txt_width=text.width,
        mean=tuple(img["mean"]),
        std=tuple(img["std"]),
    )
    own = (model.mean, model.std)
    if image.pixels and not image_config.is_same(image.pixels, own):
        remedy = image_config.flags("model.img", image.pixels)
        tell(
            f"The weights of {img['weights']} are used to other pixels than the config makes; "
            f"to keep to theirs: {remedy}"
        )
    return model, image, text


def origin(weights: str, tower: str) -> str:
    """Returns the weights that a run's tower ("img" or "txt") was started from; others as they are.

    A run may have been started from another one.
    """
    folder, seen = weights.partition("#")[0], set()
    while directory.is_run(folder):
        if folder in seen:
            raise UserError(f"The run in {folder} says that it was started from itself.")
        seen.add(folder)
        weights = directory.config_of(Path(folder).expanduser()).model[tower].weights
        folder = weights.partition("#")[0]
    return weights


def dtype_of(name: str) -> Any:
    """Returns the dtype that encoders compute in. Raises UserError for a name not in `DTYPES`."""
    if name not in DTYPES:
        raise UserError(f"model.dtype={name!r}: one of {', '.join(DTYPES)}.")
    return DTYPES[name]


def check_sizes(config: ConfigDict, model: Towers, tokenizer: Tokenizer) -> None:
    """Raises UserError if an encoder cannot read images or captions of the config's sizes."""
    check_tokenizer(config.model.txt.weights, model.txt, tokenizer)
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


def check_tokenizer(weights: str, text: nn.Module, tokenizer: Tokenizer) -> None:
    """Raises UserError if the tokenizer of `weights` cannot be that of its text encoder."""
    words = text.config.vocab_size
    if tokenizer.vocab_size > words:
        raise UserError(
            f"The tokenizer of {weights!r} has {tokenizer.vocab_size} tokens, but the encoder "
            f"there embeds {words}: they do not belong together."
        )
    if isinstance(text, ClipText):
        check_closing(weights, text.config, tokenizer)


def check_closing(weights: str, config: ClipTextConfig, tokenizer: Tokenizer) -> None:
    """Raises UserError if captions do not end with the token that CLIP's text encoder reads."""
    ids, mask = tokenizer.encode([""])
    last = int(ids[0][mask[0]][-1]) if mask.any() else None
    if config.eos_token_id not in (2, last):  # 2 stands for the largest id, whatever it is
        raise UserError(
            f"The tokenizer of {weights!r} closes captions with token {last}, but the encoder "
            f"there reads token {config.eos_token_id}: they do not belong together."
        )


def check_tokens(weights: str, text: nn.Module, tokenizer: Tokenizer) -> list[str]:
    """Returns sentences on what shows that a tokenizer may be another model's than `text`'s."""
    found, words = [], text.config.vocab_size
    if words - tokenizer.vocab_size > max(SPARE[0], SPARE[1] * words):
        found.append(
            f"The tokenizer of model.txt.weights={weights!r} has {tokenizer.vocab_size:,} tokens, "
            f"and the encoder there embeds {words:,}: is the vocabulary whole, and this model's?"
        )
    if isinstance(text, Bert) and tokenizer.pad_id != text.config.pad_token_id:
        found.append(
            f"The tokenizer of model.txt.weights={weights!r} fills rows with token "
            f"{tokenizer.pad_id}, and config.json there says {text.config.pad_token_id}: is the "
            "tokenizer this model's?"
        )
    return found


def check_captions(
    config: ConfigDict,
    text: nn.Module,
    folder: Path,
    tokenizer: Tokenizer,
    captions: Sequence[str],
) -> list[str]:
    """Returns sentences on what may be wrong between text encoder, tokenizer and some captions.

    `folder` is the tokenizer's. Raises UserError if it knows no word of any caption.
    """
    weights = config.model.txt.weights
    found = [*tokenizer.doubts, *check_tokens(weights, text, tokenizer)]
    most = sentences.most_tokens(folder)
    if most and config.data.max_tokens > most:
        found.append(
            f"data.max_tokens={config.data.max_tokens}, but sentence-transformers cuts texts for "
            f"the encoder of model.txt.weights={weights!r} at {most} tokens: longer ones "
            "were not seen there."
        )
    seen = [text for text in captions if text.strip()]
    known = tokenizer.known(seen)
    if seen and not known.any():
        raise UserError(
            f"The tokenizer of model.txt.weights={weights!r} knows no word of the captions: all "
            f"{len(seen):,} looked at become special or unknown tokens alone, such as {seen[0]!r}, "
            f"which becomes {' '.join(tokenizer.tokens(seen[0])[:8])}. Give an encoder whose "
            "tokenizer belongs to it and to the captions' language."
        )
    # Special tokens are at least two per caption in most tokenizers, and none in some.
    least = tokenizer.lengths([""])[0]
    unknown = tokenizer.lengths(seen) - least - known
    share = unknown.sum() / max((known + unknown).sum(), 1)
    if share > UNKNOWN:
        worst = seen[int(unknown.argmax())]
        found.append(
            f"{share:.0%} of the captions' words are unknown to the tokenizer of "
            f"model.txt.weights={weights!r}, most in {worst[:80]!r}."
        )
    return found


def read_as(text: nn.Module) -> str:
    """Returns, as text, how a text encoder makes one vector of a caption's tokens."""
    if not isinstance(text, Bert):
        return "CLIP, the closing token"
    kind = "RoBERTa" if text.config.roberta_positions else "BERT"
    steps = [f"{each.width} wide, {each.activation}" for each in text.projections]
    return "; ".join([f"{kind}, pooled by {text.pooling}", *steps])


def check_image_size(size: int, module: nn.Module, arch: str) -> None:
    """Raises UserError if the encoder cannot read images of size x size."""
    if isinstance(module, ViT) and size % module.patch:
        raise UserError(
            f"data.image_size={size}: {arch} cuts images into patches, so it must be a multiple of "
            f"{module.patch}."
        )


def initialise(model: Towers, key: Key[Array, ""]) -> PyTree:
    """Returns random variables; their shapes do not depend on the sizes of images and texts."""
    image, ids = jnp.zeros((1, 64, 64, 3), jnp.uint8), jnp.zeros((1, 8), jnp.int32)
    captions = {"token_ids": ids, "mask": jnp.ones((1, 8), bool)}
    return model.init(key, image, captions, train=False)
