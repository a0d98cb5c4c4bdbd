"""Writes exports of small models with drawn weights, one of each kind that open_clip holds.

PYTHONPATH=. python tests/golden/draw_towers.py drawn
for each in drawn/*; do sh tests/golden/verify.sh $each; done
"""

import dataclasses
import functools
import json
import pathlib
import sys

import jax
import numpy as np
import tokenizers
from tokenizers import models, pre_tokenizers, processors

from otter_jax.configs import common
from otter_jax.data.captions import Tokenizer
from otter_jax.models.bert import Bert, BertConfig, Projection
from otter_jax.models.clip import ClipText, ClipTextConfig
from otter_jax.models.towers import Towers
from otter_jax.run.export import CAPTIONS, examples
from otter_jax.run.model import initialise
from otter_jax.weights import encoders, folders, open_clip_export

L = 12
SPECIAL = ["<begin>", "<pad>", "<unknown>", "<end>"]
WORDS = sorted({word for text in CAPTIONS for word in text.replace(",", " , ").split()})
VOCABULARY = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}
SIZES = {
    "vocab_size": len(VOCABULARY), "hidden_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 4, "intermediate_size": 128, "max_position_embeddings": 20,
}  # fmt: skip
BERT = BertConfig(**SIZES, pad_token_id=1)
CLIP = ClipTextConfig(**SIZES, eos_token_id=3)
TWO = (Projection(24), Projection(20, bias=False))
CASES = {  # name: image encoder, side of its pictures, text encoder, D
    "clip": ("vit_small_patch32_224", 224, ClipText(CLIP), 48),
    "clip_same_width": ("vit_small_patch32_224", 224, ClipText(CLIP), 32),
    "roberta_wider": (
        "vit_small_patch32_224_mean", 224,
        Bert(dataclasses.replace(BERT, roberta_positions=True)), 96,
    ),
    "bert_two_layers": ("resnet18", 64, Bert(BERT, pooling="cls", projections=TWO), 16),
    "bert_same_width": ("mobilenetv3_small_100", 64, Bert(BERT), 32),
}  # fmt: skip


def original(folder: pathlib.Path, text: Bert | ClipText) -> pathlib.Path:
    """Writes config and tokenizer of a text encoder: a token for each word."""
    made = tokenizers.Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unknown>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(SPECIAL)
    ends = [(word, VOCABULARY[word]) for word in ("<begin>", "<end>")]
    made.post_processor = processors.TemplateProcessing("<begin> $A <end>", special_tokens=ends)
    folder.mkdir(parents=True)
    made.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<begin>", "eos_token": "<end>", "pad_token": "<pad>"}
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unknown>", **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    fields = dataclasses.asdict(text.config)
    fields.pop("roberta_positions", None)
    kind = {"model_type": "bert", "bos_token_id": 0, "eos_token_id": 3}
    (folder / "config.json").write_text(json.dumps(fields | kind))
    return folder


def draw(path, like, rng):
    """Draws a variable: about as large as trained ones are."""
    name, noise = jax.tree_util.keystr(path), rng.normal(size=like.shape).astype(np.float32)
    if "log_scale" in name:
        return np.float32(3.2)
    if "['var']" in name or "['scale']" in name:
        return 1 + 0.1 * np.abs(noise)
    return noise / np.float32(max(np.prod(like.shape[:-1]), 100) ** 0.5)


def write(folder: pathlib.Path, arch, size, text, dim) -> None:
    """Writes an export as `run.export.write` does."""
    make, arguments = encoders.IMAGE_ENCODERS[arch]
    layers = text.projections if isinstance(text, Bert) else ()
    model = Towers(
        img=make(**arguments),
        txt=text,
        dim=dim,
        txt_width=layers[-1].width if layers else text.width,
        mean=common.CLIP_MEAN,
        std=common.CLIP_STD,
    )
    like = jax.eval_shape(functools.partial(initialise, model, jax.random.key(0)))
    own = functools.partial(draw, rng=np.random.default_rng(0))
    variables = jax.tree_util.tree_map_with_path(own, {"batch_stats": {}} | like)
    config = common.get_config()
    config.model.img.arch, config.data.max_tokens = arch, L
    config.data.image_size = config.data.resize = size
    source = original(folder / "original", text)
    folders.write_image(folder / "image", config, model, variables)
    folders.write_text(folder / "text", config, model, variables, source)
    folders.write_towers(folder, config, model, variables)
    home = folder.absolute() / "open_clip"
    open_clip_export.write(home, config, model, variables, source, home=home)
    np.savez(folder / "check.npz", **examples(model, variables, Tokenizer(source, L), size))
    about = {"max_tokens": L, "mean": model.mean, "std": model.std}
    (folder / "otter_jax.json").write_text(
        json.dumps(about | {"scale": {"pairs": float(np.exp(np.float32(3.2)))}})
    )


for case, settings in CASES.items():
    write(pathlib.Path(sys.argv[1]) / case, *settings)
    print(f"{case}: {settings[0]}, {type(settings[2]).__name__}, D = {settings[3]}", flush=True)
