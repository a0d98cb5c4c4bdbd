"""Writes both towers as one folder for open_clip, and so for what is built on it.

    open_clip.create_model_from_pretrained("local-dir:FOLDER")

Its image tower is timm's model with a classifier, which is our image head. Its text tower is
transformers' BERT or RoBERTa, or a CLIP's own, pooled, and then a matrix without a bias; `folded`
lets it compute what a head with a bias does. `two_towers.read` reads such a folder.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from otter_jax.models.bert import Bert
from otter_jax.models.clip import ClipText
from otter_jax.models.towers import Towers
from otter_jax.models.vit import ViT
from otter_jax.objective import LIMITS
from otter_jax.weights import folders, hub, naming, open_clip, sentences, tensors
from otter_jax.weights.tensors import Tensors

POOLERS = {"mean": "mean_pooler", "cls": "cls_last_hidden_state_pooler", "max": "max_pooler"}
MEANS = ("mean", "cls")  # weighted means of the tokens' states, with weights that add up to 1
EPSILON = 1e-5  # of its norms
LIMIT = 1e-5  # of what folding a bias may change in an embedding
# From the names that the reader's families give to those of parameters that are no layers there.
PARAMETERS = ((r"^position_embedding\.weight$", "positional_embedding"),
              (r"\.in_proj\.", ".in_proj_"))  # fmt: skip


class NotHeldError(Exception):
    """Raised for a model that open_clip has no place for; the text says what of it."""


def write(
    folder: Path,
    config: ConfigDict,
    model: Towers,
    variables: dict[str, Any],
    original: Path,
    *,
    home: Path,
) -> None:
    """Writes a new folder that open_clip opens as "local-dir:FOLDER".

    open_clip reads BERT's config.json not beside the weights but where a name in its own config
    says: `home` is the path that the folder will be found under. Tokenizer and config.json come
    from the folder `original`, architecture and sizes from a run's `config`.

    Raises NotHeldError, with nothing written, for what open_clip cannot compute.
    """
    vision, image = _image(config, model, variables)
    text, words = (_bert if isinstance(model.txt, Bert) else _clip)(model, variables)
    if isinstance(model.txt, Bert):
        text["hf_model_name"] = str(home)
    # Not empty, or open_clip takes CLIP's own tokenizer; from a local folder it reads the files.
    text |= {"context_length": config.data.max_tokens, "hf_tokenizer_name": str(home)}
    if sentences.lower_case(original):
        text["tokenizer_kwargs"] = {"clean": "lower"}
    about: dict[str, Any] = {
        "model_cfg": {"embed_dim": model.dim, "vision_cfg": vision, "text_cfg": text},
        "preprocess_cfg": {
            "size": config.data.image_size,
            "mean": [value / 255 for value in model.mean],
            "std": [value / 255 for value in model.std],
            "interpolation": "bicubic",
            "resize_mode": "shortest",
        },
    }
    if isinstance(model.txt, ClipText):
        words["positional_embedding"] = words["positional_embedding"][: config.data.max_tokens]
        about["model_cfg"] |= {"custom_text": True}
        about["model_cfg"] |= {"quick_gelu": model.txt.config.hidden_act == "quick_gelu"}
    scale = np.clip(np.exp(variables["params"]["log_scale"]["pairs"]), *LIMITS)  # there as here
    named = {"logit_scale": np.array(np.log(scale), np.float32)}
    named |= {f"visual.{name}": values for name, values in image.items()}
    named |= {f"text.{name}": values for name, values in words.items()}
    folder.mkdir(parents=True)
    tensors.write(folder / open_clip.FILES[0], named)
    (folder / open_clip.CONFIG).write_text(json.dumps(about, indent=2), "utf-8")
    told = json.dumps(folders.text_config(model.txt, original), indent=2)
    (folder / "config.json").write_text(told, "utf-8")
    for name in hub.TOKENIZER_FILES:
        if (original / name).is_file():
            shutil.copyfile(original / name, folder / name)


def _image(
    config: ConfigDict, model: Towers, variables: dict[str, Any]
) -> tuple[dict[str, Any], Tensors]:
    """Returns vision_cfg and the image tower's tensors. Raises NotHeldError as `write` does."""
    arch, size = config.model.img.arch, config.data.image_size
    if folders.kept(model.img):
        raise NotHeldError("the image tower is pruned, and open_clip has timm's whole networks")
    if isinstance(model.img, ViT) and size != model.img.image_size:
        raise NotHeldError(
            f"open_clip makes {arch} for {model.img.image_size} pixels alone, and this one sees "
            f"{size}"
        )
    about = {
        "timm_model_name": arch.removesuffix("_mean"),
        "timm_model_pretrained": False,
        "timm_pool": "token" if isinstance(model.img, ViT) else "avg",
        "timm_proj": "",  # timm's classifier is the projection
        "image_size": size,
    }
    found = {f"trunk.{k}": v for k, v in folders.image_tensors(model, variables).items()}
    if isinstance(model.img, ViT) and model.img.pool == "mean":
        # With a classifier timm would move the norm behind the mean; with a layer of open_clip's
        # own it stays where it is.
        about |= {"timm_pool": "avg", "timm_proj": "linear", "timm_proj_bias": True}
        for name in ("weight", "bias"):
            found[f"head.proj.{name}"] = found.pop(f"trunk.{model.img.classifier}.{name}")
    return about, found


