"""Keeps on disk what takes long to make: in the user's own cache, or beside a model.

What a computer runs, as compiled programs are, is in the user's own cache alone: a model's folder
may come from anybody.
"""

import contextlib
import functools
import hashlib
import os
import zipfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import numpy as np

from otter_jax.files import written_whole

Arrays = dict[str, np.ndarray]
DAMAGED = (OSError, ValueError, EOFError, zipfile.BadZipFile)  # what np.load raises for it
KEPT = 64  # files of a kind; the oldest are removed
PLACE = "OTTER_JAX_CACHE"  # in the environment: another folder for the user's own cache


def quiet(note: str) -> None:
    """Tells nobody."""


def users() -> Path:
    """Returns the user's own cache: $OTTER_JAX_CACHE, else otter_jax in ~/.cache."""
    if os.environ.get(PLACE):
        return Path(os.environ[PLACE])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "otter_jax"


def beside(folder: Path) -> Path:
    """Returns the folder for the caches of a model: FOLDER/cache, or `users` where it is not ours.

    It need not exist yet.
    """
    own = folder / "cache"
    return own if os.access(own if own.exists() else folder, os.W_OK) else users()


@functools.cache
def code() -> str:
    """Returns a digest of all that programs and shapes of models depend on beside the model."""
    home = Path(__file__).parent
    digest = hashlib.sha256(repr([metadata.version(n) for n in ("jax", "jaxlib", "flax")]).encode())
    for path in sorted([*home.glob("models/*.py"), home / "gates.py", home / "run/embedder.py"]):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def named(kind: str, *facts: object) -> str:
    """Returns the name of a file of this kind, which differs wherever one of the facts does."""
    return f"{kind}_{hashlib.sha256(repr(facts).encode()).hexdigest()[:24]}.npz"


def arrays_of(path: Path) -> Arrays:
    """Returns the arrays of an .npz. Raises one of `DAMAGED` if it cannot be read."""
    with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
        return {name: found[name] for name in found.files}


def kept(path: Path, make: Callable[[], Arrays], tell: Callable[[str], None] = quiet) -> Arrays:
    """Returns the arrays of a file, which is written by `make` if it is not there.

    A damaged file is made anew, and `tell` is told so; so it is of a disk that refuses.
    """
    if path.exists():
        try:
            return arrays_of(path)
        except DAMAGED:
            # NumPy's own words for it are an advice to read it unsafely.
            tell(f"The cache {path} is damaged: it is made anew.")
    arrays = make()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as scratch, scratch.open("wb") as file:
            np.savez(file, **arrays)
    except OSError as error:
        tell(f"The cache {path} cannot be written ({error.strerror}): it is made anew next time.")
    with contextlib.suppress(OSError):  # another process removes them, too
        files = sorted(path.parent.glob(f"{path.name.split('_')[0]}_*"), key=os.path.getmtime)
        for old in files[:-KEPT]:
            old.unlink(missing_ok=True)
    return arrays
