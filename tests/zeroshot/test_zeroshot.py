"""Flat hit, class bank, baselines: by hand, and the released code's numbers."""

import json
import pathlib

import numpy as np
import pytest

from otter_jax import zeroshot
from otter_jax.errors import UserError
from otter_jax.zeroshot.bank import class_bank, prompts, read_names
from otter_jax.zeroshot.hits import chance, flat_hit, frequency

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"


def unit(x):
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def test_the_public_names_are_at_the_door():
    assert zeroshot.flat_hit is flat_hit
    assert zeroshot.class_bank is class_bank


def test_a_hit_needs_one_of_the_labels_among_the_k_best():
    ranked = np.array([[3, 1, 2], [0, 1, 2], [2, 0, 1]])
    labels = np.array([[1, -1], [1, 2], [2, -1]])
    assert flat_hit(ranked, labels, ks=(1, 2, 3)) == {1: 1 / 3, 2: 1.0, 3: 1.0}


def test_padding_is_no_label():
    assert flat_hit(np.array([[0, 1]]), np.array([[-1, -1]]), ks=(1, 2)) == {
        1: 0.0,
        2: 0.0,
    }


def test_a_k_beyond_the_ranked_classes_is_left_out():
    assert list(flat_hit(np.array([[0, 1]]), np.array([[0]]))) == [1, 2]


def test_flat_hit_equals_the_released_code(golden):
    data = golden("unit_metrics.npz")
    expected = json.loads((GOLDEN / "unit_metrics.json").read_text())["fatk_hand"]["values"]
    hits = flat_hit(data["fatk_preds"], data["fatk_targets"], ks=(1, 5))
    assert hits == pytest.approx({int(k): v for k, v in expected.items()})


def test_nearest_classes_hit_as_in_the_released_code(golden):
    """One name a class; with several the release counts prompts, which is no option here."""
    data = golden("unit_metrics.npz")
    expected = json.loads((GOLDEN / "unit_metrics.json").read_text())["single"]["sklearn_path"]
    _, first = np.unique(data["bank_labels"], return_index=True)
    ranked = data["knn_index_single"]
    assert ranked.max() < 60
    assert len(first) <= 60
    hits = flat_hit(ranked, data["targets"], ks=(1, 2, 5, 10))
    assert hits == pytest.approx({int(k): v for k, v in expected.items()})


@pytest.mark.parametrize("number", [0, 1])
def test_prompts_equal_the_released_code(number):
    example = json.loads((GOLDEN / "unit_prompts.json").read_text())["examples"][number]
    captions, labels = zip(*prompts(example["class_names"], example["templates"]), strict=True)
    assert ([*captions], [*labels]) == (example["captions"], example["labels"])


def test_braces_in_a_name_are_text():
    assert list(prompts(["{0}"], ["a {}."])) == [("a {0}.", 0)]


def test_a_class_is_the_normalised_mean_of_its_prompts():
    vectors = {"a cat": [1, 0], "a tom": [0, 1], "a dog": [0, -1]}
    bank = class_bank(
        lambda captions: np.array([vectors[c] for c in captions], np.float32),
        [["cat", "tom"], "dog"],
        ["a {}"],
    )
    np.testing.assert_allclose(bank, [[0.5**0.5, 0.5**0.5], [0, -1]], atol=1e-6)


def test_k_counts_classes_not_prompts():
    """All three prompts of "a" are nearer than any of "b", and still "b" is among the best two."""
    vectors = {"a": [1.0, 0.1], "b": [0.5, 0.9], "c": [-1.0, 0.0]}
    bank = class_bank(
        lambda captions: unit(np.array([vectors[c[0]] for c in captions])),
        list(vectors),
        ["{}", "{}!", "{}?"],
    )
    ranked = np.argsort(-(np.array([[1.0, 0.0]]) @ bank.T), axis=1)
    assert flat_hit(ranked, np.array([[1]]), ks=(1, 2)) == {1: 0.0, 2: 1.0}


def test_chance_is_what_random_orders_hit():
    rng = np.random.RandomState(0)
    labels = np.array([[0, -1, -1], [1, 2, 5]])
    orders = np.stack([rng.permutation(7) for _ in range(20000)])
    for k, expected in chance(labels, 7, ks=(1, 2, 5)).items():
        seen = [flat_hit(orders, np.tile(row, (20000, 1)), ks=(k,))[k] for row in labels]
        assert np.mean(seen) == pytest.approx(expected, abs=0.01)


def test_chance_for_one_label_is_k_over_classes():
    assert chance(np.array([[4]]), 1652) == pytest.approx({k: k / 1652 for k in (1, 2, 5, 10)})


def test_frequency_answers_the_commonest_classes():
    labels = np.array([[0, 3], [3, -1], [2, 3], [1, -1]])
    hits = frequency(labels, 5, ks=(1, 2))
    assert hits == {1: 0.75, 2: 0.75}  # class 3, then the first of those with one image


def test_blank_and_repeated_names_are_left_out_and_said_so(tmp_path, capsys):
    path = tmp_path / "names.txt"
    path.write_text("cat\n\n dog \ncat\n")
    assert read_names(str(path)) == ["cat", "dog"]
    assert "1 blank lines and 1 repeated names" in capsys.readouterr().out


@pytest.mark.parametrize("content", [None, "\n\n"])
def test_a_list_without_names_is_an_error(tmp_path, content):
    path = tmp_path / "names.txt"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match="names.txt"):
        read_names(str(path))
