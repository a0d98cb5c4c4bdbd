"""An evaluation from embeddings to results: ties, numbers that are not finite, what is counted."""

import json
import sys

import numpy as np
import pytest
from colours import eval_set, evaluation_of, weights

from otter_jax.configs import common
from otter_jax.errors import UserError
from otter_jax.run import directory
from otter_jax.zeroshot import evaluator

LABELS = [[0], [1], [2], [0], [0], [-1]]


@pytest.fixture
def evaluated(tmp_path, monkeypatch, capsys):
    """Results, and what is printed, of weights on the pictures; their labels are the colours."""
    found = eval_set(LABELS, no_label=1, unknown={"pink": 2}, about={})
    evaluate = evaluation_of(found, tmp_path, monkeypatch)

    def call(variables):
        return *evaluate(variables), capsys.readouterr().out

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
