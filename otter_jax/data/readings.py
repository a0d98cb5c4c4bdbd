"""Puts what a frozen text encoder makes of a caption in the place of its tokens."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32

from otter_jax.data.captions import Tokenizer


class Readings:
    """Annotates a row with the vector of its caption: pooled float32 [W]; an annotation.

    The vectors are computed elsewhere, once for a run (`keep`), and are W numbers wide. Before
    that all are 0, which is enough to measure how fast rows are read and steps are made.

    Attributes:
      feature: the feature of a record that `row` reads.
      width: W.
    """

    feature = Tokenizer.feature

    def __init__(self, width: int):
        self.width = width
        self._vectors = np.zeros((1, width), np.float32)
        self._numbers: dict[str, int] = {}

    def __str__(self) -> str:
        return "frozen: each caption is read once, before the first step"

    def keep(self, captions: Sequence[str], vectors: Float32[np.ndarray, "N W"]) -> None:
        """Takes the vectors of all captions that there are."""
        self._vectors = vectors
        self._numbers = {caption: number for number, caption in enumerate(captions)}

    def row(self, record: dict[str, Any]) -> dict[str, np.ndarray]:
        """Returns the vector of the record's caption."""
        number = self._numbers[record[self.feature]] if self._numbers else 0
        return {"pooled": self._vectors[number]}

    def collate(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the batch as it is."""
        return batch

    def shapes(self, batch_size: int) -> dict[str, tuple[tuple[int, ...], Any]]:
        """Returns shape and dtype of a global batch's vectors."""
        return {"pooled": ((batch_size, self.width), np.float32)}
