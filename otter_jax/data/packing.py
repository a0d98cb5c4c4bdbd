"""Captions cost what they are long: many of them in one row of tokens, none reading another.

Padded to 60 tokens, captions of 14 cost a text encoder four times what they are worth. Packed, the
captions of a group (those of one device) lie behind each other in rows of a fixed number of
tokens, and attention stays within each. Shapes stay the same from step to step: a group has as many
rows as it will not outgrow. The embeddings are those of padded captions (tests/test_packing.py).
"""

import dataclasses
import math
from typing import Any

import numpy as np
from jaxtyping import Int, Int32

from otter_jax.data.captions import Tokenizer

ROW = 64  # tokens of a row, or twice or four times that: what leaves least free
DEVIATIONS = 5  # of the room that groups need from its mean: more come once in some 10^6 groups
GROUPS = 64  # drawn from the sample to see how many rows one needs


@dataclasses.dataclass(frozen=True)
class Packed:
    """Rows as a tokenizer has them, and batches in which captions share rows.

    Attributes:
      tokenizer: what makes rows of captions.
      per_group: captions of a group, b.
      rows: R, of a group.
      length: T, tokens of a row.
    """

    tokenizer: Tokenizer
    per_group: int
    rows: int
    length: int

    feature = Tokenizer.feature

    @classmethod
    def of(
        cls,
        tokenizer: Tokenizer,
        lengths: Int32[np.ndarray, " N"],
        *,
        per_group: int,
        longest: int,
    ) -> "Packed":
        """With as many rows as a group of captions needs, when `lengths` are of a sample of them.

        `longest` is what the encoder can read, in tokens.
        """
        lengths = np.minimum(lengths, tokenizer.max_tokens)
        draws = np.random.default_rng(0).choice(lengths, (GROUPS, per_group))
        least = ROW * math.ceil(tokenizer.max_tokens / ROW)
        found = []
        for length in sorted({min(longest, times * least) for times in (1, 2, 4)}):
            used = [_used(of_group, length) for of_group in draws]
            # In tokens, but for what the emptiest row leaves free: rows alone are too coarse.
            tokens = [length * len(rows) - (length - rows.min(initial=length)) for rows in used]
            most = max(np.mean(tokens) + DEVIATIONS * np.std(tokens), max(tokens))
            rows = min(per_group, math.ceil(most / length))  # a row a caption always does
            found.append(cls(tokenizer, per_group, rows, length))
        return min(found, key=lambda packed: packed.rows * packed.length)

    def __str__(self) -> str:
        tokens, padded = self.rows * self.length, self.per_group * self.tokenizer.max_tokens
        return (
            f"{self.per_group} captions of a device in {self.rows} rows of {self.length} tokens: "
            f"{tokens:,} tokens instead of {padded:,}"
        )

    def row(self, record: dict[str, Any]) -> dict[str, np.ndarray]:
        """The tokenizer's."""
        return self.tokenizer.row(record)

    def collate(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The batch with its captions packed: token_ids, mask and place as `shapes` has them.

        `mask` is n at the tokens of a row's n-th caption, 0 where there is none; `place` says where
        each caption of the group is: row * (T + 1) + n - 1. A caption without tokens is at T, where
        none ever is. `cut`, bool [B], are captions of a group that did not fit and were cut to the
        length at which it does; their last token stays.
        """
        ids, mask = batch["token_ids"], batch["mask"]
        groups = len(ids) // self.per_group
        token_ids = np.full((groups, self.rows, self.length), self.tokenizer.pad_id, np.int32)
        owner = np.zeros_like(token_ids)
        place = np.full((groups, self.per_group), self.length, np.int32)
        lengths = mask.sum(axis=1).reshape(groups, self.per_group)
        kept = np.stack([self._fit(of_group) for of_group in lengths])
        for group, of_group in enumerate(kept):
            free, used = self._empty(), np.zeros(self.rows, int)
            for number in np.argsort(-of_group, kind="stable"):
                size = of_group[number]
                if not size:
                    continue
                row = int(np.argmax(free >= size))
                start = self.length - free[row]
                caption = ids[group * self.per_group + number]
                token_ids[group, row, start : start + size] = caption[:size]
                token_ids[group, row, start + size - 1] = caption[lengths[group, number] - 1]
                used[row] += 1
                owner[group, row, start : start + size] = used[row]
                place[group, number] = row * (self.length + 1) + used[row] - 1
                free[row] -= size
        cut = (kept < lengths).reshape(-1)
        return batch | {"token_ids": token_ids, "mask": owner, "place": place, "cut": cut}

    def shapes(self, batch_size: int) -> dict[str, tuple[tuple[int, ...], Any]]:
        """Shape and dtype of what a global batch has: [G, R, T] and [G, b], G groups in all."""
        groups = batch_size // self.per_group
        rows = (groups, self.rows, self.length)
        return {
            "token_ids": (rows, np.int32),
            "mask": (rows, np.int32),
            "place": ((groups, self.per_group), np.int32),
        }

    def _empty(self) -> Int32[np.ndarray, " R"]:
        return np.full(self.rows, self.length, np.int32)

    def _fit(self, lengths: Int[np.ndarray, " b"]) -> Int[np.ndarray, " b"]:
        """The lengths, the longest of them cut to the most that lets all lie in the rows."""
        limit = int(lengths.max(initial=0))
        while not self._fits(np.minimum(lengths, limit)):
            limit -= 1
        return np.minimum(lengths, limit)

    def _fits(self, lengths: Int[np.ndarray, " b"]) -> bool:
        """Whether all lie in the rows."""
        return len(_used(lengths, self.length)) <= self.rows


def _used(lengths: Int[np.ndarray, " b"], length: int) -> Int[np.ndarray, "_"]:
    """Tokens in each row when every text goes, the longest first, where there first is room."""
    free = np.full(len(lengths), length)
    for size in -np.sort(-lengths):
        free[int(np.argmax(free >= size))] -= size
    return length - free[free < length]
