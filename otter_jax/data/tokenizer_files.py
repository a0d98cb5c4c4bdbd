"""Reads the tokenizer of a Hugging Face folder.

BERT tokenizers are made here, in a tenth of a second. All others are made by transformers, which
takes seconds to import; so is a BERT tokenizer whose files have settings unknown here. A tokenizer
made here equals the one that transformers would make (tests/data/test_tokenizer_files.py).
"""

import contextlib
import json
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from otter_jax.errors import UserError
from otter_jax.files import open_regular, read_bytes, read_json, read_text

VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json")
REMEDY = "Give a folder with tokenizer.json, or with the files it is made of (vocab.txt, ...)."

BERT_CLASSES = (None, "BertTokenizer", "BertTokenizerFast")
# In the order in which those that the vocabulary lacks are added to it.
BERT_TOKENS = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
BERT_OPTIONS = {"do_lower_case": True, "tokenize_chinese_chars": True, "strip_accents": None}
# Entries of tokenizer_config.json that change no token of a caption here.
NO_EFFECT = {
    "added_tokens_decoder", "backend", "clean_up_tokenization_spaces", "do_basic_tokenize",
    "is_local", "local_files_only", "max_length", "model_max_length", "name_or_path",
    "pad_to_multiple_of", "pad_token_type_id", "padding_side", "special_tokens_map_file", "stride",
    "tokenizer_class", "truncation_side", "truncation_strategy",
}  # fmt: skip
CAPITALS = re.compile(r"(##)?(?=[A-Za-z]{2})[A-Za-z]*[A-Z][A-Za-z]*")  # at least two letters
MOST_WORDS = 100_000  # transformers checks larger vocabularies for a mistake of some models


def read_tokenizer(folder: pathlib.Path) -> tuple[tokenizers.Tokenizer, str]:
    """Returns the tokenizer of a folder, and the token that fills its rows.

    It lower-cases texts first if a sentence_*_config.json says so, as sentence-transformers does.
    Raises UserError if there is none, if it cannot be read, or if it has no words.
    """
    if not folder.is_dir():
        raise UserError(f"There is no tokenizer folder {folder}. {REMEDY}")
    # From a folder without a vocabulary transformers makes an empty tokenizer, without a warning.
    if not any((folder / name).is_file() for name in VOCABULARIES):
        missing = ", ".join(VOCABULARIES)
        raise UserError(f"There is no tokenizer in {folder}: no {missing}. {REMEDY}")
    for path in filter(is_read, folder.iterdir()):
        try:
            with open_regular(path) as file:  # before a library does, which would wait for a pipe
                file.read(1)
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}. {REMEDY}") from error
    for name in (*VOCABULARIES, "merges.txt", "tokenizer_config.json"):
        if is_pointer(folder / name):
            raise UserError(
                f"{folder / name} is a Git LFS pointer, not the file itself; run `git lfs pull`."
            )
    try:
        found = bert_tokenizer(folder)
    except Exception:  # whatever is wrong with the files, transformers explains it better
        found = None
    made, pad = found or transformers_tokenizer(folder)
    # Without the files of its class transformers makes a tokenizer of special tokens alone.
    if not words_of(made):
        there = ", ".join(name for name in VOCABULARIES if (folder / name).is_file())
        raise UserError(
            f"The tokenizer in {folder} has no words, only {made.get_vocab_size()} special tokens: "
            f"config.json and {there} there do not belong to one model. {REMEDY}"
        )
    if first_lower_cased(folder):
        steps = [normalizers.Lowercase(), made.normalizer]
        made.normalizer = normalizers.Sequence([step for step in steps if step])
    return made, pad


def is_read(path: pathlib.Path) -> bool:
    """Tells whether a library may open a file of a tokenizer's folder, by its name."""
    return path.suffix in (".json", ".txt", ".model", ".jinja") and not path.is_dir()


def is_pointer(file: pathlib.Path) -> bool:
    """Tells whether Git LFS has left a pointer in the place of a file."""
    if not file.is_file():
        return False
    with open_regular(file) as content:
        return content.read(40).startswith(b"version https://git-lfs")


