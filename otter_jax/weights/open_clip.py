"""Reads open_clip_config.json, and says what open_clip calls the tensors of such a model."""

import difflib
import re
from pathlib import Path
from typing import Any, NamedTuple

from flax import linen as nn

from otter_jax.errors import UserError
from otter_jax.models.bert import Bert, Projection
from otter_jax.models.clip import ClipText, ClipTextConfig
from otter_jax.models.fitting import Fitting
from otter_jax.models.towers import Towers
from otter_jax.models.vit import ViT
from otter_jax.weights import encoders, hub, layout, naming
from otter_jax.weights.layout import Layout
from otter_jax.weights.naming import Family, Rules
from otter_jax.weights.tensors import Tell

CONFIG = "open_clip_config.json"
FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")

# Entries that change nothing of what is computed from given weights.
NO_EFFECT = {
    # What came of a logit bias shows in the weights.
    "model": {"custom_text", "init_logit_scale", "nonscalar_logit_scale", "init_logit_bias"},
    "vision": {
        "patch_dropout", "output_tokens", "attn_pooler_queries", "attn_pooler_heads",
        "pos_embed_type", "timm_model_pretrained", "timm_drop", "timm_drop_path",
    },
    "text": {"output_tokens", "hf_model_pretrained", "pad_id"},
}  # fmt: skip
# Entries that have to be as they are by default, and are in nearly all of these models.
BLOCKS = {
    "ls_init_value": None, "act_kwargs": None, "norm_kwargs": None, "block_type": None,
    "qk_norm": False, "scaled_cosine_attn": False, "scale_heads": False, "scale_attn_inner": False,
    "scale_attn": False, "scale_fc": False,
}  # fmt: skip
VISION = BLOCKS | {"attentional_pool": False, "no_ln_pre": False, "mlp_ratio": 4}
TEXT = BLOCKS | {
    "embed_cls": False, "no_causal_mask": False, "proj_bias": False, "proj_type": "linear",
    "final_ln_after_pool": False,
}  # fmt: skip
TOKENIZER = {"hf_model_name", "hf_tokenizer_name", "tokenizer_kwargs", "tokenizer_mode"}
SIZES = {"layers", "width", "head_width", "heads", "mlp_ratio", "vocab_size", "patch_size"}

RENAMED: Rules = (
    (r"^blocks_", "transformer.resblocks."),
    (r"\.norm(\d)$", r".ln_\1"),
    (r"\.qkv$", ".in_proj"),
    (r"\.proj$", ".out_proj"),
    (r"\.fc1$", ".c_fc"),
    (r"\.fc2$", ".c_proj"),
)
IN_PROJ: Rules = ((r"\.in_proj_(?=weight$|bias$)", ".in_proj."),)
VIT = Family(
    rename=(
        (r"^cls_token$", "class_embedding"),
        (r"^pos_embed$", "positional_embedding"),
        (r"^patch_embed$", "conv1"),
        (r"^norm_pre$", "ln_pre"),
        (r"^norm$", "ln_post"),
        *RENAMED,
    ),
    aliases=IN_PROJ,
)
CLIP_TEXT = Family(
    rename=((r"^final_layer_norm$", "ln_final"), *RENAMED),
    aliases=((r"^positional_embedding$", "position_embedding.weight"), *IN_PROJ),
)
# By hf_pooler_type: the pooling, and whether BERT's own pooler follows.
POOLERS = {
    "mean_pooler": ("mean", False),
    "cls_pooler": ("cls", True),
    "cls_last_hidden_state_pooler": ("cls", False),
}
DEFAULT_POOLERS = {False: "cls_pooler", True: "mean_pooler"}  # of BERT; of RoBERTa


class Side(NamedTuple):
    """Holds one tower.

    Attributes:
      module: the encoder.
      families: of its tensors.
      rules: from their names in the file to those in the families, behind "img." or "txt.".
      unbiased: as of `Towers`.
    """

    module: nn.Module
    families: tuple[Family, ...]
    rules: Rules
    unbiased: bool


