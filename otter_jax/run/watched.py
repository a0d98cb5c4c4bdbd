"""Keeps how a run's teacher embeds some pairs of the training set, at its start and at its end.

A report draws of them what the teacher matched with what, long after the weights of the start are
gone.
"""

import io
import json
import pathlib
from typing import NamedTuple

import numpy as np
import rich.console
from jaxtyping import Float, Int, PyTree, UInt8
from ml_collections import ConfigDict

from otter_jax import caches, files
from otter_jax.data import images
from otter_jax.data.captions import Tokenizer
from otter_jax.data.source import Source
from otter_jax.errors import Stopped
from otter_jax.run import cluster
from otter_jax.run.embedder import Embedder

MOST = 256  # pairs: at 384 dimensions a file of 0.4 MB
FOLDER = "watched"  # in a run's directory


class Watched(NamedTuple):
    """Holds what was kept of the watched pairs after one step.

    Attributes:
      numbers: of the records in the training set.
      captions: of the same, to tell whether the set is still the same.
    """

    step: int
    numbers: Int[np.ndarray, "N"]
    captions: list[str]
    image: Float[np.ndarray, "N D"]
    text: Float[np.ndarray, "N D"]


class WatchedPairs:
    """Watches one batch of pairs, evenly over the training set, as evaluation sees pictures."""

    def __init__(
        self,
        config: ConfigDict,
        source: Source,
        embedder: Embedder,
        workdir: pathlib.Path,
        console: rich.console.Console,
    ):
        """Reads nothing yet."""
        self._config, self._source, self._embedder = config, source, embedder
        self._folder, self._console = workdir / FOLDER, console
        self._pixels: UInt8[np.ndarray, "N S S 3"] | None = None
        self._numbers: list[int] = []
        self._captions: list[str] = []

    def begin(self, start: int, teacher: PyTree) -> None:
        """Forgets what was kept after step `start`; keeps the embeddings if that is step 0."""
        if cluster.is_first():
            for path in kept(self._folder.parent):
                if _step_of(path) > start:
                    path.unlink()
        if not start:
            self._console.print("Embedding some pairs of the training set for the report")
            self.keep(0, teacher)

    def keep(self, step: int, teacher: PyTree) -> None:
        """Writes the embeddings by these variables after `step`; of others only step 0 stays.

        A failure is printed, and the run goes on. All processes call it.
        """
        try:
            image, text = self._embedded(teacher)
        except Stopped:
            raise
        except Exception as error:  # whatever it is, it must not cost the run
            what = str(error).strip().partition("\n")[0][:200]
            self._console.print(
                f"The report will not show what matches what after step {step}: some pairs of the "
                f"training set could not be embedded ({type(error).__name__}: {what})."
            )
            return
        if cluster.is_first():
            self._write(step, image, text)

    def _embedded(self, teacher):
        if self._pixels is None:
            config = self._config
            most = min(MOST, config.train.batch_size, config.eval.batch_size)
            self._numbers, self._pixels = _readable(self._source, most, config)
            self._captions = [self._source[n][Tokenizer.feature] for n in self._numbers]
        image = self._embedder.images(teacher, self._pixels)
        return image, self._embedder.texts(teacher, self._captions)

    def _write(self, step, image, text):
        self._folder.mkdir(exist_ok=True)
        for path in kept(self._folder.parent):
            if _step_of(path):
                path.unlink()
        file = io.BytesIO()
        captions = np.frombuffer(json.dumps(self._captions).encode(), np.uint8)
        np.savez(file, numbers=self._numbers, captions=captions, image=image, text=text)
        files.write_bytes(self._folder / f"step_{step:08d}.npz", file.getvalue())


def kept(workdir: pathlib.Path) -> list[pathlib.Path]:
    """Returns the files of a run's watched pairs, the earliest step first."""
    return sorted((workdir / FOLDER).glob("step_*[0-9].npz"))


def read(path: pathlib.Path) -> Watched:
    """Reads one of the `kept` files. Raises ValueError if it is damaged."""
    try:
        found = caches.arrays_of(path)
        captions = json.loads(found["captions"].tobytes())
        return Watched(_step_of(path), found["numbers"], captions, found["image"], found["text"])
    except (*caches.DAMAGED, KeyError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def _step_of(path: pathlib.Path) -> int:
    return int(path.stem.partition("_")[2])


def _readable(source: Source, most: int, config: ConfigDict) -> tuple[list[int], np.ndarray]:
    """Returns the numbers, and the pixels as evaluation sees them, of records evenly over a set."""
    data, numbers, pixels = config.data, [], []
    for number in source.sample(most):
        try:
            decoded = images.decode(source[number]["image"], exif=data.exif)
        except images.UnreadableImage:
            continue
        numbers.append(number)
        pixels.append(images.center_crop(decoded, data.resize, data.image_size))
    return numbers, np.stack(pixels)
