"""A trained model for other programs: an image encoder for timm, a text encoder for transformers.

    python -m otter_jax.export --workdir runs/first --out exported

writes

    exported/image/   config.json, model.safetensors: timm.create_model("local-dir:exported/image",
                      pretrained=True); its outputs, scaled to length 1, are the embeddings
    exported/text/    config.json, model.safetensors, the tokenizer: AutoModel.from_pretrained; and
                      as sentence-transformers has it, pooling and projection beside it
    exported/otter_jax.json   how pictures are prepared, the temperatures, and where it came from
    exported/check.npz        pictures, captions and their embeddings here, to compare with there
"""

import argparse
import dataclasses
import functools
import json
import pathlib
import shutil
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from otter_jax import build, names, record, tensors, weights
from otter_jax.data.captions import Tokenizer
from otter_jax.errors import UserError
from otter_jax.models.bert import Bert
from otter_jax.models.towers import Towers
from otter_jax.tensors import Tensors

CAPTIONS = ("a photo of a sea otter.", "two people on one bicycle", "café au lait", "1, 2, 3")


def run(
    config: ConfigDict, workdir: pathlib.Path, out: pathlib.Path, *, which: str = "student"
) -> None:
    """Writes the best or latest checkpoint of `workdir` into the folder `out`.

    `which` is "student" or "ema". Raises UserError if `out` is there already and not empty, if
    there is no checkpoint, or no such weights in it.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"--out {out} is there already, and not an empty folder; give a new one.")
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    # Others compute in float32, so the numbers to compare with are float32's.
    model, weights_of, folder, step = build.trained(config, workdir, here, dtype="float32")
    tokenizer = Tokenizer(folder, config.data.max_tokens)
    build.check_sizes(config, model, tokenizer)
    if which not in weights_of:
        raise UserError(f"{workdir} has no {which} weights; there is {', '.join(weights_of)}.")
    variables = jax.device_get(weights_of[which])
    scratch = out.with_name(out.name + ".tmp")  # so that `out` is never half an export
    shutil.rmtree(scratch, ignore_errors=True)
    write_image(scratch / "image", config, model, variables)
    write_text(scratch / "text", config, model, variables, folder)
    scales = {k: float(np.exp(v)) for k, v in variables["params"]["log_scale"].items()}
    about = {
        "dim": model.dim,
        "weights": which,
        "step": step,
        "scale": {name: min(max(scale, 1.0), 100.0) for name, scale in scales.items()},
        "image": {"resize": config.data.resize, "size": config.data.image_size},
        "mean": list(model.mean),  # in 0..255
        "std": list(model.std),
        "max_tokens": config.data.max_tokens,
        "config": json.loads(config.to_json()),
    }
    record.write_json(scratch / "otter_jax.json", about)
    np.savez(scratch / "check.npz", **check(model, variables, tokenizer, config.data.image_size))
    scratch.replace(out)


def check(model: Towers, variables: dict[str, Any], tokenizer: Tokenizer, size: int) -> Tensors:
    """Pictures (noise, uint8), captions, and the model's embeddings of both."""
    pictures = np.random.RandomState(0).randint(0, 256, (4, size, size, 3)).astype(np.uint8)
    inputs = map(jnp.asarray, (pictures, *tokenizer.encode(CAPTIONS)))
    with jax.default_matmul_precision("highest"):  # GPUs' default, TF32, is 1e-3 off
        image, text = jax.jit(functools.partial(model.apply, train=False))(variables, *inputs)
    return {
        "pictures": pictures,
        "captions": np.array(CAPTIONS),
        "image_embeddings": np.asarray(image),
        "text_embeddings": np.asarray(text),
    }


def tower(variables: dict[str, Any], name: str) -> dict[str, Any]:
    """One tower's own variables, {"params", "batch_stats"}."""
    return {kind: tree[name] for kind, tree in variables.items() if name in tree}


