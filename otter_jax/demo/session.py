"""Answers questions about pictures with one model, and bounds what it computes and holds."""

import collections
import hashlib
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32

from otter_jax.errors import UserError
from otter_jax.predict.classes import alone, listed
from otter_jax.predict.model import TEMPLATES, Guess, Model
from otter_jax.predict.ranking import rank
from otter_jax.zeroshot.bank import SLOTS

PICTURES = 256  # whose vectors are kept, the latest
BANKS = 32  # of class vectors that are kept
CLASSES = 1_000  # of a question
PROMPTS = 4_000  # of a question: classes x templates; some seconds on a CPU
TYPED = 20_000  # characters of a question
TEXT = 400_000  # characters of its prompts; a template may have many {}
TOP = 10  # guesses in an answer


class Forgotten(UserError):
    """Raised for a picture whose vector is not kept any more; the page sends it again."""


class Answer(NamedTuple):
    """Holds the best guesses, and what should be said about the classes."""

    guesses: list[Guess]
    notes: list[str]


class Session:
    """Keeps the vectors of the latest pictures and classes. One thread at a time may call it.

    Texts are never taken for names of files, and nothing is written.
    """

    def __init__(self, model: Model):
        """Embeds a grey picture and two names, so that no first question waits for compiling."""
        self.model = model
        self._pictures = _Latest(PICTURES)
        self._banks, self._floors = _Latest(BANKS), _Latest(BANKS)
        grey = np.full((model.image_size, model.image_size, 3), 128, np.uint8)
        model.embed_pixels(grey[None])
        self._bank((("dog",), ("cat",)), TEMPLATES)
        self._floor(TEMPLATES)

    def add(self, content: bytes) -> str:
        """Embeds a picture, and returns a name for it. Raises UserError if it cannot be read."""
        name = hashlib.sha256(content).hexdigest()[:32]
        if self._pictures.find(name) is None:
            pixels = self.model.read(content)
            self._pictures.keep(name, self.model.embed_pixels(pixels[None])[0])
        return name

    def ask(self, picture: str, classes: str, templates: Sequence[str], multi: bool) -> Answer:
        """Returns the TOP classes for a picture that was added, best first.

        `classes` are names with commas or line breaks between them; without templates it is the
        usual one. With `multi` each class is judged on its own. Raises UserError for no class, a
        template without {}, and too much, and `Forgotten` for a picture that is not kept.
        """
        if len(classes) + sum(map(len, templates)) > TYPED:
            raise UserError(f"These are more than {TYPED:,} characters: give fewer.")
        vector = self._pictures.find(picture)
        if vector is None:
            raise Forgotten("This picture is not kept any more: drop it again.")
        typed = ", ".join(filter(None, (line.strip(" \t,") for line in classes.splitlines())))
        found = listed(typed, "the list", "type names with commas between them, such as dog, sofa")
        templates = _checked(templates, found.first)
        bank, notes = self._bank(tuple(found.names), templates)
        floor = self._floor(templates) if multi else None
        if len(found.names) == 1 and not multi:
            notes = [f"{alone(found)}. Let each be judged on its own.", *notes]
        ranked = rank(vector[None], bank, scale=self.model.scale, top=TOP, floor=floor)
        names = [found.first[number] for number in ranked.classes[0]]
        numbers = ranked.probabilities[0].tolist(), ranked.cosines[0].tolist()
        guesses = list(map(Guess, names, *numbers))
        return Answer(guesses, [f"{_capital(note)}." for note in found.notes] + notes)

    def _bank(
        self, names: tuple[tuple[str, ...], ...], templates: tuple[str, ...]
    ) -> tuple[Float32[np.ndarray, "C D"], list[str]]:
        """Returns the vectors of classes, and what is noteworthy of them."""
        found = self._banks.find((names, templates))
        if found is None:
            notes: list[str] = []
            # What strangers type is not kept on disk.
            bank = self.model.bank(names, templates, cached=False, tell=notes.append)
            found = bank, notes
            self._banks.keep((names, templates), found)
        return found

    def _floor(self, templates: tuple[str, ...]) -> float | Float32[np.ndarray, " D"]:
        """Returns what a class has to exceed on its own (`Model.floor`)."""
        found = self._floors.find(templates)
        if found is None:
            found = self.model.floor(templates, cached=False)
            self._floors.keep(templates, found)
        return found


class _Latest:
    """Keeps the values that were used latest."""

    def __init__(self, most: int):
        self._most = most
        self._kept: collections.OrderedDict[Hashable, Any] = collections.OrderedDict()

    def find(self, key: Hashable) -> Any:
        """Returns what is kept under a key, else None."""
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def keep(self, key: Hashable, value: Any) -> None:
        """Keeps a value, and forgets the one that was used longest ago if there are too many."""
        self._kept[key] = value
        if len(self._kept) > self._most:
            self._kept.popitem(last=False)


def _checked(templates: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    """Returns the templates, each once. Raises UserError for one without {}, and for too many."""
    for template in templates:
        if not any(slot in template for slot in SLOTS):
            raise UserError(
                f"The template {template!r} has no {{}}, where the name of the class goes: write "
                "for example a photo of {}."
            )
    several, count = tuple(dict.fromkeys(templates)) or TEMPLATES, len(names)
    if count > CLASSES or count * len(several) > PROMPTS:
        raise UserError(
            f"{count:,} classes and {len(several):,} templates: here at most {CLASSES:,} classes "
            f"are compared, by {PROMPTS:,} prompts. The command `predict` has no such limits."
        )
    slots = sum(template.count(slot) for template in several for slot in SLOTS)
    size = count * sum(map(len, several)) + slots * sum(map(len, names))
    if size > TEXT:
        raise UserError(f"The prompts have {size:,} characters, more than {TEXT:,}: give fewer.")
    return several


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
