"""Captions to tokens: fixed length, whatever the text."""

import json
import pickle
import subprocess
import sys

import numpy as np
import pytest

from otter_jax.data import captions
from otter_jax.errors import UserError

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [*SPECIAL, "a", "photo", "of", "na", "null", "red", "cat", "dog", "##s"]
PAD, CLS, SEP = 0, 2, 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder):
    return captions.Tokenizer(folder, max_tokens=8)


def test_a_folder_with_vocab_txt_alone_makes_a_bert_tokenizer(tokenizer):
    ids, mask = tokenizer.encode(["a photo of a cat", "Dogs"])
    assert (ids.dtype, mask.dtype) == (np.int32, np.bool_)
    a, photo, of, cat = (WORDS.index(word) for word in ("a", "photo", "of", "cat"))
    np.testing.assert_array_equal(ids[0], [CLS, a, photo, of, a, cat, SEP, PAD])
    np.testing.assert_array_equal(mask[0], [1, 1, 1, 1, 1, 1, 1, 0])
    np.testing.assert_array_equal(ids[1][:4], [CLS, WORDS.index("dog"), WORDS.index("##s"), SEP])
    assert (tokenizer.vocab_size, tokenizer.pad_id) == (len(WORDS), PAD)


def test_a_cut_caption_still_ends_with_the_closing_token(tokenizer):
    ids, mask = tokenizer.encode(["cat " * 50])
    assert mask.all()
    assert ids[0, -1] == SEP


def test_lengths_count_the_tokens_before_the_cut(tokenizer):
    np.testing.assert_array_equal(tokenizer.lengths(["", "cat", "cat " * 50]), [2, 3, 52])


def test_lengths_are_those_of_whole_captions(tokenizer):
    long = "photographs " * 700  # 8,400 characters
    np.testing.assert_array_equal(tokenizer.lengths(["cat " * 2000, long]), [2002, 702])


def test_a_long_caption_is_cut_by_tokens_alone(folder):
    """Words of many characters, many spaces, and words that a cut would change."""
    texts = [
        "photo" + " " * 700 + "cat dogs " * 9,
        "x" * 5000 + " a cat",
        "dogs " * 2000,
        "cat" * 900,
    ]
    texts += [" ".join(["photographically", "dogs"] * 300), "\u3000".join(["red"] * 900)]
    for most in (8, 64, 512):
        tokenizer = captions.Tokenizer(folder, most)
        ids, mask = tokenizer.encode(texts)
        for text, row, filled in zip(texts, ids, mask, strict=True):
            (whole,) = tokenizer._uncut([text])
            expected = whole.ids if len(whole.ids) <= most else [*whole.ids[: most - 1], SEP]
            assert row[filled].tolist() == expected


@pytest.mark.parametrize(
    "text",
    ["", " ", "\u200b", "\u200d\ufeff\u2060", "\ufe0f", "\u3000\xa0", "\u2028", "\x00\x7f\x85",
     "\u00ad", "\u3164\u115f", "\u2800", "\u202e\u2066", "\U000e0061", "\U000e0100", "\u034f"],
    ids=ascii,
)  # fmt: skip
def test_what_shows_nothing_is_not_visible(text):
    assert not captions.visible(text)
    assert captions.visible(text + "a" + text)


@pytest.mark.parametrize("text", [".", "猫", "❤️", "👩‍🚀", "\u0301", "\ufffd", "\ue000", "ـ"])
def test_what_a_reader_sees_is_visible(text):
    assert captions.visible(text)


def test_tokens_that_are_neither_special_nor_unknown_are_counted(tokenizer):
    texts = ["", "猫", "xyz xyz", "[UNK] [SEP]", "cat", "a xyz cat"]
    np.testing.assert_array_equal(tokenizer.known(texts), [0, 0, 0, 0, 1, 2])


@pytest.mark.parametrize("text", ["", "   ", "\n\t", "\x00\x1b"])
def test_an_empty_caption_is_the_special_tokens(tokenizer, text):
    ids, mask = tokenizer.encode([text])
    np.testing.assert_array_equal(ids[0], [CLS, SEP] + [PAD] * 6)
    assert mask.sum() == 2


