"""Prompts that are cut, alike or unknown are counted, and the classes are named."""

import pytest

from otter_jax.data.captions import Tokenizer
from otter_jax.zeroshot.prompts import Prompts, look_at

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "photo", "of", "red", "green", "blue", "fox", "."]


@pytest.fixture
def tokenizer(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    return Tokenizer(tmp_path, 8)


def test_prompts_as_they_should_be_say_nothing(tokenizer):
    found = look_at(tokenizer, ["red fox", "green fox"], ["a photo of {}.", "{}"])
    assert (found.cut, found.same, found.unknown) == ([], [], [])
    assert list(found.lines(8)) == []


def test_what_is_cut_is_named_and_may_make_classes_the_same(tokenizer):
    names = ["red green blue red", "red green blue green", "red fox"]
    found = look_at(tokenizer, names, ["a photo of {}"])
    assert found.cut == names[:2]
    assert found.same == [names[:2]]
    lines = list(found.lines(8))
    assert lines[0].startswith(
        "2 classes have prompts that are cut at 8 tokens, such as 'red green"
    )
    assert "2 classes have the same tokens as another" in lines[1]
    told_apart = look_at(tokenizer, names, ["a photo of {}", "{}"])
    assert (told_apart.cut, told_apart.same) == (names[:2], [])


def test_names_of_unknown_words_are_one_class_to_the_encoder(tokenizer):
    found = look_at(tokenizer, ["lynx", "puma", "red fox", "Fox", "fox"], ["a photo of {}."])
    assert found.unknown == ["lynx", "puma"]
    assert found.same == [["lynx", "puma"], ["Fox", "fox"]]
    assert "'lynx', 'puma': their scores mean nothing" in list(found.lines(8))[-1]


def test_a_sentence_does_not_repeat_a_name_of_any_length():
    (line,) = Prompts([], [], ["x" * 5000]).lines(8)
    assert line.startswith("1 class has names of unknown tokens alone, such as 'xxx")
    assert len(line) < 250
