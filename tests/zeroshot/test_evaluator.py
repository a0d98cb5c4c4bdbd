"""An evaluation from embeddings to results: ties, numbers that are not finite, what is counted."""

import json
import sys

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds
from pictures import coloured

from otter_jax import mesh as meshes
from otter_jax.configs import common
from otter_jax.data.captions import Tokenizer
from otter_jax.data.source import Source
from otter_jax.errors import UserError
from otter_jax.run import directory
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


@pytest.fixture
def evaluated(tmp_path, monkeypatch, capsys):
    """Results, and what is printed, of weights on the pictures; their labels are the colours."""
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    features = {"image": tfds.features.Image(), "key": tfds.features.Text()}
    records = [
        {"image": coloured(COLOURS[name], n) if name else b"", "key": b"p%d" % n}
        for n, name in enumerate(PICTURES)
    ]
    source = Source("colours:train", records, tfds.features.FeaturesDict(features))
    labels = np.array([[0], [1], [2], [0], [0], [-1]], np.int32)
    found = EvalSet("colours", source, list(COLOURS), labels, ("{}",), 1, {"pink": 2})
    monkeypatch.setattr(EvalSet, "open", lambda *_, **__: found)
    config = common.get_config("infonce")
    config.eval.sets.colours = common.evaluation("colours")
    config.eval.batch_size, config.data.resize, config.data.image_size = 4, 36, 32

    def call(variables):
        out = make_console()
        tokenizer, mesh = Tokenizer(tmp_path, 4), meshes.make_mesh(2)
        evaluate = evaluator.Evaluator(config, Means(), tokenizer, mesh, tmp_path, out)
        metrics = evaluate(7, {"student": variables})
        results = json.loads((tmp_path / "results" / "step_00000007.json").read_text())
        return metrics, results["sets"]["colours"], capsys.readouterr().out

    return call


def test_weights_that_tell_all_classes_apart_are_always_right_and_the_rest_is_counted(evaluated):
    metrics, results, out = evaluated(weights())
    names = ("FH@1", "FH@2", "accuracy", "recall@1", "recall@2")
    assert metrics == {f"colours/student/{name}": 1.0 for name in names}
    assert results["images"] == 4
    assert results["unreadable"] == ["p4"]
    assert results["without_label"] == 1
    assert results["unknown_labels"] == {"count": 1, "first": {"pink": 2}}
    assert "colours:train: 1 unreadable images are left out, such as p4." in out
    assert "ties" not in out


@pytest.mark.parametrize("variables", [weights(images=0), weights(red=1, green=1, blue=1)])
def test_weights_that_tell_nothing_apart_have_chance_exactly(evaluated, variables):
    _, results, out = evaluated(variables)
    assert {k: results["student"][k] for k in ("FH@1", "FH@2")} == results["chance"]
    assert "colours, student: 4 of 4 images have ties with their label" in out


def test_a_class_that_is_another_word_for_a_second_one_is_half_a_hit(evaluated):
    _, results, out = evaluated(weights(green=(1, 0, 0)))
    assert results["student"]["FH@1"] == (0.5 + 0 + 1 + 0.5) / 4
    assert "3 of 4 images have ties" in out


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("images", r"embeddings of images \(student\) hold NaN or infinity, 5 of 6, such as p0"),
        ("green", "embeddings of class names hold NaN or infinity, 1 of 3, such as green"),
    ],
)
def test_embeddings_that_are_not_finite_are_named_and_give_no_score(
    evaluated, tmp_path, where, words, bad
):
    with pytest.raises(UserError, match=words):
        evaluated(weights(**{where: bad}))
    assert not (tmp_path / "results").exists()


def test_another_evaluation_of_a_step_does_not_overwrite_its_own(tmp_path):
    config = common.get_config("infonce")
    config.eval.sets.colours = common.evaluation("colours")
    directory.describe(tmp_path, json.loads(config.to_json()))
    assert evaluator._is_own(config, tmp_path)
    config.eval.sets.colours.templates = ("a photo of {}.", "{}")
    assert not evaluator._is_own(config, tmp_path)
    kinds = {directory.digest(evaluator._evaluated(config))}
    config.data.exif = "ignore"
    kinds.add(directory.digest(evaluator._evaluated(config)))
    files = {directory.results(tmp_path, 7, kind).name for kind in ("", *kinds)}
    assert len(files) == 3
    assert all(name.startswith("step_00000007.") for name in files)


def test_a_config_by_which_pictures_are_seen_otherwise_than_in_training_is_named(tmp_path):
    config = common.get_config("infonce")
    assert evaluator._changed(config, tmp_path) == []  # a run that has lost its config
    directory.describe(tmp_path, json.loads(config.to_json()))
    config.eval.sets.colours = common.evaluation("colours")
    config.train.epochs = 0.5
    assert evaluator._changed(config, tmp_path) == []
    config.data.image_size = 64
    assert evaluator._changed(config, tmp_path) == ["data.image_size: 224 -> 64"]


def test_results_say_what_they_are_of(evaluated, tmp_path):
    _, colours, _ = evaluated(weights())
    results = json.loads((tmp_path / "results" / "step_00000007.json").read_text())
    assert results["step"] == 7
    assert results["weights"] == ["student"]
    assert results["command"] == sys.argv
    assert colours["about"]["max_tokens"] == 60
    assert colours["prompts"] == {"cut": 0, "same_tokens": [], "unknown_tokens": []}