def image_tensors(model: Towers, variables: dict[str, Any]) -> Tensors:
    """The image encoder with its head as the classifier, in timm's names."""
    own = tower(variables, "img")
    own["params"] = own["params"] | {model.img.classifier: variables["params"]["img_head"]}
    return names.export(own, names.families(model.img)[0])


def text_tensors(model: Towers, variables: dict[str, Any]) -> Tensors:
    """The text encoder in Hugging Face's names."""
    return names.export(tower(variables, "txt"), names.families(model.txt)[0])


def write_image(
    folder: pathlib.Path, config: ConfigDict, model: Towers, variables: dict[str, Any]
) -> None:
    """A folder that timm opens as "local-dir:FOLDER"."""
    weights.write_timm(
        folder,
        image_tensors(model, variables),
        model.img,
        arch=config.model.img.arch,
        classes=model.dim,
        size=config.data.image_size,
        resize=config.data.resize,
        mean=model.mean,
        std=model.std,
    )


def write_text(
    folder: pathlib.Path,
    config: ConfigDict,
    model: Towers,
    variables: dict[str, Any],
    source: pathlib.Path,
) -> None:
    """A folder that transformers opens, and sentence-transformers if it pools by the mean.

    The config and the tokenizer are those of `source`.
    """
    folder.mkdir(parents=True)
    for name in weights.TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    if isinstance(model.txt, Bert):
        about = {"model_type": "bert"} | json.loads((source / "config.json").read_text("utf-8"))
    else:  # there it may be a whole CLIP's; here is one side
        about = dataclasses.asdict(model.txt.config.with_dropout(0.0))
        about["model_type"] = "clip_text_model"
    about.pop("torch_dtype", None)  # of the file there; here it is float32
    about["dtype"] = "float32"
    record.write_json(folder / "config.json", about)
    tensors.write(folder / "model.safetensors", text_tensors(model, variables))

    steps = [("", "Transformer"), ("1_Pooling", "Pooling")]
    if model.txt_width != model.dim:
        steps.append(("2_Dense", "Dense"))
        head = variables["params"]["txt_head"]
        linear = {
            "linear.weight": np.ascontiguousarray(head["kernel"].T),
            "linear.bias": head["bias"],
        }
        (folder / "2_Dense").mkdir()
        tensors.write(folder / "2_Dense" / "model.safetensors", linear)
        about = {"in_features": model.txt_width, "out_features": model.dim, "bias": True}
        about["activation_function"] = "torch.nn.modules.linear.Identity"
        record.write_json(folder / "2_Dense" / "config.json", about)
    if not isinstance(model.txt, Bert):
        return  # CLIP's text transformer is read at one token, which that library has no name for
    steps.append(("3_Normalize", "Normalize"))
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(steps)
    ]
    record.write_json(folder / "modules.json", modules)
    record.write_json(
        folder / "1_Pooling" / "config.json",
        {"word_embedding_dimension": model.txt_width, "pooling_mode_mean_tokens": True},
    )
    record.write_json(
        folder / "sentence_bert_config.json",
        {"max_seq_length": config.data.max_tokens, "do_lower_case": False},
    )


def main(argv: list[str] | None = None) -> None:
    """`run` by the command line; a user's mistake is one paragraph and exit status 2."""
    parser = argparse.ArgumentParser(
        "python -m otter_jax.export", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--workdir", required=True, type=pathlib.Path, help="a run's directory")
    parser.add_argument("--out", required=True, type=pathlib.Path, help="a new folder")
    parser.add_argument("--weights", default="student", choices=["student", "ema"])
    options = parser.parse_args(argv)
    logging.set_verbosity(logging.ERROR)  # Orbax warns of what is meant
    workdir, out = options.workdir.expanduser(), options.out.expanduser()
    try:
        run(record.config_of(workdir), workdir, out, which=options.weights)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"The {options.weights} weights of {workdir} are in {out}.")


if __name__ == "__main__":
    main()
