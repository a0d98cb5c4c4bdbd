"""Looks at the prompts of classes: which are cut, and which classes have the same tokens."""

import collections
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from otter_jax.data.captions import Tokenizer

NAMED = 3  # examples in a line
SHOWN = 100  # characters of each
AT_ONCE = 10_000  # prompts that are held


class Prompts(NamedTuple):
    """Names the classes whose scores mean less than they seem to.

    Attributes:
      cut: those with a prompt of more than max_tokens tokens.
      same: groups of those whose prompts all have the same tokens, once cut: nothing tells them
        apart, and their order is arbitrary.
      unknown: those whose names have no token that the tokenizer knows.
    """

    cut: list[str]
    same: list[list[str]]
    unknown: list[str]

    def lines(self, max_tokens: int) -> Iterator[str]:
        """Yields a sentence for each kind that occurs."""
        if self.cut:
            yield (
                f"{_classes(self.cut)} prompts that are cut at {max_tokens} tokens, such "
                f"as {_some(self.cut)}"
            )
        if self.same:
            number = sum(map(len, self.same))
            groups = ["/".join(group[:NAMED]) for group in self.same]
            yield (
                f"{number:,} classes have the same tokens as another, such as {_some(groups)}: "
                "which of them is found means nothing"
            )
        if self.unknown:
            yield (
                f"{_classes(self.unknown)} names of unknown tokens alone, such as "
                f"{_some(self.unknown)}: their scores mean nothing"
            )


def look_at(
    tokenizer: Tokenizer, names: Sequence[str | Sequence[str]], templates: Sequence[str]
) -> Prompts:
    """Tokenises the prompts of all classes, and returns what is wrong with them.

    A class may have several names; it is called by the first.
    """
    several = [(name,) if isinstance(name, str) else tuple(name) for name in names]
    called = [synonyms[0] for synonyms in several]
    cut: set[int] = set()
    known: set[int] = set()
    tokens: list[int] = [0] * len(names)  # a hash of the token ids of a class's prompts
    flat = [(number, name) for number, synonyms in enumerate(several) for name in synonyms]
    for first in range(0, len(flat), AT_ONCE):
        numbers, some = zip(*flat[first : first + AT_ONCE], strict=True)
        for template in templates:
            texts = [template.replace("{}", name) for name in some]
            rows, mask = tokenizer.encode(texts)
            for number, row in zip(numbers, rows, strict=True):
                tokens[number] = hash((tokens[number], row.tobytes()))
            full = np.flatnonzero(mask.all(axis=1)).tolist()  # others cannot have been cut
            if full:
                lengths = tokenizer.lengths([texts[i] for i in full])
                cut.update(
                    numbers[i]
                    for i, length in zip(full, lengths, strict=True)
                    if length > tokenizer.max_tokens
                )
        known.update(n for n, count in zip(numbers, tokenizer.known(some), strict=True) if count)
    groups = collections.defaultdict(list)
    for name, digest in zip(called, tokens, strict=True):
        groups[digest].append(name)
    same = [group for group in groups.values() if len(group) > 1]
    unknown = [name for number, name in enumerate(called) if number not in known]
    return Prompts([called[number] for number in sorted(cut)], same, unknown)


def cut(tokenizer: Tokenizer, texts: Sequence[str]) -> Iterator[str]:
    """Yields a sentence if some texts have more than max_tokens tokens."""
    over: list[str] = []
    for first in range(0, len(texts), AT_ONCE):
        some = texts[first : first + AT_ONCE]
        lengths = tokenizer.lengths(some)
        over += [t for t, n in zip(some, lengths, strict=True) if n > tokenizer.max_tokens]
    if over:
        are = "1 text is" if len(over) == 1 else f"{len(over):,} texts are"
        yield f"{are} cut at {tokenizer.max_tokens} tokens, such as {_some(over[:1])}"


def _some(texts: Sequence[str]) -> str:
    shown = (text if len(text) <= SHOWN else f"{text[:SHOWN]}…" for text in texts[:NAMED])
    return ", ".join(map(repr, shown))


def _classes(names: Sequence[str]) -> str:
    return "1 class has" if len(names) == 1 else f"{len(names):,} classes have"