@pytest.mark.parametrize("text", ["x" * 100_000, "🐈‍⬛ 🏳️‍🌈", "\ud83d", "a\u202eb", "猫"])
def test_any_text_becomes_a_row(tokenizer, text):
    ids, mask = tokenizer.encode([text])
    assert ids.shape == mask.shape == (1, 8)
    assert mask.sum() >= 2


def test_na_and_null_are_words(tokenizer):
    ids, _ = tokenizer.encode(["NA", "null"])
    assert [row[1] for row in ids.tolist()] == [WORDS.index("na"), WORDS.index("null")]


def test_control_characters_separate_words_and_half_surrogates_are_replaced():
    assert captions.clean("a\x00b\r\n") == "a b"
    assert captions.clean("a \ud83d b") == "a \ufffd b"
    assert captions.clean("👩‍🚀") == "👩‍🚀"


def test_no_captions_are_no_rows(tokenizer):
    ids, mask = tokenizer.encode([])
    assert ids.shape == mask.shape == (0, 8)


def test_a_pickled_tokenizer_encodes_the_same_and_needs_no_transformers(tokenizer, tmp_path):
    (tmp_path / "tokenizer").write_bytes(pickle.dumps(tokenizer))
    program = (
        "import pickle, sys; t = pickle.load(open(sys.argv[1], 'rb'));"
        "print(t.encode(['a red cat'])[0].tolist(), 'transformers' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "tokenizer")],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    assert done.stdout.strip() == f"{tokenizer.encode(['a red cat'])[0].tolist()} False"


LETTERS = "aenort."
CLIP_VOCAB = [*LETTERS, *(f"{c}</w>" for c in LETTERS), "ot", "ott", "er</w>", "otter</w>"]
CLIP_VOCAB += ["<|startoftext|>", "<|endoftext|>"]
CLIP_MERGES = ["o t", "ot t", "e r</w>", "ott er</w>"]


def clip_files(folder, names):
    """Those of CLIP's files that are asked for; the two model types are in config.json."""
    vocab = {token: i for i, token in enumerate(CLIP_VOCAB)}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *CLIP_MERGES]))
    if "tokenizer.json" in names:
        captions.Tokenizer(folder, 8)._backend.save(str(folder / "tokenizer.json"))
        for name in ("vocab.json", "merges.txt"):
            (folder / name).unlink()
    for name in names:
        if name.startswith("clip"):
            (folder / "config.json").write_text(json.dumps({"model_type": name}))


@pytest.mark.parametrize("names", [(), ("clip",), ("clip_text_model",)], ids=str)
@pytest.mark.parametrize("form", [(), ("tokenizer.json",)], ids=str)
def test_clips_tokenizer_is_found_by_its_vocabulary(form, names, tmp_path):
    clip_files(tmp_path, (*form, *names))
    tokenizer = captions.Tokenizer(tmp_path, max_tokens=6)
    ids, mask = tokenizer.encode(["An Otter.", "otter " * 9, ""])
    start, end = len(CLIP_VOCAB) - 2, len(CLIP_VOCAB) - 1
    a, n, otter, dot = (CLIP_VOCAB.index(token) for token in ("a", "n</w>", "otter</w>", ".</w>"))
    np.testing.assert_array_equal(ids[0], [start, a, n, otter, dot, end])
    np.testing.assert_array_equal(ids[1], [start, otter, otter, otter, otter, end])
    np.testing.assert_array_equal(ids[2], [start] + [end] * 5)
    np.testing.assert_array_equal(mask.sum(1), [6, 6, 2])
    np.testing.assert_array_equal(tokenizer.lengths(["otter " * 9]), [11])


def test_a_folder_without_tokenizer_says_what_is_needed(tmp_path):
    with pytest.raises(UserError, match="no tokenizer folder"):
        captions.Tokenizer(tmp_path / "nowhere", max_tokens=8)
    # With a config alone, transformers would make one that knows no word.
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match=r"no tokenizer in .*vocab\.txt"):
        captions.Tokenizer(tmp_path, max_tokens=8)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        captions.Tokenizer(tmp_path, max_tokens=8)


def test_max_tokens_must_leave_room_for_text(folder):
    with pytest.raises(UserError, match="at least 3"):
        captions.Tokenizer(folder, max_tokens=2)
