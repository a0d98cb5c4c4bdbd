"""Packs several captions into one row, so that each costs its own length.

Attention never crosses captions. Padded to 60 tokens, captions of 14 cost a text encoder four times
as much as they need. When packed, the captions of a group (those of one device) follow each other
in rows of a fixed number of tokens. The number of rows is fixed too, and large enough for nearly
every group, so that shapes stay the same from step to step. The embeddings are those of padded
captions (tests/data/test_packing.py).
"""

import dataclasses
import math
from typing import Any

import numpy as np
from jaxtyping import Int, Int32

from otter_jax.data.captions import Tokenizer

ROW = 64  # tokens of a row, or twice or four times as many, whichever wastes least
DEVIATIONS = 5  # room beyond a group's mean need; one group in some 10^6 needs more
GROUPS = 64  # drawn from the sample to estimate how many rows a group needs


@dataclasses.dataclass(frozen=True)
class Packed:
    """Collates a batch so that several captions share a row; an annotation.

    Attributes:
      tokenizer: turns each caption into a row, which is then packed.
      per_group: b, captions per group.
      rows: R, rows per group.
      length: T, tokens per row.
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
        """Chooses the number and length of a group's rows, from a sample's `lengths` in tokens.

        It takes the row length that costs the fewest tokens. `longest` is the encoder's limit, in
        tokens.
        """
        lengths = np.minimum(lengths, tokenizer.max_tokens)
        draws = np.random.default_rng(0).choice(lengths, (GROUPS, per_group))
        least = ROW * math.ceil(tokenizer.max_tokens / ROW)
        found = []
        for length in sorted({min(longest, times * least) for times in (1, 2, 4)}):
            used = [_lay(of_group, length)[1] for of_group in draws]
            # Counted in tokens, less the room left in the emptiest row: rows are too coarse a unit.
            tokens = [length * len(rows) - (length - rows.min(initial=length)) for rows in used]
            most = max(np.mean(tokens) + DEVIATIONS * np.std(tokens), max(tokens))
            rows = min(per_group, math.ceil(most / length))  # a row per caption is always enough
            found.append(cls(tokenizer, per_group, rows, length))
        return min(found, key=lambda packed: packed.rows * packed.length)

    def __str__(self) -> str:
        tokens, padded = self.rows * self.length, self.per_group * self.tokenizer.max_tokens
        return (
            f"{self.per_group} captions of a device in {self.rows} rows of {self.length} tokens: "
            f"{tokens:,} tokens instead of {padded:,}"
        )

    def row(self, record: dict[str, Any]) -> dict[str, np.ndarray]:
        """Returns the tokenizer's row: token_ids int32 [L] and mask bool [L]."""
        return self.tokenizer.row(record)

    def collate(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the batch with its captions packed: token_ids, segment_ids, positions and cut.

        `segment_ids` are n at the tokens of a row's n-th caption, 0 where there is none.
        `positions` say where in its group each caption lies: row * (T + 1) + n - 1; a caption
        without tokens is at T, where no caption ever lies. `cut`, bool [B], marks captions that
        were cut because their group did not fit its rows; they keep their last token.
        """
        batch = dict(batch)
        ids, mask = batch.pop("token_ids"), batch.pop("mask")
        groups = len(ids) // self.per_group
        token_ids = np.full((groups, self.rows, self.length), self.tokenizer.pad_id, np.int32)
        segment_ids = np.zeros_like(token_ids)
        positions = np.full((groups, self.per_group), self.length, np.int32)
        lengths = mask.sum(axis=1).reshape(groups, self.per_group)
        kept = np.empty_like(lengths)
        # Each group by itself: a device can only pack the captions that it holds.
        for group, of_group in enumerate(lengths):
            kept[group], laid = self._fit(of_group)
            for number in np.flatnonzero(kept[group]):
                size, (row, start, nth) = kept[group, number], laid[:, number]
                caption = ids[group * self.per_group + number]
                token_ids[group, row, start : start + size] = caption[:size]
                # A caption that was cut still ends with its closing token.
                token_ids[group, row, start + size - 1] = caption[of_group[number] - 1]
                segment_ids[group, row, start : start + size] = nth
                positions[group, number] = row * (self.length + 1) + nth - 1
        # Cut captions are marked, so that the run can count and report them.
        cut = (kept < lengths).reshape(-1)
        packed = {"token_ids": token_ids, "segment_ids": segment_ids, "positions": positions}
        return batch | packed | {"cut": cut}

    def shapes(self, batch_size: int) -> dict[str, tuple[tuple[int, ...], Any]]:
        """Returns shape and dtype of a global batch's entries: [G, R, T] and [G, b], G groups."""
        groups = batch_size // self.per_group
        rows = (groups, self.rows, self.length)
        return {
            "token_ids": (rows, np.int32),
            "segment_ids": (rows, np.int32),
            "positions": ((groups, self.per_group), np.int32),
        }

    def _fit(
        self, lengths: Int[np.ndarray, " b"]
    ) -> tuple[Int[np.ndarray, " b"], Int[np.ndarray, "3 b"]]:
        """Cuts the longest captions until all fit; returns the lengths, and where each lies."""
        limit = int(lengths.max(initial=0))
        while True:
            kept = np.minimum(lengths, limit)
            laid, used = _lay(kept, self.length)
            if len(used) <= self.rows:
                return kept, laid
            limit -= 1


def _lay(
    lengths: Int[np.ndarray, " b"], length: int
) -> tuple[Int[np.ndarray, "3 b"], Int[np.ndarray, "_"]]:
    """Assigns each text, longest first, to the first row with room for it.

    A row has `length` tokens. Returns for each text its row, its first token there and its number
    there (from 1), and for each row in use how many tokens it has.
    """
    laid = np.zeros((3, len(lengths)), int)
    used, texts = np.zeros((2, len(lengths)), int)
    for number in np.argsort(-lengths, kind="stable"):
        size = lengths[number]
        if not size:
            break
        row = int(np.argmax(used <= length - size))
        texts[row] += 1
        laid[:, number] = row, used[row], texts[row]
        used[row] += size
    return laid, used[used > 0]
