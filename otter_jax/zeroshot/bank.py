"""The bank: one vector per class, made of its names in templates."""

import collections
import itertools
import os
import pathlib
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Float

from otter_jax.errors import UserError
from otter_jax.files import read_text

SLOTS = ("{}", "{c}")  # where a template takes the name; CLIP_benchmark's files have the second
_INVISIBLE = "\ufeff\u200b\u2060"  # byte order mark, zero-width space, word joiner


def spelled(text: str) -> str:
    """Spells a name or label in one way, so that what looks the same is the same.

    That is Unicode's NFC, single blanks, and nothing invisible at the ends.
    """
    return " ".join(unicodedata.normalize("NFC", text).split()).strip(_INVISIBLE).strip()


def read_lines(path: str, what: str, *, spell: Callable[[str], str] = spelled) -> list[str]:
    """Reads the lines of a text, spelled; blank ones are "", those at the end are left out.

    `what` says what they are, for messages; `spell` may leave them as they are. Raises UserError if
    the file cannot be read, or is no UTF-8; a byte order mark does not matter.
    """
    if not isinstance(path, str):
        raise UserError(f"{what}: give the path of a file with one on each line, not {path!r}.")
    try:
        text = read_text(pathlib.Path(path).expanduser())
    except OSError as error:
        raise UserError(f"The {what} in {path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        text = f"\0{error}"
    if "\0" in text:
        raise UserError(
            f"The {what} in {path} cannot be read: it is not in UTF-8. Save it as text in UTF-8, "
            "with one on each line."
        )
    return [spell(line) for line in text.rstrip().split("\n")]


def read_names(path: str) -> list[str]:
    """Reads class names, one per line; leaves out blank and repeated ones, and prints how many.

    Raises UserError if the file cannot be read, or holds no name.
    """
    counts = collections.Counter(read_lines(path, "class names"))
    blank = counts.pop("", 0)
    if not counts:
        raise UserError(f"There are no class names in {path}.")
    repeated = [name for name, count in counts.items() if count > 1]
    if blank or repeated:
        such = f", such as {', '.join(repeated[:3])}" if repeated else ""
        print(
            f"{path}: {blank} blank lines and {counts.total() - len(counts)} repeated names are "
            f"left out{such}."
        )
    if all(re.match(r"\d+\W", name) for name in counts):
        print(
            f"{path}: each name begins with a number, as {next(iter(counts))!r}; prompts do, too."
        )
    return list(counts)


def templates_of(given: str | Sequence[str], key: str) -> tuple[str, ...]:
    """Returns templates with {} where the name of the class goes.

    `given` are templates, one template, or the path of a file with one on each line; `key` is that
    of the config. Raises UserError if one has no such place, or the file cannot be read.
    """
    if isinstance(given, str):
        is_file = os.path.isfile(os.path.expanduser(given))  # a template may be too long for a path
        given = filter(None, read_lines(given, "templates")) if is_file else (given,)
    templates = tuple(str(template) for template in given)
    wrong = [t for t in templates if not any(slot in t for slot in SLOTS)]
    if wrong or not templates:
        such = f"{wrong[0]!r} has none, and is no file" if wrong else "there is none"
        raise UserError(
            f"{key}: each needs {{}} where the name of the class goes, and {such}; for "
            'example "a photo of {}.".'
        )
    return tuple(template.replace("{c}", "{}") for template in templates)


def prompts(
    names: Sequence[str | Sequence[str]], templates: Sequence[str]
) -> Iterator[tuple[str, int]]:
    """Yields all prompts, each with the number of its class.

    A class may have several names. The outer loop is over names, the inner over templates, as
    released.
    """
    for number, name in enumerate(names):
        for synonym in [name] if isinstance(name, str) else name:
            for template in templates:
                yield template.replace("{}", synonym), number


def class_bank(
    embed_texts: Callable[[list[str]], Float[np.ndarray, "N D"]],
    names: Sequence[str | Sequence[str]],
    templates: Sequence[str],
    *,
    at_once: int = 16_384,
) -> Float[np.ndarray, "C D"]:
    """Returns one unit vector per class: the normalised mean of its prompts' unit vectors.

    `embed_texts` is given `at_once` prompts at a time, so that memory does not grow with the number
    of templates.
    """
    made, bank = prompts(names, templates), None
    while some := list(itertools.islice(made, at_once)):
        texts, classes = zip(*some, strict=True)
        embeddings = embed_texts(list(texts))
        if bank is None:
            bank = np.zeros((len(names), embeddings.shape[1]), np.float32)
        np.add.at(bank, list(classes), embeddings)
    if bank is None:
        raise ValueError("there are no classes, or no templates")
    return bank / np.maximum(np.linalg.norm(bank, axis=1, keepdims=True), 1e-12)
