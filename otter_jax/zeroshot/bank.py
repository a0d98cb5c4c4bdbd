"""The bank: one vector per class, made of its names in templates."""

import pathlib
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from otter_jax.errors import UserError


def read_names(path: str) -> list[str]:
    """Reads class names, one per line; leaves out blank and repeated ones, and prints how many.

    Raises UserError if the file cannot be read, or holds no name.
    """
    try:
        lines = pathlib.Path(path).expanduser().read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The class names in {path} cannot be read: {error}.") from None
    stripped = [line.strip() for line in lines]
    names = list(dict.fromkeys(filter(None, stripped)))
    if not names:
        raise UserError(f"There are no class names in {path}.")
    blank = stripped.count("")
    repeated = len(stripped) - blank - len(names)
    if blank or repeated:
        print(f"{path}: {blank} blank lines and {repeated} repeated names are left out.")
    return names


def prompts(
    names: Sequence[str | Sequence[str]], templates: Sequence[str]
) -> tuple[list[str], list[int]]:
    """Returns all prompts, and the class number of each.

    A class may have several names. The outer loop is over names, the inner over templates, as
    released.
    """
    texts, classes = [], []
    for number, name in enumerate(names):
        for synonym in [name] if isinstance(name, str) else name:
            texts += [template.replace("{}", synonym) for template in templates]
            classes += [number] * len(templates)
    return texts, classes


def class_bank(
    embed_texts: Callable[[list[str]], Float[np.ndarray, "N D"]],
    names: Sequence[str | Sequence[str]],
    templates: Sequence[str],
) -> Float[np.ndarray, "C D"]:
    """Returns one unit vector per class: the normalised mean of its prompts' unit vectors."""
    texts, classes = prompts(names, templates)
    embeddings = embed_texts(texts)
    bank = np.zeros((len(names), embeddings.shape[1]), np.float32)
    np.add.at(bank, classes, embeddings)
    return bank / np.maximum(np.linalg.norm(bank, axis=1, keepdims=True), 1e-12)
