"""From the model section of a config to the two towers and what they start from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util
from jaxtyping import Array, Key, PyTree

from otter_jax import weights
from otter_jax.errors import UserError
from otter_jax.models.towers import Towers

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def towers(
    *,
    dim: int,
    img: Mapping[str, Any],
    txt: Mapping[str, Any],
    dtype: str,
    key: Key[Array, ""],
) -> tuple[Towers, PyTree, Path]:
    """The model, its variables {"params", "batch_stats"}, and the folder of its tokenizer.

    Arguments are those of `configs/common.py`, section model.
    Variables that no weights were given for are drawn from `key`. Raises UserError as
    `weights.load_image` and `weights.load_text` do.
    """
    if dtype not in DTYPES:
        raise UserError(f"model.dtype={dtype!r}: one of {', '.join(DTYPES)}.")
    image = weights.load_image(img["weights"], arch=img["arch"], dtype=DTYPES[dtype])
    text = weights.load_text(
        txt["weights"],
        dropout=txt["dropout"],
        dtype=DTYPES[dtype],
        pretrained=txt["pretrained"],
    )
    model = Towers(
        img=image.module,
        txt=text.module,
        dim=dim,
        txt_width=text.width,
        mean=tuple(img["mean"]),
        std=tuple(img["std"]),
    )
    given = {
        (collection, tower, *path): leaf
        for tower, encoder in (("img", image), ("txt", text))
        for collection, tree in encoder.variables.items()
        for path, leaf in traverse_util.flatten_dict(tree).items()
    }

    def draw():
        inputs = jnp.zeros((1, 64, 64, 3), jnp.uint8), jnp.zeros((1, 8), jnp.int32)
        variables = model.init(key, *inputs, jnp.ones((1, 8), bool), train=False)
        flat = traverse_util.flatten_dict(variables)
        return {path: leaf for path, leaf in flat.items() if path not in given}

    # Compiled without optimisation and without what is given: a second instead of a minute.
    drawn = jax.jit(draw, compiler_options={"xla_backend_optimization_level": 0})()
    variables = traverse_util.unflatten_dict(given | drawn)
    return model, {"batch_stats": {}} | variables, text.tokenizer
