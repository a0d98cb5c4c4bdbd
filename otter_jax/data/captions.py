"""Turns captions into rows of token ids."""

import hashlib
import os
import pathlib
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
import tokenizers
from jaxtyping import Bool, Int32

from otter_jax.data import tokenizer_files
from otter_jax.errors import UserError

MAX_CHARS = 10_000  # of a caption, stored or tokenised
_PER_TOKEN = 8  # characters; in texts of all languages that were tried, tokens have fewer
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")
# Characters that show nothing, beside those that Unicode calls spaces, controls and formats:
# joiners, fillers of Hangul, variation selectors, an empty pattern of Braille.
_UNSEEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0"
    "\U000e0000-\U000e0fff]"
)
_UNSEEN_KINDS = {"Cc", "Cf", "Zs", "Zl", "Zp"}  # of unicodedata.category
_SURROGATE = re.compile("[\ud800-\udfff]")  # half a UTF-16 pair: no UTF-8, refused by tokenizers


def clean(text: str) -> str:
    """Puts a text on one line: control characters become spaces, lone surrogates U+FFFD."""
    return _SURROGATE.sub("\ufffd", _CONTROL.sub(" ", text)).strip()


def visible(text: str) -> bool:
    """Tells whether a text holds anything that a reader sees.

    Spaces, zero-width characters, byte order marks, variation selectors and the like are nothing.
    """
    return any(
        unicodedata.category(char) not in _UNSEEN_KINDS and not _UNSEEN.match(char) for char in text
    )


class Tokenizer:
    """Turns captions into rows of exactly `max_tokens` token ids; an annotation.

    The special tokens are included. A tokenizer can be pickled and used from several threads;
    transformers may be imported while it is made, but not by the workers that it is sent to.

    Attributes:
      feature: the feature of a record that `row` reads.
      max_tokens: L, the length of every row.
      pad_id: the token id that fills up a row; the mask is False there.
      vocab_size: one more than the largest token id.
      doubts: sentences on what may be wrong with its files, for the user to see.
    """

    feature = "caption"

    def __init__(self, folder: str | os.PathLike, max_tokens: int):
        """Reads the tokenizer of a Hugging Face folder; vocab.txt alone makes a BERT tokenizer.

        Raises:
          UserError: no such folder, no tokenizer in it, or no room for the special tokens.
        """
        folder = pathlib.Path(folder).expanduser()
        backend, pad_token = tokenizer_files.read_tokenizer(folder)
        pad_id = backend.token_to_id(pad_token)
        special = backend.num_special_tokens_to_add(is_pair=False)
        if max_tokens <= special:
            raise UserError(
                f"max_tokens={max_tokens} leaves no room for text: the tokenizer of {folder} adds "
                f"{special} special tokens to each caption. Give at least {special + 1}."
            )
        backend.enable_truncation(max_tokens)
        backend.enable_padding(length=max_tokens, pad_id=pad_id, pad_token=pad_token)
        try:
            backend.encode("\u25cf a \U0001f9a6")
        except Exception as error:  # a vocabulary without its token for what is unknown
            raise UserError(f"The tokenizer in {folder} cannot be used: {error}.") from error
        self.max_tokens = max_tokens
        self.pad_id = pad_id
        self.doubts = tokenizer_files.doubts(folder, backend)
        self.vocab_size = 1 + max(backend.get_vocab().values(), default=-1)
        self._backend = backend

    @property
    def digest(self) -> str:
        """A digest of all that token ids depend on."""
        return hashlib.sha256(self._backend.to_str().encode()).hexdigest()

    def row(self, record: dict[str, Any]) -> dict[str, np.ndarray]:
        """Returns token_ids int32 [L] and mask bool [L] of the record's caption."""
        ids, mask = self.encode([record[self.feature]])
        return {"token_ids": ids[0], "mask": mask[0]}

    def collate(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the batch as it is."""
        return batch

    def shapes(self, batch_size: int) -> dict[str, tuple[tuple[int, ...], Any]]:
        """Returns shape and dtype of the captions' entries in a global batch."""
        rows = (batch_size, self.max_tokens)
        return {"token_ids": (rows, np.int32), "mask": (rows, np.bool_)}

    def encode(
        self, captions: Sequence[str]
    ) -> tuple[Int32[np.ndarray, "B L"], Bool[np.ndarray, "B L"]]:
        """Returns token ids, and a mask: True at text, False at padding.

        A caption is cleaned, and cut at `max_tokens` (the closing special token stays), before that
        only at 10,000 characters. An empty one gives the special tokens alone.
        """
        texts = [clean(text[:MAX_CHARS]) for text in captions]
        heads = list(map(self._head, texts))
        rows = self._backend.encode_batch(heads)
        for number, (text, head) in enumerate(zip(texts, heads, strict=True)):
            if len(head) < len(text) and not all(rows[number].attention_mask):
                rows[number] = self._backend.encode(text)
        shape = (len(rows), self.max_tokens)
        ids = np.array([row.ids for row in rows], np.int32).reshape(shape)
        return ids, np.array([row.attention_mask for row in rows], bool).reshape(shape)

    def lengths(self, captions: Sequence[str]) -> Int32[np.ndarray, " B"]:
        """Counts the tokens of each caption before `encode` cuts it to `max_tokens`."""
        return np.array([len(row.ids) for row in self._uncut(captions)], np.int32)

    def known(self, captions: Sequence[str]) -> Int32[np.ndarray, " B"]:
        """Counts the tokens of each caption, uncut, that are neither special nor unknown."""
        special = tokenizer_files.special_of(self._backend)
        rows = self._uncut(captions)
        return np.array([sum(i not in special for i in row.ids) for row in rows], np.int32)

    def tokens(self, caption: str) -> list[str]:
        """Returns the tokens of a caption, uncut."""
        return self._uncut([caption])[0].tokens

    def _head(self, text: str) -> str:
        """Returns the words of a text that fill a row as a rule; others need not be tokenised.

        Tokens end where words end, so those of the head are the first of the whole text.
        """
        most = _PER_TOKEN * self.max_tokens
        return text[:most].rpartition(" ")[0] or text if len(text) > most else text

    def _uncut(self, captions: Sequence[str]) -> list[tokenizers.Encoding]:
        backend = tokenizers.Tokenizer.from_str(self._backend.to_str())
        backend.no_truncation()
        backend.no_padding()
        return backend.encode_batch([clean(text[:MAX_CHARS]) for text in captions])
