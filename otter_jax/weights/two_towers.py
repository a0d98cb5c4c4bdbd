"""Reads a CLIP that another project has trained, both towers with all that is between them.

That is a CLIPModel of transformers, or a model of open_clip; from a folder or from the hub.
"""

import contextlib
import re
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

from otter_jax.errors import UserError
from otter_jax.models.fitting import Fitting
from otter_jax.models.towers import Towers
from otter_jax.weights import encoders, folders, hf_clip, hub, naming, open_clip, tensors
from otter_jax.weights.layout import Layout, read_json
from otter_jax.weights.naming import Family
from otter_jax.weights.otter_release import START
from otter_jax.weights.tensors import Tell, Tensors, quiet

BUFFERS = (r".*\.num_batches_tracked", r"(.*\.)?position_ids", r"attn_mask")
WRAPPED = re.compile(r"^(?:module\.|_orig_mod\.)+")
BETWEEN = Family(rename=((r"^log_scale\.pairs$", "logit_scale"),), ignore=BUFFERS)
VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json")


class TwoTowers(NamedTuple):
    """Holds a CLIP of another project.

    Attributes:
      folder: where it lies.
      library: which wrote it.
      module: embeds pixels and tokens, with mean and deviation of its pixels in 0..255.
      variables: its weights, float32 NumPy arrays.
      tokenizer: the folder of its tokenizer.
      max_tokens: of a text, with the special tokens.
      pictures: how pictures become pixels.
      scale: what cosines are multiplied by before the softmax.
    """

    folder: Path
    library: Literal["transformers", "open_clip"]
    module: Towers
    variables: dict[str, Any]
    tokenizer: Path
    max_tokens: int
    pictures: Fitting
    scale: float


def read(weights: str, *, dtype: Any = jnp.float32, tell: Tell = quiet) -> TwoTowers:
    """Reads a two-tower model from a folder or a hub name.

    Args:
      weights: a folder that transformers' CLIPModel or open_clip has written, or "owner/name" or
        "owner/name@revision" on the hub.
      dtype: of the computation; the parameters are float32.
      tell: is told what was chosen or left aside.

    Raises:
      UserError: there is none, it is of another kind, or its tensors are not those that its config
        describes.
    """
    folder = hub.locate(weights, pretrained=False)
    layout = layout_of(folder, dtype=dtype, tell=tell)
    path = hub.weights_file(hub.locate(weights, files=layout.files), layout.files)
    found = tensors.read(path, tell=tell)
    variables = convert(found, layout, path)
    scale = float(np.exp(variables["params"]["log_scale"]["pairs"]))
    tokenizer = tokenizer_of(folder, layout, tell)
    return TwoTowers(
        folder,
        layout.library,
        layout.module,
        variables,
        tokenizer,
        layout.max_tokens,
        layout.pictures,
        scale,
    )


def is_one(folder: Path) -> bool:
    """Tells whether a folder says that it holds such a model."""
    config = folder / "config.json"
    with contextlib.suppress(UserError):
        if config.is_file() and hf_clip.is_one(read_json(config)):
            return True
    return (folder / open_clip.CONFIG).is_file()


def layout_of(folder: Path, *, dtype: Any = jnp.float32, tell: Tell = quiet) -> Layout:
    """Returns what the configs of a folder describe. Raises UserError if that is no CLIP."""
    config = folder / "config.json"
    about = read_json(config) if config.is_file() else {}
    theirs = (folder / open_clip.CONFIG).is_file()
    # Some folders hold a model in both forms.
    if hf_clip.is_one(about) and not (theirs and _has(folder, open_clip.FILES)):
        return hf_clip.read(folder, dtype=dtype, tell=tell)
    if theirs:
        return open_clip.read(folder, dtype=dtype, tell=tell)
    kind = about.get("model_type") or about.get("architecture") or about.get("architectures")
    there = f"config.json there is of {kind!r}" if kind else f"there is no {open_clip.CONFIG} in it"
    raise UserError(
        f"{folder} holds no CLIP that is read here: {there}. What is read are transformers' "
        f'CLIPModel (config.json with model_type "clip") and open_clip\'s ({open_clip.CONFIG}).'
    )


def convert(found: Tensors, layout: Layout, path: Path) -> dict[str, Any]:
    """Turns a file's tensors into the module's variables; every tensor must be used.

    Raises UserError as `naming.convert` does, and for a model with a logit bias.
    """
    bare = {WRAPPED.sub("", name): values for name, values in found.items()}
    if len(bare) < len(found):
        raise UserError(f"{path} has some tensors twice, with and without the prefix module.")
    if "logit_bias" in bare:
        raise UserError(
            f"{path} has a logit_bias: the model was trained with a sigmoid for each pair, as "
            "SigLIP, and the softmax over classes that is taken here is not its probability. Take "
            "a model that was trained with a softmax."
        )
    parts = placed(bare, layout)
    size = layout.pictures.size
    like = encoders.variable_shapes(
        layout.module,
        jnp.zeros((1, size, size, 3), jnp.uint8),
        {"token_ids": jnp.zeros((1, 2), int), "mask": jnp.ones((1, 2), bool)},
    )
    variables: dict[str, Any] = {"params": {}, "batch_stats": {}}
    for tower, what in (("img", "image"), ("txt", "text")):
        families = tuple(each._replace(ignore=BUFFERS) for each in layout.families[tower])
        shapes, source = folders.tower(like, tower), f"{path} (its {what} tower)"
        made = naming.convert(parts[tower], shapes, families, source=source)
        for kind, tree in made.items():
            variables[kind][tower] = tree
    own = {name: tree for name, tree in like["params"].items() if name not in ("img", "txt")}
    own["log_scale"] = {"pairs": own["log_scale"]["pairs"]}
    source = f"{path} (between its towers)"
    between = naming.convert(parts[""], {"params": own}, (BETWEEN,), source=source)["params"]
    between["log_scale"]["teacher"] = np.float32(START)  # there is none
    variables["params"] |= between
    return variables


def placed(found: Tensors, layout: Layout) -> dict[str, Tensors]:
    """Returns the tensors of "img", those of "txt", and under "" those of neither, by new names."""
    parts: dict[str, Tensors] = {"img": {}, "txt": {}, "": {}}
    for name, values in found.items():
        new = naming.substitute(name, layout.rules)
        tower, _, own = new.partition(".")
        if name in layout.transposed and values.ndim == 2:
            values = values.T
        if tower in ("img", "txt"):
            parts[tower][own] = values
        else:
            parts[""][new] = values
    return parts


def tokenizer_of(folder: Path, layout: Layout, tell: Tell) -> Path:
    """Returns the folder of a model's tokenizer: its own, or the one that its config names."""
    if _has(folder, VOCABULARIES):
        return folder
    reason = ""
    if layout.tokenizer:
        try:
            found = hub.locate(layout.tokenizer, pretrained=False)
            if _has(found, VOCABULARIES):
                tell(f"{folder} has no tokenizer; that of {layout.tokenizer} is taken.")
                return found
        except UserError as error:
            reason = f" {error}"
    whose = layout.tokenizer or "the model that it comes from"
    raise UserError(
        f"There is no tokenizer in {folder}: no {', '.join(VOCABULARIES)}.{reason} Put the files "
        f"of {whose} there: tokenizer.json, or vocab.json and merges.txt, or vocab.txt."
    )


def _has(folder: Path, names: tuple[str, ...]) -> bool:
    """Tells whether one of these files is in a folder."""
    return any((folder / name).is_file() for name in names)
