"""Exports a trained model: an image encoder for timm, a text encoder for transformers.

    otter-jax export --workdir runs/first --out exported

writes

    exported/image/   config.json, model.safetensors: timm.create_model("local-dir:exported/image",
                      pretrained=True); its outputs, scaled to length 1, are the embeddings
    exported/text/    config.json, model.safetensors, the tokenizer: AutoModel.from_pretrained; and
                      as sentence-transformers has it, pooling and projection beside it
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

from otter_jax import mesh as meshes
from otter_jax.data.captions import Tokenizer
from otter_jax.models.towers import Towers
from otter_jax.run import directory, trained
from otter_jax.run.embedder import Embedder
from otter_jax.run.model import check_sizes
from otter_jax.weights.folders import write_image, write_text
from otter_jax.weights.tensors import Tensors, check_finite

CAPTIONS = ("a photo of a sea otter.", "two people on one bicycle", "café au lait", "1, 2, 3")


def run(
    config: ConfigDict,
    workdir: pathlib.Path,
    out: pathlib.Path,
    *,
    which: str = "student",
    step: int | None = None,
) -> str:
    """Writes a checkpoint of `workdir` into the folder `out`; returns which one, as text.

    `which` is "student" or "ema", `step` that of `trained.load`. Raises UserError if `out` is
    there already and not empty, if there is no checkpoint, or no such weights in it.
    """
    with directory.new_folder(out) as folder:
        return write(config, workdir, folder, which=which, step=step)


def write(
    config: ConfigDict, workdir: pathlib.Path, folder: pathlib.Path, *, which: str, step: int | None
) -> str:
    """Writes a checkpoint of `workdir` into a folder that is there; returns which one, as text."""
    # timm and transformers compute in float32, so the embeddings in check.npz must too.
    found = trained.load(config, workdir, meshes.one_device(), dtype="float32", step=step)
    model, variables = found.model, jax.device_get(found.of(which, workdir))
    tokenizer = Tokenizer(found.tokenizer, config.data.max_tokens)
    check_sizes(config, model, tokenizer)
    named = {".".join(path): x for path, x in traverse_util.flatten_dict(variables).items()}
    check_finite(named, f"The {which} of {workdir}, step {found.step},")
    write_image(folder / "image", config, model, variables)
    write_text(folder / "text", config, model, variables, found.tokenizer)
    scales = {k: float(np.exp(v)) for k, v in variables["params"]["log_scale"].items()}
    about = {
        "dim": model.dim,
        "weights": which,
        "step": found.step,
        "scale": {name: min(max(scale, 1.0), 100.0) for name, scale in scales.items()},
        "image": {
            "resize": config.data.resize,
            "size": config.data.image_size,
            "exif": config.data.exif,  # whether pictures are turned upright before
        },
        "mean": list(model.mean),  # in 0..255
        "std": list(model.std),
        "max_tokens": config.data.max_tokens,
        "config": json.loads(config.to_json()),
    }
    directory.write_json(folder / "otter_jax.json", about)
    np.savez(folder / "check.npz", **examples(model, variables, tokenizer, config.data.image_size))
    return found.taken


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
