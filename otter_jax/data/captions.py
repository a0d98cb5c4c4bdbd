"""Captions to token numbers."""

import contextlib
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tokenizers
from jaxtyping import Bool, Int32

from otter_jax.errors import UserError

MAX_CHARS = 2_000  # of a caption that is tokenised; 60 tokens are some 300 characters
VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")
_SURROGATE = re.compile("[\ud800-\udfff]")  # half a UTF-16 pair: no UTF-8, so no tokeniser takes it


def clean(text: str) -> str:
    """The text on one line: control characters are spaces, lone surrogates U+FFFD."""
    return _SURROGATE.sub("\ufffd", _CONTROL.sub(" ", text)).strip()


class Tokenizer:
    """Captions as rows of exactly `max_tokens` token numbers, special tokens included.

    It can be pickled and used from several threads; transformers is imported while it is made,
    not by the workers it is sent to.

    Attributes:
      max_tokens: L, the length of every row.
      pad_id: what fills a row; the mask is False there.
      vocab_size: one more than the largest token number.
    """

    def __init__(self, folder: str | os.PathLike, max_tokens: int):
        """From a local folder as Hugging Face writes it; vocab.txt alone makes a BERT tokeniser.

        Raises:
          UserError: no such folder, no tokeniser in it, or no room for the special tokens.
        """
        backend, pad_id, pad_token = _load(pathlib.Path(folder).expanduser())
        special = backend.num_special_tokens_to_add(is_pair=False)
        if max_tokens <= special:
            raise UserError(
                f"max_tokens={max_tokens} leaves no room for text: the tokenizer of {folder} adds "
                f"{special} special tokens to each caption. Give at least {special + 1}."
            )
        backend.enable_truncation(max_tokens)
        backend.enable_padding(length=max_tokens, pad_id=pad_id, pad_token=pad_token)
        self.max_tokens = max_tokens
        self.pad_id = pad_id
        self.vocab_size = 1 + max(backend.get_vocab().values(), default=-1)
        self._backend = backend

    feature = "caption"  # what `row` reads

    def row(self, record: dict[str, Any]) -> dict[str, np.ndarray]:
        """token_ids int32 [L] and mask bool [L] of the record's caption."""
        ids, mask = self.encode([record[self.feature]])
        return {"token_ids": ids[0], "mask": mask[0]}

    def collate(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The batch as it is."""
        return batch

    def shapes(self, batch_size: int) -> dict[str, tuple[tuple[int, ...], Any]]:
        """Shape and dtype of what a global batch has."""
        rows = (batch_size, self.max_tokens)
        return {"token_ids": (rows, np.int32), "mask": (rows, np.bool_)}

    def encode(
        self, captions: Sequence[str]
    ) -> tuple[Int32[np.ndarray, "B L"], Bool[np.ndarray, "B L"]]:
        """Token numbers, and where they are text rather than padding.

        A caption is cleaned, cut at 2,000 characters, then at `max_tokens` (the closing special
        token stays). An empty one is the special tokens alone.
        """
        rows = self._rows(self._backend, captions)
        shape = (len(rows), self.max_tokens)
        ids = np.array([row.ids for row in rows], np.int32).reshape(shape)
        return ids, np.array([row.attention_mask for row in rows], bool).reshape(shape)

    def lengths(self, captions: Sequence[str]) -> Int32[np.ndarray, " B"]:
        """Tokens of each caption before the cut; those over `max_tokens` are cut by `encode`."""
        uncut = tokenizers.Tokenizer.from_str(self._backend.to_str())
        uncut.no_truncation()
        uncut.no_padding()
        return np.array([len(row.ids) for row in self._rows(uncut, captions)], np.int32)

    @staticmethod
    def _rows(backend: tokenizers.Tokenizer, captions: Sequence[str]) -> list[tokenizers.Encoding]:
        # The cut comes first: cleaning a megabyte to keep 2,000 characters is a waste.
        return backend.encode_batch([clean(text[:MAX_CHARS]) for text in captions])


def _load(folder: pathlib.Path) -> tuple[tokenizers.Tokenizer, int, str]:
    """The fast tokeniser of a folder, and its padding token."""
    remedy = "Give a folder with tokenizer.json, or with the files it is made of (vocab.txt, ...)."
    if not folder.is_dir():
        raise UserError(f"There is no tokenizer folder {folder}. {remedy}")
    # transformers makes a tokenizer without words of a folder without them, and says nothing.
    if not any((folder / name).is_file() for name in VOCABULARIES):
        missing = ", ".join(VOCABULARIES)
        raise UserError(f"There is no tokenizer in {folder}: no {missing}. {remedy}")
    with _quiet():
        import transformers  # seconds; and the workers never need it

        kind = getattr(transformers, _class(folder))
        try:
            loaded = kind.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # whatever is wrong with the files, each class says differently
            reason = str(error).strip().split("\n")[0]
            raise UserError(
                f"The tokenizer in {folder} cannot be read: {reason}. {remedy}"
            ) from error
    if not getattr(loaded, "is_fast", False):
        raise UserError(f"The tokenizer in {folder} has no fast form (tokenizer.json). {remedy}")
    # Under the mask it is all one.
    pad = (
        loaded.pad_token or loaded.eos_token or loaded.unk_token or loaded.convert_ids_to_tokens(0)
    )
    return loaded.backend_tokenizer, int(loaded.convert_tokens_to_ids(pad)), pad


def _class(folder: pathlib.Path) -> str:
    """The name of the class in transformers that reads a folder."""
    if (folder / "tokenizer_config.json").exists():
        return "AutoTokenizer"
    # Vocabularies by themselves do not say whose they are, and Auto does not ask what is in them.
    if (folder / "vocab.txt").exists() and not any(folder.glob("*.json")):
        return "BertTokenizerFast"
    for name in ("tokenizer.json", "vocab.json"):
        file = folder / name
        if file.exists() and b'"<|startoftext|>"' in file.read_bytes():
            return "CLIPTokenizerFast"
    return "AutoTokenizer"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' notice that there is no PyTorch: here that is on purpose."""
    name = "TRANSFORMERS_VERBOSITY"
    before = os.environ.get(name)
    os.environ[name] = before or "error"
    try:
        yield
    finally:
        os.environ.pop(name) if before is None else os.environ.update({name: before})