def model_type_of(config: dict[str, Any]) -> str | None:
    """Returns the model_type of a config.json, or what its architectures say; None if neither."""
    first = next(iter(config.get("architectures") or ()), "")
    kinds = {"BertModel": "bert", "BertFor": "bert", "RobertaModel": "roberta"}
    kinds |= {"RobertaFor": "roberta"}
    named = (kind for beginning, kind in kinds.items() if first.startswith(beginning))
    return config.get("model_type") or next(named, None)


def first_lower_cased(folder: pathlib.Path) -> bool:
    """Tells whether sentence-transformers lower-cases texts before the tokenizer of a folder."""
    for file in sorted(folder.glob("sentence_*_config.json")):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            return bool(read_json(file).get("do_lower_case"))
    return False


def words_of(tokenizer: tokenizers.Tokenizer) -> dict[str, int]:
    """Returns the vocabulary without special tokens and the token for what is unknown."""
    special = special_of(tokenizer)
    return {word: i for word, i in tokenizer.get_vocab().items() if i not in special}


def special_of(tokenizer: tokenizers.Tokenizer) -> set[int]:
    """Returns the ids of special tokens, and of the token for what is unknown."""
    added = tokenizer.get_added_tokens_decoder().items()
    unknown = tokenizer.token_to_id(getattr(tokenizer.model, "unk_token", None) or "")
    if isinstance(tokenizer.model, models.Unigram):
        unknown = json.loads(tokenizer.to_str())["model"]["unk_id"]
    return {i for i, token in added if token.special} | ({unknown} - {None})


def doubts(folder: pathlib.Path, tokenizer: tokenizers.Tokenizer) -> list[str]:
    """Returns sentences on what may be wrong with the tokenizer of a folder.

    That is lower-casing with a cased vocabulary, which transformers assumes if nothing says it is
    not so.
    """
    if not tokenizer.normalizer or "a" not in tokenizer.normalizer.normalize_str("A"):
        return []
    words = words_of(tokenizer)
    lost = sorted((word for word in words if CAPITALS.fullmatch(word)), key=words.__getitem__)
    if not lost:
        return []
    settings, why = folder / "tokenizer_config.json", "as its files say"
    if not settings.is_file() or "do_lower_case" not in read_text(settings):
        why = "which is assumed, since no tokenizer_config.json says do_lower_case"
    return [
        f"The vocabulary in {folder} has {len(lost):,} words with capitals, such as "
        f"{', '.join(map(repr, lost[:3]))}, that no caption can become: captions are lower-cased, "
        f'{why}. For a cased model put tokenizer_config.json with {{"do_lower_case": false}} there.'
    ]


def bert_tokenizer(folder: pathlib.Path) -> tuple[tokenizers.Tokenizer, str] | None:
    """Makes a BERT tokenizer from a vocabulary; None if transformers might build a different one.

    Damaged files may raise any error.
    """
    names = {path.name for path in folder.iterdir()}
    if names & {"added_tokens.json", "vocab.json"}:
        return None

    def read(name: str) -> dict[str, Any]:
        return read_json(folder / name) if name in names else {}

    config, settings = read("config.json"), read("tokenizer_config.json")
    words_alone = "vocab.txt" in names and not any(name.endswith(".json") for name in names)
    if not words_alone and model_type_of(config) != "bert":
        return None
    if any(about.get("tokenizer_class") not in BERT_CLASSES for about in (config, settings)):
        return None
    known = {*NO_EFFECT, *BERT_OPTIONS, *BERT_TOKENS}
    if any(value for name, value in settings.items() if name not in known):
        return None
    tokens = {name: settings.get(name, token) for name, token in BERT_TOKENS.items()}
    # Two files may give these tokens; they must agree, since versions differ in which one counts.
    if not read("special_tokens_map.json").items() <= tokens.items():
        return None
    whole = read("tokenizer.json")
    words = whole["model"]["vocab"] if whole else str(folder / "vocab.txt")
    options = {name: settings.get(name, option) for name, option in BERT_OPTIONS.items()}
    made = make_bert(words, tokens, **options)
    if made.get_vocab_size() > MOST_WORDS:
        return None
    if whole and not is_same(json.loads(made.to_str()), whole):
        return None
    special = {str(number): repr(t) for number, t in made.get_added_tokens_decoder().items()}
    for number, token in settings.get("added_tokens_decoder", {}).items():
        if repr(tokenizers.AddedToken(**token)) != special.get(number):
            return None
    return made, tokens["pad_token"]


