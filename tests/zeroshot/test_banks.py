"""Names are embedded once for all weights with the same text tower, and in parts of any size."""

import numpy as np
import pytest

from otter_jax.data.source import Source
from otter_jax.run.console import make_console, progress_bar
from otter_jax.run.embedder import Embedder
from otter_jax.zeroshot import banks
from otter_jax.zeroshot.bank import class_bank
from otter_jax.zeroshot.sets import EvalSet

NAMES = ["cat", "dog", "red fox"]


class Texts(Embedder):
    """Stands in for an embedder: a text's vector depends on it and the weights; it counts texts."""

    def __init__(self):
        self.seen = []

    def texts(self, variables, texts, check_stop=None):
        self.seen += texts
        weight = variables["params"]["txt"]["kernel"]
        rows = [np.random.default_rng([len(t), *t.encode()]).normal(size=4) * weight for t in texts]
        return np.array(rows, np.float32)


LABELS = np.zeros((0, 1), np.int32)
ANIMALS = EvalSet("animals", Source("animals:train", [], {}), NAMES, LABELS, ("a {}", "the {}"))


def weights(text=1.0, image=1.0):
    return {
        "params": {"txt": {"kernel": np.full(4, text)}, "img": {"kernel": np.full(4, image)}},
        "batch_stats": {"img": {"mean": np.full(4, image)}},
    }


@pytest.fixture
def made():
    """A function that returns the bank of the set under some weights, and one to forget others."""
    embedder = Texts()
    kept = banks.Banks(embedder, make_console(), batch_size=2)

    def of(variables):
        with progress_bar(make_console()) as bar:
            (bank,) = kept.of([ANIMALS], variables, bar, lambda: None)
        return bank

    return of, kept.forget_unused, embedder.seen


def test_names_are_not_embedded_again_for_other_weights_of_the_image_tower(made):
    of, _, seen = made
    first, second = of(weights()), of(weights(image=2.0))
    assert first is second
    assert len(seen) == len(NAMES) * len(ANIMALS.templates)


def test_names_are_embedded_again_for_other_weights_of_the_text_tower(made):
    of, forget, seen = made
    of(weights())
    forget()
    of(weights(text=np.nextafter(1.0, 2.0)))
    assert len(seen) == 2 * len(NAMES) * len(ANIMALS.templates)
    forget()  # what was not asked for since the last time
    of(weights())
    assert len(seen) == 3 * len(NAMES) * len(ANIMALS.templates)


@pytest.mark.parametrize("at_once", [1, 2, 5, 100])
def test_a_bank_is_the_same_bit_for_bit_in_parts_of_any_size(at_once):
    sizes = []

    def embed(texts):
        sizes.append(len(texts))
        return Texts().texts(weights(), texts)

    whole = class_bank(embed, NAMES, ANIMALS.templates)
    sizes.clear()
    np.testing.assert_array_equal(
        class_bank(embed, NAMES, ANIMALS.templates, at_once=at_once), whole
    )
    assert max(sizes) <= at_once


def test_the_digest_of_weights_sees_every_bit_every_name_and_every_shape():
    tree = {"a": np.zeros((2, 3), np.float32), "b": np.ones(1)}
    others = [
        tree | {"a": np.full((2, 3), -0.0, np.float32)},
        tree | {"a": np.zeros((3, 2), np.float32)},
        {"a": tree["a"], "c": tree["b"]},
    ]
    assert banks.digest_of(tree) == banks.digest_of(dict(reversed(tree.items())))
    assert len({banks.digest_of(each) for each in (tree, *others)}) == 4
