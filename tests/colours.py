"""A model that calls a picture's mean colour by its name, a set of such pictures, an evaluator."""

import json

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import tensorflow_datasets as tfds
from pictures import coloured

from otter_jax import mesh as meshes
from otter_jax.configs import common
from otter_jax.data.captions import Tokenizer
from otter_jax.data.source import Source
from otter_jax.run.console import make_console
from otter_jax.zeroshot import evaluator
from otter_jax.zeroshot.sets import EvalSet

COLOURS = {"red": (200, 30, 30), "green": (20, 180, 40), "blue": (30, 40, 220)}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *COLOURS]
PICTURES = [*COLOURS, "red", None, "red"]  # the last but one is no picture


class Means(nn.Module):
    """An image is its mean colour, a text the mean of its words' vectors."""

    @nn.compact
    def embed_images(self, image):
        weight = self.param("images", nn.initializers.ones, (3,))
        return _unit((image.astype(jnp.float32).mean(axis=(1, 2)) - 80) * weight)

    @nn.compact
    def embed_texts(self, token_ids, mask):
        table = self.param("texts", nn.initializers.ones, (len(WORDS), 3))
        return _unit((table[token_ids] * mask[..., None]).sum(axis=1))


def _unit(x):
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def weights(images=1.0, **texts):
    """Weights under which each colour is called by its name, but for those in `texts`."""
    table = np.zeros((len(WORDS), 3), np.float32)
    for number, name in enumerate(COLOURS):
        table[WORDS.index(name), number] = 1
    for name, value in texts.items():
        table[WORDS.index(name)] = value
    return {"params": {"images": np.full(3, images, np.float32), "texts": table}}


def source_of(pictures):
    """Pictures of these colours, in noise of their own; None is no picture."""
    features = {"image": tfds.features.Image(), "key": tfds.features.Text()}
    records = [
        {"image": coloured(COLOURS[name], n) if name else b"", "key": b"p%d" % n}
        for n, name in enumerate(pictures)
    ]
    return Source("colours:train", records, tfds.features.FeaturesDict(features))


def eval_set(labels, shown=PICTURES, **more):
    """A set of pictures with these labels, to be found among all colours."""
    labels = np.array(labels, np.int32)
    about = {"labels": "a1b2", "templates": ["{}"]}
    found = {"templates": ("{}",), "about": about} | more
    return EvalSet("colours", source_of(shown), list(COLOURS), labels, **found)


def evaluation_of(found, folder, monkeypatch):
    """A function that evaluates weights on a set, and returns metrics and what is written."""
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    monkeypatch.setattr(EvalSet, "open", lambda *_, **__: found)
    config = common.get_config("infonce")
    config.eval.sets.colours = common.evaluation("colours")
    config.eval.batch_size, config.data.resize, config.data.image_size = 4, 36, 32

    def call(variables, devices=2, **options):
        tokenizer, mesh = Tokenizer(folder, 4), meshes.make_mesh(devices)
        out = make_console()
        evaluate = evaluator.Evaluator(config, Means(), tokenizer, mesh, folder, out)
        metrics = evaluate(7, {"student": variables}, **options)
        results = json.loads((folder / "results" / "step_00000007.json").read_text())
        return metrics, results["sets"]["colours"]

    return call
