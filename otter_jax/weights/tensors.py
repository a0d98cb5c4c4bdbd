"""Reads named tensors from safetensors and PyTorch files, and writes safetensors."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from otter_jax.errors import UserError
from otter_jax.files import open_regular, read_json
from otter_jax.weights import pickles

Tensors = dict[str, np.ndarray]
Tell = Callable[[str], None]  # takes a sentence that the user should see

# Where training runs keep a model's tensors in a file, the likeliest first.
TOPS = (
    "state_dict", "model_state_dict", "model_state", "model", "net", "network", "module", "weights",
    "params", "student", "teacher", "encoder", "backbone",
    "state_dict_ema", "model_ema", "ema_state_dict", "ema", "params_ema", "shadow",
)  # fmt: skip
LONGEST = 200  # characters of the name of a file; systems take 255 bytes
LEVELS = 4  # of dictionaries that are searched for tensors
FOREIGN = (  # how files begin that are no weights, or none that are read here
    (b"version https://git-lfs", "is a Git LFS pointer, not the file itself; run `git lfs pull`"),
    (b"<!doctype html", "is a web page, not the file: the download failed; fetch it again"),
    (b"<html", "is a web page, not the file: the download failed; fetch it again"),
    (b"<?xml", "is XML, such as a server's error, not the file; fetch it again"),
    (b"entry not found", "holds the words of a server's error, not the file; fetch it again"),
    (b"\x89hdf", "is an HDF5 file (Keras, TensorFlow); give PyTorch's or safetensors"),
    (b"gguf", "is a GGUF file (llama.cpp); give PyTorch's or safetensors"),
    (b"\x1f\x8b", "is compressed by gzip; unpack it first"),
)


def quiet(_: str) -> None:
    """Tells nobody."""


def write(path: Path, tensors: Tensors) -> None:
    """Writes a safetensors file. Raises UserError for values that are not finite."""
    check_finite(tensors, f"What would be written as {path}")
    # transformers refuses a file that is not marked as PyTorch's.
    safetensors.numpy.save_file(tensors, path, metadata={"format": "pt"})


def check_finite(tensors: Tensors, source: str) -> None:
    """Raises UserError that names tensors with NaN, infinity or numbers that float32 cannot hold.

    `source` begins the sentence.
    """
    bad, beyond = [], []
    for name, values in tensors.items():
        with np.errstate(over="ignore"):
            finite = np.isfinite(values.astype(np.float32, copy=False))
        if not finite.all():
            text = f"{name}: {finite.size - finite.sum():,} of {finite.size:,}"
            (beyond if np.isfinite(values).all() else bad).append(text)
    for names, what in ((bad, "NaN or infinity"), (beyond, "numbers that float32 cannot hold")):
        if names:
            more = f"; and {len(names) - 3} more" if len(names) > 3 else ""
            raise UserError(
                f"{source} holds {what} in {len(names)} of {len(tensors)} tensors "
                f"({'; '.join(names[:3])}{more}): everything computed with them would be NaN, too. "
                "Take an earlier checkpoint, or fetch the file again."
            )


def read(path: Path, *, part: str = "", tell: Tell = quiet) -> Tensors:
    """Reads the named tensors of a safetensors or PyTorch file, in the file's dtypes.

    A PyTorch file is a pickle, which could run any code; this reader makes only tensors from it.

    Args:
      path: a file of either kind, which its content tells, or the index (.index.json) of several.
      part: where in a PyTorch file the tensors are ("state_dict_ema", "model/student"); "" takes
        the first of `TOPS`.
      tell: is told which part was taken where there are several.

    Raises:
      UserError: the file is missing, is damaged, is no file of weights, or asks for more than
        tensors; or there is no such part.
    """
    if not path.is_file():
        raise UserError(f"There is no file of weights {path}.")
    if path.name.endswith(".index.json"):
        return read_shards(path, part=part, tell=tell)
    try:
        check_beginning(path)
        if is_safetensors(path):
            if part:
                raise UserError(f"is a safetensors file, which has no parts such as {part!r}.")
            found = read_safetensors(path)
        else:
            tree, storages = pickles.read_file(path)
            chosen = choose(tree, part, path=path, tell=tell)
            found = {name: tensor.array(storages) for name, tensor in chosen.items()}
        tell_zeros(found, path, tell)
        return found
    except UserError as error:
        raise UserError(f"{path} {error}") from None
    except Exception as error:  # damage in a pickle may raise anything
        raise UserError(
            f"{path} is not readable as a file of weights ({type(error).__name__}: {error}); "
            "is it complete?"
        ) from error


def read_safetensors(path: Path) -> Tensors:
    """Reads a safetensors file; raises UserError for numbers of a type that NumPy lacks."""
    try:
        return safetensors.numpy.load_file(path)
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(
            f"has numbers of a type that is not read, such as float8 ({error}); save it as "
            "float32, float16 or bfloat16."
        ) from error


def tell_zeros(found: Tensors, path: Path, tell: Tell) -> None:
    """Tells which matrices are all zeros: a download that broke off may have left them so."""
    matrices = {name: values for name, values in found.items() if np.squeeze(values).ndim > 1}
    zeros = [name for name, values in matrices.items() if not values.any()]
    if zeros:
        tell(
            f"{path}: {len(zeros)} of {len(matrices)} matrices are all zeros, such as {zeros[0]}; "
            "is the file complete?"
        )


def check_beginning(path: Path) -> None:
    """Raises UserError for a file that begins as one of another kind does.

    Its message goes on after the file's name.
    """
    with open_regular(path) as file:
        begins = file.read(256).lstrip(b"\xef\xbb\xbf \r\n\t").lower()
    if not begins:
        raise UserError("is empty: is it complete?")
    for beginning, what in FOREIGN:
        if begins.startswith(beginning):
            raise UserError(f"{what}.")


def is_safetensors(path: Path) -> bool:
    """Tells whether a file is safetensors, whatever its name: a length, and then JSON."""
    if path.suffix == ".safetensors":
        return True
    with open_regular(path) as file:
        begins = file.read(9)
    length = int.from_bytes(begins[:8], "little")
    return begins[8:] == b"{" and length <= path.stat().st_size - 8


def read_shards(index: Path, *, part: str, tell: Tell) -> Tensors:
    """Reads all files that an index names, which lie beside it; a tensor from the one it names."""
    try:
        check_beginning(index)
        names = read_json(index)["weight_map"]
        files = sorted(set(names.values()))
    except UserError as error:
        raise UserError(f"{index} {error}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{index} is not the index of a model in several files ({error!r})."
        ) from error
    outside = [file for file in files if Path(file).name != file or len(file) > LONGEST]
    if outside:
        raise UserError(f"{index} names {outside[0][:LONGEST]!r}, which is not beside it.")
    missing = [file for file in files if not (index.parent / file).is_file()]
    if missing:
        raise UserError(
            f"{index} names {len(files)} files, of which {len(missing)} are missing, such as "
            f"{missing[0]}; fetch them, too."
        )
    found: Tensors = {}
    for file in files:
        held = read(index.parent / file, part=part, tell=tell)
        found |= {name: values for name, values in held.items() if names.get(name, file) == file}
    lost = [name for name in names if name not in found]
    if lost:
        raise UserError(
            f"{index} names {len(lost)} tensors that are not in its files, such as {lost[0]}."
        )
    return found


def choose(tree: Any, part: str, *, path: Path, tell: Tell) -> dict[str, pickles.Tensor]:
    """Returns the part of a pickled object that holds the tensors of a model.

    Raises UserError if there is no such part, or if there are several of unknown names.
    """
    parts = dict(parts_of(tree))
    if not parts:
        raise UserError(f"holds no named tensors, but {described(tree)}.")
    there = ", ".join(repr(name) for name in list(parts)[:6] if name)
    if part:
        if part not in parts:
            held = f"there are {there}" if there else "its tensors are not in parts"
            raise UserError(f"has no part {part!r}: {held}.")
        return parts[part]
    if "" in parts:
        return parts[""]
    known = [name for name in parts if all(step in TOPS for step in name.split("/"))]
    if not known and len(parts) > 1:
        name = next(iter(parts))
        raise UserError(
            f"holds tensors in {len(parts)} parts ({there}); say which: model.img.weights or "
            f"model.txt.weights={path}#{name}"
        )
    taken = min(known, key=_rank) if known else next(iter(parts))
    others = [name for name in parts if name != taken and is_model(name, parts, taken)]
    if others or not known:
        text = f"{path}: the weights are those of {taken!r}"
        if others:
            text += f"; beside it: {', '.join(others)} (weights=PATH#{others[0]} takes it)"
        tell(f"{text}.")
    return parts[taken]


def is_model(name: str, parts: Mapping[str, Mapping[str, Any]], taken: str) -> bool:
    """Tells whether a part seems to hold a model too, beside the one that is taken."""
    known = all(step in TOPS for step in name.split("/"))
    return known or ("optim" not in name and len(parts[name]) >= len(parts[taken]))


def _rank(name: str) -> list[int]:
    """Returns the place of a part in `TOPS`, level by level."""
    return [TOPS.index(step) for step in name.split("/")]


def parts_of(
    tree: Any, name: str = "", levels: int = LEVELS
) -> Iterator[tuple[str, dict[str, pickles.Tensor]]]:
    """Yields the dictionaries in a pickled object that hold tensors, by their path.

    A few tensors beside a dictionary of more are numbers of the training run, such as a best score.
    """
    if not isinstance(tree, dict):
        return
    own = {
        key: value
        for key, value in tree.items()
        if isinstance(key, str) and isinstance(value, pickles.Tensor)
    }
    inner: list[tuple[str, dict[str, pickles.Tensor]]] = []
    if levels > 1:
        for key, value in tree.items():
            if isinstance(key, str):
                inner += parts_of(value, f"{name}/{key}" if name else key, levels - 1)
    if own and all(len(found) <= len(own) for _, found in inner):
        yield name, own
    else:
        yield from inner


def described(tree: Any) -> str:
    """Returns what a pickled object is, as text."""
    if isinstance(tree, dict):
        keys = ", ".join(repr(key) for key in list(tree)[:6] if isinstance(key, str))
        return f"a dictionary of {keys or 'no names'}"
    if isinstance(tree, pickles.Ignored):
        return "an object of a class of its own; save its state_dict()"
    return "one tensor alone" if isinstance(tree, pickles.Tensor) else f"a {type(tree).__name__}"