def _bert(model: Towers, variables: dict[str, Any]) -> tuple[dict[str, Any], Tensors]:
    """Returns text_cfg and tensors of BERT and RoBERTa. Raises NotHeldError as `write` does."""
    found = folders.text_tensors(model, variables)
    weight, bias = _projection(model, variables)
    own = {f"transformer.{k}": v for k, v in found.items() if not k.startswith("dense.")}
    pooling = model.txt.pooling
    if weight is None and pooling == "mean_sqrt_len_tokens":
        pooling = "mean"  # the same direction
    if pooling not in POOLERS:
        raise NotHeldError(f"open_clip has no pooling {pooling} before a projection")
    if bias is not None and bias.any():
        if pooling not in MEANS:
            raise NotHeldError(
                f"open_clip's projection of texts has no bias, and after the pooling {pooling} "
                "none can be folded away"
            )
        last = f"transformer.encoder.layer.{model.txt.config.num_hidden_layers - 1}.output"
        weight = _fold(own, f"{last}.LayerNorm", weight, bias)
    about = {"hf_pooler_type": POOLERS[pooling], "hf_proj_type": None}
    if weight is not None:
        about["hf_proj_type"] = "linear"
        own["proj.weight"] = weight
    return about, own


def _clip(model: Towers, variables: dict[str, Any]) -> tuple[dict[str, Any], Tensors]:
    """Returns text_cfg and tensors of CLIP's text tower. Raises NotHeldError as `write` does."""
    c = model.txt.config
    if c.hidden_act not in ("gelu", "quick_gelu"):
        raise NotHeldError(f"open_clip's text tower has no activation {c.hidden_act}")
    own = naming.export(folders.tower(variables, "txt"), open_clip.CLIP_TEXT)
    own = {naming.substitute(name, PARAMETERS): values for name, values in own.items()}
    weight, bias = _projection(model, variables)
    if weight is None:
        weight = np.eye(c.hidden_size, dtype=np.float32)
    else:
        weight = _fold(own, "ln_final", weight, bias)
    own["text_projection"] = np.ascontiguousarray(weight.T)
    about: dict[str, Any] = {
        "vocab_size": c.vocab_size,
        "width": c.hidden_size,
        "heads": c.num_attention_heads,
        "layers": c.num_hidden_layers,
        "mlp_ratio": c.intermediate_size / c.hidden_size,
        # Configs up to 2023 wrongly say 2; then it is the largest token id.
        **({"pool_type": "argmax"} if c.eos_token_id == 2 else {"pool_type": "eos"}),
        "eos_id": c.eos_token_id,
    }
    if c.layer_norm_eps != EPSILON:
        about["norm_kwargs"] = {"eps": c.layer_norm_eps}
    return about, own


def _projection(
    model: Towers, variables: dict[str, Any]
) -> tuple[Float[np.ndarray, "D W"] | None, Float[np.ndarray, " D"] | None]:
    """Returns matrix and bias that take a pooled text into the common space; None for neither.

    They are the linear layers of the encoder and the head, one after the other. Raises NotHeldError
    if there is an activation between them.
    """
    params = variables["params"]
    layers = list(model.txt.projections) if isinstance(model.txt, Bert) else []
    for layer in layers:
        if layer.activation != "Identity":
            raise NotHeldError(
                f"open_clip has no layer with the activation {layer.activation} after the pooling"
            )
    own = [params["txt"][f"dense_{number}"] for number in range(len(layers))]
    own += [params["txt_head"]] if "txt_head" in params else []
    if not own:
        return None, None
    width = own[0]["kernel"].shape[0]
    weight, bias = np.eye(width), np.zeros(width)
    for layer in own:  # in float64, to be rounded once
        kernel = np.asarray(layer["kernel"], np.float64).T
        weight, bias = kernel @ weight, kernel @ bias + layer.get("bias", 0.0)
    return weight.astype(np.float32), bias.astype(np.float32)


def _fold(
    own: Tensors, norm: str, weight: Float[np.ndarray, "D W"], bias: Float[np.ndarray, " D"]
) -> Float[np.ndarray, "D W"]:
    """Returns the matrix without a bias, and changes the norm before it among the tensors."""
    name = f"{norm}.bias"
    weight, own[name] = folded(weight, bias, own[f"{norm}.weight"], own[name])
    return weight


def folded(
    weight: Float[np.ndarray, "D W"],
    bias: Float[np.ndarray, " D"],
    gain: Float[np.ndarray, " W"],
    shift: Float[np.ndarray, " W"],
) -> tuple[Float[np.ndarray, "D W"], Float[np.ndarray, " W"]]:
    """Returns a matrix, and a shift for the norm before it, that make a bias superfluous.

    A LayerNorm gives x = gain n + shift, and its n add up to 0. With the shift replaced by the gain
    it gives y = gain (n + 1), and Σ yᵢ / gainᵢ is the number W of features for every text: a matrix
    can add any vector to its result by adding a multiple of 1 / gain to its rows. A mean of tokens
    between norm and matrix changes nothing of it. So weight x + bias = weight' y for any sizes.

    Raises NotHeldError if a gain is so close to 0 that rounding would change embeddings.
    """
    matrix, b, g, s = (np.asarray(x, np.float64) for x in (weight, bias, gain, shift))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        added = np.outer((b - matrix @ (g - s)) / len(g), 1 / g)
        new = (matrix + added).astype(np.float32)
        n = np.random.RandomState(0).normal(size=(64, len(g)))  # texts to try it on
        n = (n - n.mean(1, keepdims=True)) / n.std(1, keepdims=True)
        was, now = (n * g + s) @ matrix.T + b, ((n * g + g).astype(np.float32) @ new.T)
        far = np.abs(_unit(was) - _unit(now)).max()
    if not far < LIMIT:  # NaN, too
        raise NotHeldError(
            "open_clip's projection of texts has no bias, and ours cannot be folded into the norm "
            f"before it: its smallest gain is {np.abs(g).min():.1e}"
        )
    return new, np.asarray(gain, np.float32)


def _unit(x: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N D"]:
    return x / np.linalg.norm(x, axis=1, keepdims=True)