def make_bert(
    words: dict[str, int] | str,
    tokens: dict[str, str],
    *,
    do_lower_case: bool,
    tokenize_chinese_chars: bool,
    strip_accents: bool | None,
) -> tokenizers.Tokenizer:
    """Makes a BERT tokenizer with this vocabulary, or a file's; `tokens` are the special ones."""
    unknown = tokens["unk_token"]
    model = (
        models.WordPiece.from_file(words, unk_token=unknown)
        if isinstance(words, str)
        else models.WordPiece(words, unk_token=unknown)
    )
    made = tokenizers.Tokenizer(model)
    made.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=tokenize_chinese_chars,
        strip_accents=strip_accents,
        lowercase=do_lower_case,
    )
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece(prefix="##")
    made.add_special_tokens(list(tokens.values()))
    first, last = tokens["cls_token"], tokens["sep_token"]
    made.post_processor = processors.TemplateProcessing(
        single=f"{first}:0 $A:0 {last}:0",
        pair=f"{first}:0 $A:0 {last}:0 $B:1 {last}:1",
        special_tokens=[(token, made.token_to_id(token)) for token in (first, last)],
    )
    return made


def is_same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Tells whether two parsed tokenizer.json are equal, except for padding and truncation."""
    parts = ("added_tokens", "normalizer", "pre_tokenizer", "post_processor", "model")
    return all(one[part] == other[part] for part in parts)


def transformers_tokenizer(folder: pathlib.Path) -> tuple[tokenizers.Tokenizer, str]:
    """Reads any tokenizer that has a fast form, by transformers. Raises UserError if it cannot."""
    with _quiet():
        import transformers  # takes seconds, and workers never need it

        kind = getattr(transformers, class_of(folder))
        try:
            loaded = kind.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # every class of tokenizers raises other types
            reason = str(error).strip().split("\n")[0]
            raise UserError(
                f"The tokenizer in {folder} cannot be read: {reason}. {REMEDY}"
            ) from error
    if not loaded.is_fast:
        raise UserError(f"The tokenizer in {folder} has no fast form (tokenizer.json). {REMEDY}")
    # The mask hides the padding, so any token will do.
    pad = (
        loaded.pad_token or loaded.eos_token or loaded.unk_token or loaded.convert_ids_to_tokens(0)
    )
    return loaded.backend_tokenizer, pad


def class_of(folder: pathlib.Path) -> str:
    """Returns the name of the class in transformers that reads a folder."""
    if (folder / "tokenizer_config.json").exists():
        return "AutoTokenizer"
    # A vocabulary alone does not name its class, and AutoTokenizer does not look into it.
    if (folder / "vocab.txt").exists() and not any(folder.glob("*.json")):
        return "BertTokenizerFast"
    for name in ("tokenizer.json", "vocab.json"):
        file = folder / name
        if file.exists() and b'"<|startoftext|>"' in read_bytes(file):
            return "CLIPTokenizerFast"
    with contextlib.suppress(OSError, ValueError, AttributeError, TypeError):
        config = read_json(folder / "config.json")
        if "model_type" not in config and model_type_of(config) == "roberta":
            return "RobertaTokenizerFast"  # AutoTokenizer asks the config alone
    return "AutoTokenizer"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences transformers' notice that there is no PyTorch: here that is on purpose."""
    name = "TRANSFORMERS_VERBOSITY"
    before = os.environ.get(name)
    os.environ[name] = before or "error"
    try:
        yield
    finally:
        os.environ.pop(name) if before is None else os.environ.update({name: before})