def read(folder: Path, *, dtype: Any, tell: Tell) -> Layout:
    """Returns the layout of a folder with open_clip_config.json.

    `tell` is told what the files leave open. Raises UserError for a model that is not read here.
    """
    file = folder / CONFIG
    whole = layout.read_json(file)
    about = layout.section(file, whole, "model_cfg")
    own = {"embed_dim", "quick_gelu", "vision_cfg", "text_cfg"}
    layout.check_known(file, about, NO_EFFECT["model"] | own)
    vision, text = (layout.section(file, about, f"{name}_cfg") for name in ("vision", "text"))
    dim = layout.count(file, about, "embed_dim", 0)
    activation = "quick_gelu" if about.get("quick_gelu") else "gelu"
    size = layout.side(file, "image_size", vision.get("image_size", 224))
    if vision.get("timm_model_name"):
        image = _trunk(file, vision, size, dtype)
    else:
        image = _vit(file, vision, size, activation, dtype)
    tokenizer = text.get("hf_tokenizer_name") or ""
    if text.get("hf_model_name"):
        words = _bert(folder, text, dim, dtype, tell)
    else:
        words = _clip_text(file, text, activation, dtype)
        tokenizer = tokenizer or layout.usual_tokenizer(words.module.config)
    pictures, (mean, std) = _pictures(file, layout.section(file, whole, "preprocess_cfg"), size)
    module = Towers(
        img=image.module,
        txt=words.module,
        dim=dim,
        txt_width=words.module.width,
        mean=mean,
        std=std,
        unbiased=tuple(n for n, one in (("img", image), ("txt", words)) if one.unbiased),
    )
    tokens = layout.count(file, text, "context_length", 77)
    if tokens > words.module.config.max_length:
        raise UserError(
            f"{file}: context_length={tokens}, but the text encoder has "
            f"{words.module.config.max_length} positions."
        )
    return Layout(
        module,
        {"img": image.families, "txt": words.families},
        (*image.rules, *words.rules),
        FILES,
        pictures,
        tokens,
        tokenizer,
        library="open_clip",
        transposed={"visual.proj", "text_projection", "text.text_projection"},
    )


