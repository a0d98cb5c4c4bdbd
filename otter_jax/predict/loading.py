"""Loads a model: a run's directory, what `export` wrote of one, or another project's CLIP."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from jaxtyping import PyTree
from ml_collections import ConfigDict

from otter_jax import mesh as meshes
from otter_jax.data.captions import Tokenizer
from otter_jax.errors import UserError
from otter_jax.files import read_json
from otter_jax.models.clip import ClipText
from otter_jax.models.fitting import Fitting
from otter_jax.models.towers import Towers
from otter_jax.objective import LIMITS
from otter_jax.predict.model import Loaded, Model, Pixels
from otter_jax.run import directory, trained
from otter_jax.run.model import check_sizes, check_tokenizer, dtype_of, read_as
from otter_jax.weights import encoders, hub, tensors, two_towers
from otter_jax.weights.tensors import Tell, check_finite

ABOUT = "otter_jax.json"  # of a folder that export wrote
WHAT = (
    "the directory of a run (runs/first), a folder that `otter-jax export` wrote of one, or a CLIP "
    "of transformers or open_clip, by its folder or its name on the hub"
)


def warn(note: str) -> None:
    """Warns of what was chosen or left aside."""
    warnings.warn(note, stacklevel=4)


def load(
    model: str | Path,
    *,
    weights: str | None = None,
    step: int | None = None,
    dtype: str | None = None,
    batch_size: int | None = None,
    tell: Tell = warn,
) -> Model:
    """Loads a model: the directory of a run, a folder that `export` wrote, or another CLIP.

    Args:
      model: the folder; or "owner/name" on the hub, of a CLIP that transformers or open_clip wrote.
      weights: "student" (the default) or "ema", of a run.
      step: of a run: the checkpoint to take, by default the best by its eval.best, else the latest.
      dtype: of the computation, "float32" or "bfloat16"; by default float32 on CPUs, and elsewhere
        what a run was trained in.
      batch_size: the most pictures or texts that are computed at once, over all devices.
      tell: is told what was chosen or left aside as another project's CLIP was read.

    Raises UserError if it is none of them, damaged, or has no such weights or checkpoint.
    """
    folder = Path(model).expanduser()
    # "runs/frist" looks like a name on the hub, but is none if there is a folder "runs".
    may_be_name = bool(hub.HUB_NAME.fullmatch(str(model)))
    on_hub = may_be_name and not folder.exists() and not folder.parent.exists()
    if not on_hub and (not str(model).strip() or not folder.exists()):
        raise UserError(f"There is no MODEL {str(model)!r}: give {WHAT}.")
    if weights not in (None, "student", "ema"):
        raise UserError(f"weights={weights!r}: a run has 'student' and 'ema' weights.")
    if directory.is_run(folder):
        found = _of_run(folder, weights or "student", step, dtype)
        return Model(found, batch_size)
    exported = (folder / ABOUT).is_file()
    if not (exported or on_hub or two_towers.is_one(folder)):
        raise UserError(f"{folder} is no MODEL: {_instead(folder)}.")
    for flag, value in (("weights", weights), ("step", step)):
        if value is not None:
            raise UserError(
                f"{flag}={value!r} is for the directory of a run, and {model} is none: it holds "
                "one set of weights."
            )
    found = _exported(folder, dtype) if exported else _foreign(str(model), dtype, tell)
    return Model(found, batch_size)


def _of_run(folder: Path, weights: str, step: int | None, dtype: str | None) -> Loaded:
    """Reads a checkpoint of a run."""
    config = directory.read_config(folder)
    if "objective" not in config:
        raise UserError(
            f"{folder} is a run of {directory.command_of(config)}, and no MODEL: it has an image "
            "encoder with a classifier of its own, and no text encoder that could read names. "
            f"`otter-jax export --workdir {folder} --out OUT` writes it for timm. Give {WHAT}."
        )
    dtype = _dtype(dtype, config)
    found = trained.load(
        config, folder, meshes.one_device(), dtype=dtype, step=step, ema=weights == "ema"
    )
    variables = jax.device_get(found.of(weights, folder))
    named = {".".join(path): x for path, x in traverse_util.flatten_dict(variables).items()}
    check_finite(named, f"The {weights} of {folder}, step {found.step},")
    name = f"{folder}, {found.taken}, {weights} weights"
    scales = {k: float(np.exp(v)) for k, v in variables["params"]["log_scale"].items()}
    made = _loaded(name, folder, config, found.model, variables, found.tokenizer, dtype, scales)
    return made._replace(step=found.step)


def _exported(folder: Path, dtype: str | None) -> Loaded:
    """Reads a folder that export wrote, as timm and transformers read it."""
    try:
        about = read_json(folder / ABOUT)
        config = directory.completed(about["config"])
        dim, scales = int(about["dim"]), {k: float(v) for k, v in about["scale"].items()}
        name = f"{folder}, exported from step {about['step']}, {about['weights']} weights"
        dtype = _dtype(dtype, config)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder / ABOUT} is damaged, it cannot be read ({type(error).__name__}: {error}): "
            "export the run again."
        ) from error
    image = encoders.load_image(
        str(folder / "image"), arch=config.model.img.arch, classifier=True, dtype=dtype_of(dtype)
    )
    text = encoders.load_text(str(folder / "text"), dropout=0.0, dtype=dtype_of(dtype))
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
    return _loaded(name, folder, config, model, variables, text.tokenizer, dtype, scales)


def _loaded(
    name: str,
    folder: Path,
    config: ConfigDict,
    model: Towers,
    variables: PyTree,
    tokenizer: Path,
    dtype: str,
    scales: Mapping[str, float],
) -> Loaded:
    """Joins what was read; `config` is the run's, `tokenizer` the folder of the tokenizer.

    Of a run that was trained with a sigmoid, the second of its `scales` is minus the bias.
    """
    scales = {name: min(max(value, LIMITS[0]), LIMITS[1]) for name, value in scales.items()}
    sigmoid = config.objective.get("match") == "sigmoid"  # older versions have no such key
    data, reads = config.data, Tokenizer(tokenizer, config.data.max_tokens)
    check_sizes(config, model, reads)
    return Loaded(
        name=name,
        folder=folder,
        module=model,
        variables=variables,
        tokenizer=reads,
        pixels=Pixels(Fitting(data.image_size, data.resize), data.exif),
        dim=model.dim,
        dtype=dtype,
        settings={
            "arch": config.model.img.arch,
            "mean": list(model.mean),
            "std": list(model.std),
            "text": read_as(model.txt),
            "max_tokens": data.max_tokens,
        },
        scale=scales["pairs"],
        bias=-scales["teacher"] if sigmoid else 0.0,
    )


def _foreign(model: str, dtype: str | None, tell: Tell) -> Loaded:
    """Reads a CLIP of another project, which prepares pictures in its own way."""
    dtype = dtype or "float32"
    found = two_towers.read(model, dtype=dtype_of(dtype), tell=tell)
    reads = Tokenizer(found.tokenizer, found.max_tokens)
    check_tokenizer(model, found.module.txt, reads)
    for doubt in reads.doubts:
        tell(doubt)
    image, text = (tower.clone(dtype=None) for tower in (found.module.img, found.module.txt))
    return Loaded(
        name=f"{model}, a CLIP of {found.library}",
        folder=found.folder,
        module=found.module,
        variables=found.variables,
        tokenizer=reads,
        pixels=Pixels(found.pictures, "apply"),
        dim=found.module.dim,
        dtype=dtype,
        settings={
            "arch": repr(image),
            "mean": list(found.module.mean),
            "std": list(found.module.std),
            "text": repr(text),
            "max_tokens": found.max_tokens,
        },
        scale=found.scale,
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
