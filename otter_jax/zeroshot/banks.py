"""Embeds the names of sets' classes once, for all weights whose text towers are the same."""

import hashlib
from collections.abc import Callable, Sequence

import jax
import numpy as np
import rich.console
import rich.progress
from jaxtyping import Float, PyTree

from otter_jax.models.towers import of_texts
from otter_jax.run.embedder import Embedder
from otter_jax.zeroshot.bank import class_bank
from otter_jax.zeroshot.sets import EvalSet
from otter_jax.zeroshot.standing import check_finite

AT_ONCE = 16_384  # prompts whose embeddings are held
MANY = 20_000  # prompts that a line is printed for

Key = tuple[Sequence[str], Sequence[str], str]  # names, templates, digest of the text tower


class Banks:
    """Makes the banks of sets, and keeps them until names, templates or text tower change."""

    def __init__(self, embedder: Embedder, console: rich.console.Console, *, batch_size: int):
        """`batch_size` is the embedder's."""
        self._embedder, self._console = embedder, console
        self._at_once = batch_size * max(1, AT_ONCE // batch_size)
        self._known: dict[Key, Float[np.ndarray, "C D"]] = {}
        self._used: set[Key] = set()

    def of(
        self,
        sets: Sequence[EvalSet],
        variables: PyTree,
        bar: rich.progress.Progress,
        check_stop: Callable[[], None],
    ) -> list[Float[np.ndarray, "C D"]]:
        """Returns the bank of each set under some weights; `bar` shows how far the prompts are.

        Raises UserError if an embedding is not finite.
        """
        digest = digest_of(of_texts(variables))
        keys = [(tuple(s.names), s.templates, digest) for s in sets]
        self._used.update(keys)
        for s, key in zip(sets, keys, strict=True):
            if key not in self._known:
                self._known[key] = self._made(s, variables, bar, check_stop)
        return [self._known[key] for key in keys]

    def forget_unused(self) -> None:
        """Forgets the banks that were not asked for since the last call."""
        self._known = {key: bank for key, bank in self._known.items() if key in self._used}
        self._used = set()

    def _made(self, s, variables, bar, check_stop):
        total = len(s.names) * len(s.templates)
        if total > MANY:
            self._console.print(f"{s.name}: embedding {total:,} prompts")
        task = bar.add_task(f"embedding names, {s.name}", total=total)

        def embed(prompts):
            found = self._embedder.texts(variables, prompts, check_stop)
            bar.advance(task, len(prompts))
            return found

        bank = class_bank(embed, s.names, s.templates, at_once=self._at_once)
        what = f"eval.sets.{s.name}: embeddings of class names"
        check_finite(np.isfinite(bank).all(axis=1), s.names.__getitem__, what)
        return bank


def digest_of(tree: PyTree) -> str:
    """Returns digits that are the same for the same arrays, bit for bit, under the same names."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        values = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {values.dtype} {values.shape}".encode())
        digest.update(values.view(np.uint8))
    return digest.hexdigest()