def _vit(file: Path, vision: dict[str, Any], size: int, activation: str, dtype: Any) -> Side:
    """Returns open_clip's own vision transformer."""
    if isinstance(vision.get("layers"), list):
        raise UserError(
            f"{file} describes a ModifiedResNet (layers={vision['layers']!r}), which is not read "
            f"here: take one with a vision transformer. {layout.READ}."
        )
    own = {"image_size", "pool_type", "final_ln_after_pool", *SIZES}
    layout.check_known(file, vision, NO_EFFECT["vision"] | VISION.keys() | own)
    layout.check_fixed(file, vision, VISION)
    pool = layout.chosen(file, vision, "pool_type", "tok", ("tok", "avg"))
    if pool == "avg":  # the class token's norm is the same before and after the pooling
        layout.check_fixed(file, vision, {"final_ln_after_pool": False})
    width, patch, depth, each = (
        layout.count(file, vision, name, default)
        for name, default in (
            ("width", 768),
            ("patch_size", 16),
            ("layers", 12),
            ("head_width", 64),
        )
    )
    layout.check_grid(file, width=width, heads=width // each, size=size, patch=patch)
    module = ViT(
        patch=patch,
        width=width,
        heads=width // each,
        depth=depth,
        pre_norm=True,
        activation=activation,
        epsilon=1e-5,
        image_size=size,
        pool="token" if pool == "tok" else "mean",
        dtype=dtype,
    )
    rules = ((r"^visual\.proj$", "img_head.weight"), (r"^visual\.", "img."))
    return Side(module, (VIT,), rules, unbiased=True)


def _trunk(file: Path, vision: dict[str, Any], size: int, dtype: Any) -> Side:
    """Returns an image encoder of timm's, with its classifier or a layer as the projection."""
    own = {"image_size", "timm_model_name", "timm_pool", "timm_proj", "timm_proj_bias"}
    layout.check_known(file, vision, NO_EFFECT["vision"] | VISION.keys() | own | SIZES)
    name = str(vision["timm_model_name"])
    arch = name.split(".")[0]
    if arch not in encoders.IMAGE_ENCODERS or arch.endswith("_mean"):
        near = difflib.get_close_matches(arch, encoders.IMAGE_ENCODERS, n=1, cutoff=0)[0]
        raise UserError(
            f"{file} says timm_model_name={name!r}, an image encoder that is not read here; the "
            f"nearest is {near}. {layout.READ}."
        )
    make, arguments = encoders.IMAGE_ENCODERS[arch]
    module = make(**arguments, dtype=dtype)
    projection = layout.chosen(file, vision, "timm_proj", "linear", ("", "linear"))
    pool = vision.get("timm_pool", "avg")
    if isinstance(module, ViT):
        # Beside "linear" timm leaves its norm before the mean; beside "" it would be after it.
        poolings = {
            "": {"token": "token"},
            "linear": {"": "token", "token": "token", "avg": "mean"},
        }
        layout.chosen(file, vision, "timm_pool", "avg", tuple(poolings[projection]))
        module = module.clone(pool=poolings[projection][pool])
        layout.check_fixed(file, {"image_size": size}, {"image_size": module.image_size})
    else:
        layout.chosen(file, vision, "timm_pool", "avg", ("avg", "") if projection else ("avg",))
    head = r"^visual\.head\.proj\." if projection else rf"^visual\.trunk\.{module.classifier}\."
    rules = ((head, "img_head."), (r"^visual\.trunk\.", "img."))
    unbiased = bool(projection) and not vision.get("timm_proj_bias")
    # timm's names alone: open_clip has built the trunk by timm.
    return Side(module, naming.families(module)[:1], rules, unbiased)


def _clip_text(file: Path, text: dict[str, Any], activation: str, dtype: Any) -> Side:
    """Returns CLIP's text encoder as open_clip has it."""
    own = {"context_length", "pool_type", "eos_id", *SIZES, *TOKENIZER}
    layout.check_known(file, text, NO_EFFECT["text"] | TEXT.keys() | own)
    layout.check_fixed(file, text, TEXT)
    _check_tokenizer(file, text)
    pool = layout.chosen(file, text, "pool_type", "argmax", ("argmax", "eos"))
    width = layout.count(file, text, "width", 512)
    config = ClipTextConfig(
        vocab_size=layout.count(file, text, "vocab_size", layout.TOKENS),
        hidden_size=width,
        num_hidden_layers=layout.count(file, text, "layers", 12),
        num_attention_heads=layout.count(file, text, "heads", 8),
        intermediate_size=int(width * text.get("mlp_ratio", 4)),
        max_position_embeddings=layout.count(file, text, "context_length", 77),
        hidden_act=activation,
        # To `ClipText` 2 means the largest token of a text, as "argmax" does.
        eos_token_id=2 if pool == "argmax" else layout.count(file, text, "eos_id", 2),
    )
    if pool == "eos" and config.eos_token_id == 2:
        raise UserError(
            f"{file} says pool_type='eos' of token 2, which is not read here. {layout.READ}."
        )
    if width % config.num_attention_heads:
        raise UserError(
            f"{file}: a width of {width} does not divide into {config.num_attention_heads} heads."
        )
    rules = (
        # The text encoder is a part of its own, or its parts are those of the whole.
        (r"^(?=(?:positional_embedding|text_projection)$)", "text."),
        (r"^(?=(?:token_embedding|transformer|ln_final)\.)", "text."),
        (r"^text\.text_projection$", "txt_head.weight"),
        (r"^text\.", "txt."),
    )
    return Side(ClipText(config, dtype), (CLIP_TEXT,), rules, unbiased=True)


def _check_tokenizer(file: Path, text: dict[str, Any]) -> None:
    """Raises UserError if texts are cut or cleaned in a way that is not done here."""
    layout.check_fixed(file, text, {"tokenizer_mode": None})
    arguments = layout.section(file, text, "tokenizer_kwargs")
    layout.check_known(file, arguments, {"clean"})
    layout.chosen(file, arguments, "clean", "whitespace", ("whitespace", "lower"))


def _bert(folder: Path, text: dict[str, Any], dim: int, dtype: Any, tell: Tell) -> Side:
    """Returns a BERT or RoBERTa, with the layers after its pooling."""
    file = folder / CONFIG
    own = {"hf_pooler_type", "hf_proj_type", "context_length", *TOKENIZER, *SIZES}
    layout.check_known(file, text, NO_EFFECT["text"] | TEXT.keys() | own)
    _check_tokenizer(file, text)
    make, config = encoders.read_config(_bert_config(folder, str(text["hf_model_name"])), tell=tell)
    if make is not Bert:
        raise UserError(f"{file}: hf_model_name={text['hf_model_name']!r} is no BERT or RoBERTa.")
    usual = DEFAULT_POOLERS[config.roberta_positions]
    if text.get("hf_pooler_type") is None:
        text = {name: value for name, value in text.items() if name != "hf_pooler_type"}
    pooler = layout.chosen(file, text, "hf_pooler_type", usual, tuple(POOLERS))
    pooling, has_own = POOLERS[pooler]
    kind = layout.chosen(file, text, "hf_proj_type", "mlp", (None, "linear", "mlp"))
    width = config.hidden_size
    if kind is None and width != dim:
        raise UserError(f"{file}: hf_proj_type=null, but the text encoder is {width} wide.")
    between = (width + dim) // 2
    layers = {
        None: (),
        "linear": (("text.proj.", Projection(dim, bias=False)),),
        "mlp": (
            ("text.proj.0.", Projection(between, "GELU", bias=False)),
            ("text.proj.2.", Projection(dim, bias=False)),
        ),
    }[kind]
    if has_own:
        layers = (("text.transformer.pooler.dense.", Projection(width, "Tanh")), *layers)
    rules = tuple(
        (f"^{re.escape(name)}", f"txt.dense.{number}.") for number, (name, _) in enumerate(layers)
    )
    module = Bert(config, dtype, pooling, tuple(layer for _, layer in layers))
    rules = (*rules, (r"^text\.transformer\.", "txt."))
    return Side(module, naming.families(module), rules, unbiased=False)


def _bert_config(folder: Path, name: str) -> Path:
    """Returns where the config.json of a text encoder is: beside, at a path, or on the hub."""
    if (folder / "config.json").is_file():
        return folder
    try:
        return hub.locate(name, pretrained=False)
    except UserError as error:
        raise UserError(
            f"{folder} has no config.json of its text encoder, and hf_model_name={name!r} in "
            f"{CONFIG} leads to none: {error} Put the config.json of {name} into the folder."
        ) from error


def _pictures(file: Path, given: dict[str, Any], size: int) -> tuple[Fitting, tuple]:
    """Returns how pictures become pixels, and mean and deviation of these in 0..255."""
    given = {name: value for name, value in given.items() if value is not None}
    known = ("size", "mode", "mean", "std", "interpolation", "resize_mode", "fill_color")
    layout.check_known(file, given, known)
    layout.check_fixed(file, given, {"mode": "RGB", "fill_color": 0})
    ways = ("bicubic", "random", "bilinear")  # random is for training
    way = layout.chosen(file, given, "interpolation", "bicubic", ways)
    mode = layout.chosen(file, given, "resize_mode", "shortest", ("shortest", "longest", "squash"))
    pixels = layout.pixels(file, given.get("mean", layout.MEAN), given.get("std", layout.STD))
    # The size is the encoder's, as in open_clip, whatever preprocess_cfg says.
    return Fitting(size, size, mode, "bilinear" if way == "bilinear" else "bicubic"), pixels
