"""Frozen features of a study: what enters the trained parts, for each set, and the banks of names.

They are all that training and scoring need, so that one file of them can be carried to a machine
without pictures, weights or a tokenizer.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped

from otter_jax import files
from otter_jax.errors import UserError
from otter_jax.study.fields import differences

ABOUT = "about"  # the entry of a file that holds, as JSON, all that is no array


@dataclasses.dataclass(frozen=True)
class Part:
    """Holds a set's pictures and texts, a row each, and the labels of each row by their field.

    Attributes:
      images: of the middle of each picture.
      views: of random crops of each picture, if training sees these.
    """

    images: Shaped[np.ndarray, "N *features"]
    texts: Float[np.ndarray, "N W"]
    labels: Mapping[str, list[list[str]]]
    views: Shaped[np.ndarray, "V N *features"] | None = None

    def trained_on(self) -> Shaped[np.ndarray, "V N *features"]:
        """Returns what training sees: the views, or the middle of pictures as the only one."""
        return self.images[None] if self.views is None else self.views

    def __len__(self) -> int:
        return len(self.texts)

    def numbers(self, field: str, names: Iterable[str]) -> Int[np.ndarray, "N M"]:
        """Returns the numbers of each row's labels among the names, padded with -1."""
        number = {name: i for i, name in enumerate(names)}
        rows = [
            list(dict.fromkeys(number[label] for label in row if label in number))
            for row in self.labels[field]
        ]
        found = np.full((len(rows), max(1, *map(len, rows))), -1, np.int32)
        for i, row in enumerate(rows):
            found[i, : len(row)] = row
        return found


@dataclasses.dataclass(frozen=True)
class Bank:
    """Holds the names to search in, and the text features of their prompts."""

    names: list[str]
    texts: Float[np.ndarray, "C W"]


@dataclasses.dataclass(frozen=True)
class Features:
    """Holds all that a study's runs are trained on and scored by.

    Attributes:
      about: what they were made of and how; a study of anything else refuses them.
      parts: by the name of the set.
      banks: by the name of the search.
      given: what a trained tower starts with: its variables by their paths, "params/img/...".
    """

    about: Mapping[str, Any]
    parts: Mapping[str, Part]
    banks: Mapping[str, Bank]
    given: Mapping[str, Shaped[np.ndarray, "..."]]

    def check(self, about: Mapping[str, Any], path: pathlib.Path, study: pathlib.Path) -> None:
        """Raises UserError unless they were made of what the study says."""
        own = {name: self.about.get(name, "absent") for name in about}
        if changed := differences(own, about):
            raise UserError(
                f"{path} was made of something else than {study} says: {'; '.join(changed[:6])}. "
                f"Make it again: otter-jax study {study} --prepare {path}"
            )

    def save(self, path: pathlib.Path) -> None:
        """Writes one file with all of it."""
        arrays = {f"given/{name}": value for name, value in self.given.items()}
        for name, part in self.parts.items():
            arrays |= {f"parts/{name}/images": part.images, f"parts/{name}/texts": part.texts}
            if part.views is not None:
                arrays[f"parts/{name}/views"] = part.views
        arrays |= {f"banks/{name}/texts": bank.texts for name, bank in self.banks.items()}
        about = {
            "about": dict(self.about),
            "labels": {name: dict(part.labels) for name, part in self.parts.items()},
            "names": {name: bank.names for name, bank in self.banks.items()},
        }
        text = np.frombuffer(json.dumps(about).encode(), np.uint8)
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.written_whole(path) as scratch, scratch.open("wb") as file:
            np.savez_compressed(file, **{ABOUT: text}, **arrays)

    @classmethod
    def load(cls, path: pathlib.Path) -> "Features":
        """Reads a file that `save` wrote. Raises UserError if it is none."""
        try:
            with files.open_regular(path) as file, np.load(file, allow_pickle=False) as found:
                arrays = {name: found[name] for name in found.files}
            more = json.loads(arrays.pop(ABOUT).tobytes())
            parts = {
                name: Part(
                    arrays[f"parts/{name}/images"],
                    arrays[f"parts/{name}/texts"],
                    labels,
                    arrays.get(f"parts/{name}/views"),
                )
                for name, labels in more["labels"].items()
            }
            banks = {
                name: Bank(names, arrays[f"banks/{name}/texts"])
                for name, names in more["names"].items()
            }
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}.") from error
        except Exception as error:  # zipfile, NumPy and JSON raise several types
            raise UserError(
                f"{path} is no file of features, or is damaged. To make it: otter-jax study FILE "
                f"--prepare {path}"
            ) from error
        given = {
            name.removeprefix("given/"): value
            for name, value in arrays.items()
            if name.startswith("given/")
        }
        return cls(more["about"], parts, banks, given)
