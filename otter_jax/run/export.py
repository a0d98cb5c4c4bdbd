"""Exports a trained model for timm, transformers, sentence-transformers and open_clip.

    otter-jax export --workdir runs/first --out exported

writes

    exported/                 SentenceTransformer("exported") embeds pictures and texts, by the two
                              folders below
    exported/image/   config.json, model.safetensors: timm.create_model("local-dir:exported/image",
                      pretrained=True); its outputs, scaled to length 1, are the embeddings
    exported/text/    config.json, model.safetensors, the tokenizer: AutoModel.from_pretrained; and
                      as sentence-transformers has it, pooling and projection beside it
    exported/open_clip/       both towers: open_clip.create_model_from_pretrained(
                              "local-dir:exported/open_clip")
    exported/README.md        a model card
    exported/otter_jax.json   how pictures are prepared, the temperatures, and where it came from
    exported/check.npz        pictures, captions and their embeddings here, to compare with there
"""

import json
import pathlib
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from otter_jax import files
from otter_jax import mesh as meshes
from otter_jax.data.captions import Tokenizer
from otter_jax.files import read_json
from otter_jax.models.towers import Towers
from otter_jax.run import card, directory, trained
from otter_jax.run.embedder import Embedder
from otter_jax.run.model import check_sizes
from otter_jax.weights import open_clip_export
from otter_jax.weights.folders import write_image, write_text, write_towers
from otter_jax.weights.tensors import Tell, Tensors, check_finite, quiet

CAPTIONS = ("a photo of a sea otter.", "two people on one bicycle", "café au lait", "1, 2, 3")


def run(
    config: ConfigDict,
    workdir: pathlib.Path,
    out: pathlib.Path,
    *,
    which: str = "student",
    step: int | None = None,
    tell: Tell = quiet,
) -> str:
    """Writes a checkpoint of `workdir` into the folder `out`; returns which one, as text.

    `which` is "student" or "ema", `step` that of `trained.load`; `tell` is told what is left out.
    Raises UserError if `out` is there already and not empty, if there is no checkpoint, or no such
    weights in it.
    """
    with directory.new_folder(out) as folder:
        return write(config, workdir, folder, which=which, step=step, home=out, tell=tell)


def write(
    config: ConfigDict,
    workdir: pathlib.Path,
    folder: pathlib.Path,
    *,
    which: str,
    step: int | None,
    home: pathlib.Path,
    tell: Tell,
) -> str:
    """Writes a checkpoint into a folder that is there, and will be at `home`; else as `run`."""
    # PyTorch's programs compute in float32, so the embeddings in check.npz must too.
    found = trained.load(config, workdir, meshes.one_device(), dtype="float32", step=step)
    model, variables = found.model, jax.device_get(found.of(which, workdir))
    tokenizer = Tokenizer(found.tokenizer, config.data.max_tokens)
    check_sizes(config, model, tokenizer)
    named = {".".join(path): x for path, x in traverse_util.flatten_dict(variables).items()}
    check_finite(named, f"The {which} of {workdir}, step {found.step},")
    write_image(folder / "image", config, model, variables)
    write_text(folder / "text", config, model, variables, found.tokenizer)
    write_towers(folder, config, model, variables)
    left_out = {}
    try:
        own = home.absolute() / "open_clip"
        open_clip_export.write(
            folder / own.name, config, model, variables, found.tokenizer, home=own
        )
    except open_clip_export.NotHeldError as error:
        left_out[own.name] = str(error)
        tell(f"There is no folder for open_clip: {error}.")
    about = description(config, found, which) | results(workdir, found.step, which)
    directory.write_json(folder / "otter_jax.json", about)
    text = card.text(config, about, name=home.absolute().name, left_out=left_out)
    files.write_text(folder / "README.md", text)
    np.savez(folder / "check.npz", **examples(model, variables, tokenizer, config.data.image_size))
    return found.taken


def description(config: ConfigDict, found: trained.Trained, which: str) -> dict[str, Any]:
    """Returns what another program must know of the model, and the run's config."""
    scales = found.variables[which]["params"]["log_scale"].items()
    return {
        "dim": found.model.dim,
        "weights": which,
        "step": found.step,
        "scale": {name: min(max(float(np.exp(v)), 1.0), 100.0) for name, v in scales},
        "image": {
            "resize": config.data.resize,
            "size": config.data.image_size,
            "exif": config.data.exif,  # whether pictures are turned upright before
        },
        "mean": list(found.model.mean),  # in 0..255
        "std": list(found.model.std),
        "max_tokens": config.data.max_tokens,
        "config": json.loads(config.to_json()),
    }


def results(workdir: pathlib.Path, step: int, which: str) -> dict[str, Any]:
    """Returns {"results": what the run's own evaluation of these weights found}; {} if nothing."""
    path = directory.results(workdir, step)
    try:
        sets = read_json(path)["sets"]
        return {"results": {name: found for name, found in sets.items() if which in found}}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}  # it was not evaluated, or the file is damaged


def examples(model: Towers, variables: dict[str, Any], tokenizer: Tokenizer, size: int) -> Tensors:
    """Returns pictures (noise, uint8), captions, and the model's embeddings of both."""
    pictures = np.random.RandomState(0).randint(0, 256, (4, size, size, 3)).astype(np.uint8)
    embedder = Embedder(model, tokenizer, meshes.make_mesh(1), batch_size=len(pictures))
    with jax.default_matmul_precision("highest"):  # GPUs' default, TF32, is 1e-3 off
        return {
            "pictures": pictures,
            "captions": np.array(CAPTIONS),
            "image_embeddings": embedder.images(variables, pictures),
            "text_embeddings": embedder.texts(variables, CAPTIONS),
        }
