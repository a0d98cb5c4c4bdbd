"""Turns captions into rows of token ids."""

import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import tokenizers
from jaxtyping import Bool, Int32

from otter_jax.data.tokenizer_files import read_tokenizer
from otter_jax.errors import UserError

MAX_CHARS = 2_000  # of a caption that is tokenised; 60 tokens are some 300 characters
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")
_SURROGATE = re.compile("[\ud800-\udfff]")  # half a UTF-16 pair: no UTF-8, refused by tokenizers


def clean(text: str) -> str:
    """Puts a text on one line: control characters become spaces, lone surrogates U+FFFD."""
    return _SURROGATE.sub("\ufffd", _CONTROL.sub(" ", text)).strip()


class Tokenizer:
    """Turns captions into rows of exactly `max_tokens` token ids; an annotation.

    The special tokens are included. A tokenizer can be pickled and used from several threads;
    transformers may be imported while it is made, but not by the workers that it is sent to.

    Attributes:
      feature: the feature of a record that `row` reads.
      max_tokens: L, the length of every row.
      pad_id: the token id that fills up a row; the mask is False there.
      vocab_size: one more than the largest token id.
    """

    feature = "caption"

    def __init__(self, folder: str | os.PathLike, max_tokens: int):
        """Reads the tokenizer of a Hugging Face folder; vocab.txt alone makes a BERT tokenizer.

        Raises:
          UserError: no such folder, no tokenizer in it, or no room for the special tokens.
        """
        backend, pad_token = read_tokenizer(pathlib.Path(folder).expanduser())
        pad_id = backend.token_to_id(pad_token)
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

        A caption is cut at 2,000 characters, cleaned, then cut at `max_tokens` (the closing special
        token stays). An empty one gives the special tokens alone.
        """
        rows = self._rows(self._backend, captions)
        shape = (len(rows), self.max_tokens)
        ids = np.array([row.ids for row in rows], np.int32).reshape(shape)
        return ids, np.array([row.attention_mask for row in rows], bool).reshape(shape)

    def lengths(self, captions: Sequence[str]) -> Int32[np.ndarray, " B"]:
        """Counts the tokens of each caption before `encode` cuts it to `max_tokens`."""
        uncut = tokenizers.Tokenizer.from_str(self._backend.to_str())
        uncut.no_truncation()
        uncut.no_padding()
        return np.array([len(row.ids) for row in self._rows(uncut, captions)], np.int32)

    @staticmethod
    def _rows(backend: tokenizers.Tokenizer, captions: Sequence[str]) -> list[tokenizers.Encoding]:
        # Cut before cleaning: it would be a waste to clean a megabyte and keep 2,000 characters.
        return backend.encode_batch([clean(text[:MAX_CHARS]) for text in captions])
