"""Loads a model from a folder: a run's directory, or what `export` wrote of one."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import traverse_util
from jaxtyping import PyTree
from ml_collections import ConfigDict

from otter_jax import mesh as meshes
from otter_jax.data.captions import Tokenizer
from otter_jax.errors import UserError
from otter_jax.files import read_text
from otter_jax.models.clip import ClipText
from otter_jax.models.towers import Towers
from otter_jax.objective import scale_of
from otter_jax.predict.model import Loaded, Model, Pixels
from otter_jax.run import directory, trained
from otter_jax.run.model import check_sizes, dtype_of, read_as
from otter_jax.weights import encoders, hub, tensors
from otter_jax.weights.tensors import check_finite

ABOUT = "otter_jax.json"  # of a folder that export wrote
WHAT = "the directory of a run (runs/first), or a folder that `otter-jax export` wrote of one"


def load(
    model: str | Path,
    *,
    weights: str | None = None,
    step: int | None = None,
    dtype: str | None = None,
) -> Model:
    """Loads a model: the directory of a run, or a folder that `export` wrote.

    Args:
      model: the folder.
      weights: "student" (the default) or "ema", of a run.
      step: of a run: the checkpoint to take, by default the best by its eval.best, else the latest.
      dtype: of the computation, "float32" or "bfloat16"; by default float32 on CPUs, and elsewhere
        what the model was trained in.

    Raises UserError if it is neither, damaged, or has no such weights or checkpoint.
    """
    folder = Path(model).expanduser()
    if not str(model).strip() or not folder.exists():
        raise UserError(f"There is no MODEL {str(model)!r}: give {WHAT}.")
    if directory.is_run(folder):
        with _quiet():
            found = _of_run(folder, weights or "student", step, dtype)
        return Model(found)
    if not (folder / ABOUT).is_file():
        raise UserError(f"{folder} is no MODEL: {_instead(folder)}.")
    for flag, value in (("weights", weights), ("step", step)):
        if value is not None:
            raise UserError(
                f"{flag}={value!r} is for the directory of a run, and {folder} was exported from "
                "one: it holds one set of weights."
            )
    return Model(_exported(folder, dtype))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Orbax from warning that it opens a run's checkpoints for reading alone."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _of_run(folder: Path, weights: str, step: int | None, dtype: str | None) -> Loaded:
    """Reads a checkpoint of a run."""
    config = directory.read_config(folder)
    if "objective" not in config:
        raise UserError(
            f"{folder} is a run of {directory.command_of(config)}, and no MODEL: it has an image "
            "encoder with a classifier of its own, and no text encoder that could read names. "
            f"`otter-jax export --workdir {folder} --out OUT` writes it for timm. Give {WHAT}."
        )
    found = trained.load(
        config, folder, meshes.one_device(), dtype=_dtype(dtype, config), step=step
    )
    variables = jax.device_get(found.of(weights, folder))
    named = {".".join(path): x for path, x in traverse_util.flatten_dict(variables).items()}
    check_finite(named, f"The {weights} of {folder}, step {found.step},")
    name = f"{folder}, {found.taken}, {weights} weights"
    scale = float(scale_of(jnp.asarray(variables["params"]["log_scale"]["pairs"])))
    return _loaded(name, folder, config, found.model, variables, found.tokenizer, scale)


def _exported(folder: Path, dtype: str | None) -> Loaded:
    """Reads a folder that export wrote, as timm and transformers read it."""
    try:
        about = json.loads(read_text(folder / ABOUT))
        config = directory.completed(about["config"])
        dim, scales = int(about["dim"]), {k: float(v) for k, v in about["scale"].items()}
        name = f"{folder}, exported from step {about['step']}, {about['weights']} weights"
        as_dtype = dtype_of(_dtype(dtype, config))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder / ABOUT} is damaged, it cannot be read ({type(error).__name__}: {error}): "
            "export the run again."
        ) from error
    image = encoders.load_image(
        str(folder / "image"), arch=config.model.img.arch, classifier=True, dtype=as_dtype
    )
    text = encoders.load_text(str(folder / "text"), dropout=0.0, dtype=as_dtype)
    img, txt = dict(image.variables["params"]), text.variables["params"]
    params = {"img_head": img.pop(image.module.classifier), "img": img, "txt": txt}
    params["log_scale"] = {key: np.float32(np.log(value)) for key, value in scales.items()}
    if isinstance(text.module, ClipText) and text.width != dim:
        params["txt_head"] = _dense(folder / "text" / "2_Dense")
    model = Towers(
        img=image.module.clone(num_classes=None),
        txt=text.module,
        dim=dim,
        txt_width=text.width,
        mean=tuple(about["mean"]),
        std=tuple(about["std"]),
    )
    stats = {"img": image.variables["batch_stats"]} if "batch_stats" in image.variables else {}
    variables = {"params": params, "batch_stats": stats}
    return _loaded(name, folder, config, model, variables, text.tokenizer, scales["pairs"])


def _loaded(
    name: str,
    folder: Path,
    config: ConfigDict,
    model: Towers,
    variables: PyTree,
    tokenizer: Path,
    scale: float,
) -> Loaded:
    """Joins what was read; `config` is the run's, `tokenizer` the folder of the tokenizer."""
    data, reads = config.data, Tokenizer(tokenizer, config.data.max_tokens)
    check_sizes(config, model, reads)
    return Loaded(
        name=name,
        folder=folder,
        module=model,
        variables=variables,
        tokenizer=reads,
        pixels=Pixels(data.resize, data.image_size, data.exif),
        dim=model.dim,
        settings={
            "arch": config.model.img.arch,
            "mean": list(model.mean),
            "std": list(model.std),
            "text": read_as(model.txt),
            "max_tokens": data.max_tokens,
        },
        scale=scale,
    )


def _dense(folder: Path) -> dict[str, Any]:
    """Reads a linear layer that export wrote after CLIP's text encoder."""
    found = tensors.read(hub.weights_file(folder))
    return {"kernel": found["linear.weight"].T, "bias": found["linear.bias"]}


def _dtype(given: str | None, config: ConfigDict) -> str:
    """Returns the dtype given, else float32 on CPUs, and the run's own elsewhere."""
    if given is not None:
        dtype_of(given)
        return given
    return "float32" if jax.default_backend() == "cpu" else config.model.dtype


def _instead(folder: Path) -> str:
    """Returns what a path is that is no model, as far as it can be told, and what to give."""
    parent = next((each for each in folder.absolute().parents if directory.is_run(each)), None)
    if parent:
        return f"it lies in the directory of a run: give that, {parent}"
    if (folder.absolute().parent / ABOUT).is_file():
        return f"it is a part of what export wrote: give the whole folder, {folder.parent}"
    if folder.is_file():
        remedy = "`otter-jax convert` makes a run of a checkpoint of the released PyTorch code"
        return f"it is a file, and a model is a folder ({remedy}). Give {WHAT}"
    if (folder / "checkpoints").is_dir() or (folder / "metrics.jsonl").is_file():
        return f"it is the directory of a run without a config or a checkpoint. Give {WHAT}"
    if (folder / "modules.json").is_file():
        return f"it is a text encoder of sentence-transformers, which sees no pictures. Give {WHAT}"
    if (folder / "config.json").is_file():
        return f"its config.json is of another project's encoder. Give {WHAT}"
    there = sorted(path.name for path in folder.iterdir())[:4]
    return f"it holds {', '.join(there) or 'nothing'}. Give {WHAT}"
