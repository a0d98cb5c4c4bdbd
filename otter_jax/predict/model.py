"""What is done with a trained model: pictures and texts become vectors, and vectors names."""

import contextlib
import functools
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn
from flax import traverse_util
from jaxtyping import Float32, PyTree, UInt8

from otter_jax import caches
from otter_jax import mesh as meshes
from otter_jax.data.captions import Tokenizer
from otter_jax.data.fitting import fit
from otter_jax.data.in_flight import in_threads
from otter_jax.errors import UserError
from otter_jax.models.fitting import Fitting
from otter_jax.predict.pixels import FORMS, Picture, named, pixels_of
from otter_jax.predict.ranking import rank
from otter_jax.run.embedder import Embedder
from otter_jax.weights.tensors import Tell, quiet
from otter_jax.zeroshot.bank import class_bank, templates_of
from otter_jax.zeroshot.prompts import look_at

ANYTHING = "something"  # what a class is compared with on its own
TEMPLATES = ("a photo of {}.",)
SIZES = (1, 16, 64, 512)  # of batches: a program is compiled for each that is used
LENGTHS = (16, 32)  # of texts in tokens, beside max_tokens
AT_ONCE = 1024  # prompts whose vectors are held
VERSION = 1  # of how banks are made; another one makes those on disk anew
Name = str | Sequence[str]  # of a class, or all its names


class Pixels(NamedTuple):
    """Says how pictures become pixels; `exif` "apply" turns them upright before, "ignore" not."""

    fitting: Fitting
    exif: str


class Loaded(NamedTuple):
    """Holds what a `Model` is made of, whatever kind of folder it was loaded from.

    Attributes:
      name: for people: which folder, step and weights.
      folder: where it was loaded from.
      module, variables: with the methods `embed_images` and `embed_texts` of `models.Towers`.
      tokenizer: of the texts.
      pixels: how pictures are prepared.
      dim: the size of embeddings.
      dtype: of the computation.
      settings: what embeddings depend on beside variables and tokenizer.
      scale, bias: what cosines are multiplied by, and what is added, to become logits.
      step: of the checkpoint, if it is a run's.
    """

    name: str
    folder: Path
    module: nn.Module
    variables: PyTree
    tokenizer: Tokenizer
    pixels: Pixels
    dim: int
    dtype: str
    settings: Mapping[str, Any]
    scale: float
    bias: float = 0.0
    step: int | None = None


class Guess(NamedTuple):
    """A class that a picture may show, with its probability and the cosine of both vectors."""

    name: str
    probability: float
    cosine: float


class Model:
    """Embeds pictures and texts in one space, and names what pictures show.

    Attributes:
      name: for people: which folder, step and weights.
      folder: where it was loaded from; caches are in its folder `cache`.
      step: of a run, the checkpoint that was taken; None of other models.
      dim: D, the size of embeddings.
      dtype: of the computation.
      image_size: the side of the crop that it sees, in pixels.
      max_tokens: of a text; what is longer is cut.
      tokenizer: of the texts.
      scale: cosines are multiplied by it before the softmax: the learned temperature's inverse.
      bias: is added then, to give logits; 0 but for models that were trained with a sigmoid.
      batch_size: the most pictures or texts that are computed at once, over all devices.
    """

    def __init__(self, loaded: Loaded, batch_size: int | None = None):
        """Puts the weights on all devices; nothing is compiled before it is needed.

        Raises UserError for a `batch_size` that does not divide over the devices.
        """
        mesh = meshes.make_mesh()
        if batch_size is not None:
            meshes.check_divides("batch_size", batch_size, mesh.size)
        largest = batch_size or SIZES[-2 if jax.default_backend() == "cpu" else -1] * mesh.size
        smaller = [-(-size // mesh.size) * mesh.size for size in SIZES]
        self.name, self.folder, self.step = loaded.name, loaded.folder, loaded.step
        self.dim, self.dtype = loaded.dim, loaded.dtype
        self.scale, self.bias = loaded.scale, loaded.bias
        self.tokenizer, self.max_tokens = loaded.tokenizer, loaded.tokenizer.max_tokens
        self.batch_size, self.image_size = largest, loaded.pixels.fitting.size
        self._pixels, self._settings = loaded.pixels, loaded.settings
        self._variables = meshes.put_whole(loaded.variables, mesh)
        self._embedder = Embedder(
            loaded.module,
            loaded.tokenizer,
            mesh,
            batch_size=largest,
            smaller=smaller,
            shorter=LENGTHS,
            kept=True,
        )

    @functools.cached_property
    def identity(self) -> str:
        """A digest of all that embeddings depend on: weights, tokenizer, and how pixels are made.

        It names caches and indexes, so that those of another model are not taken for this one's.
        """
        fitting, exif = self._pixels
        own = {"exif": exif, "tokenizer": self.tokenizer.digest}
        facts = self._settings | fitting._asdict() | own
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
        flat = traverse_util.flatten_dict(self._variables)
        for path in sorted(flat):
            values = np.ascontiguousarray(flat[path])
            digest.update(f"{'/'.join(path)} {values.dtype} {values.shape}".encode())
            digest.update(values)
        return digest.hexdigest()

    def read(self, picture: Picture) -> UInt8[np.ndarray, "S S 3"]:
        """Decodes a picture, resizes and crops it exactly as evaluation does.

        Raises UserError, which names the picture, if it cannot be read. Threads may call it.
        """
        fitting, exif = self._pixels
        return fit(pixels_of(picture, exif=exif), fitting)

    def prepare(self, number: int) -> None:
        """Begins to compile, in a thread, what the first batch of so many pictures takes."""
        args = (self._variables, number, self.image_size)
        threading.Thread(
            target=self._embedder.prepare, args=args, daemon=True, name="compiler"
        ).start()

    def embed_pixels(self, pixels: UInt8[np.ndarray, "N S S 3"]) -> Float32[np.ndarray, "N D"]:
        """Returns a vector of length 1 per picture that `read` has prepared."""
        if not len(pixels):
            return np.zeros((0, self.dim), np.float32)
        return self._embedder.images(self._variables, pixels)

    def embed_images(self, pictures: Iterable[Picture]) -> Float32[np.ndarray, "N D"]:
        """Returns a vector of length 1 per picture: paths, bytes, PIL images or uint8 arrays.

        They are decoded by threads, a batch ahead. Raises UserError, which names the picture, for
        one that cannot be read.
        """
        _check_several(pictures, FORMS, "embed_images")
        parts = [self.embed_pixels(pixels) for pixels in self._batches(pictures)]
        return np.concatenate(parts or [self.embed_pixels(np.zeros((0, 1, 1, 3), np.uint8))])

    def embed_texts(self, texts: Iterable[str]) -> Float32[np.ndarray, "N D"]:
        """Returns a vector of length 1 per text; one of more than `max_tokens` tokens is cut."""
        _check_several(texts, "a text", "embed_texts")
        texts = list(texts)
        if not texts:
            return np.zeros((0, self.dim), np.float32)
        wrong = [text for text in texts if not isinstance(text, str)]
        if wrong:
            raise UserError(f"embed_texts takes texts, and {wrong[0]!r} is none.")
        order = np.argsort([len(text) for text in texts], kind="stable")  # short ones together
        found = self._embedder.texts(self._variables, [texts[i] for i in order])
        vectors = np.empty_like(found)
        vectors[order] = found
        return vectors

    def bank(
        self,
        names: Iterable[Name],
        templates: str | Sequence[str] = TEMPLATES,
        cached: bool = True,
        tell: Tell = quiet,
        advance: Callable[[int], None] = lambda count: None,
    ) -> Float32[np.ndarray, "C D"]:
        """Returns a vector of length 1 per class: the mean of its names' prompts.

        Args:
          names: of the classes; a name may be several, synonyms of one class.
          templates: texts with {} where the name goes, one of them, or the path of a file with one
            on each line.
          cached: whether it is kept on disk, beside the model, and read from there the next time.
          tell: is told of prompts that are cut, and of classes that the tokens do not tell apart.
          advance: is called with the number of classes that are embedded.
        """
        templates = templates_of(templates, "templates")
        several = _several(names)

        def make():
            most, vectors = max(1, AT_ONCE // len(templates)), []
            for first in range(0, len(several), most):
                part = several[first : first + most]
                vectors.append(class_bank(self.embed_texts, part, templates))
                advance(len(part))
            notes = look_at(self.tokenizer, several, templates).lines(self.max_tokens)
            return {"vectors": np.concatenate(vectors), "notes": np.array(list(notes), str)}

        if cached:
            facts = (VERSION, self.identity, self.dtype, several, templates)
            path = caches.beside(self.folder) / caches.named("bank", *facts)
            found = caches.kept(path, make, tell)
        else:
            found = make()
        for note in found["notes"].tolist():
            tell(f"{note}.")
        return found["vectors"]

    def classify(
        self,
        images: Iterable[Picture],
        class_names: Iterable[Name],
        templates: str | Sequence[str] = TEMPLATES,
        top: int = 5,
        multi: bool = False,
    ) -> list[list[Guess]]:
        """Returns the `top` most probable of the classes for each picture, best first.

        Probabilities are the softmax over all classes of `scale` times the cosine; with `multi`
        each class has one of its own (`Model.floor`). A class of several names is called by its
        first. Raises UserError for what cannot be read, no class, and a `top` below 1.
        """
        _check_several(class_names, "a class name", "classify")
        _check_several(images, FORMS, "classify")
        if top < 1:
            raise UserError(f"top={top}: how many classes are to be returned, from 1.")
        several = _several(class_names)
        bank = self.bank(several, templates)
        floor = self.floor(templates) if multi else None
        first = [names[0] for names in several]
        found = []
        for pixels in self._batches(images):
            vectors = self.embed_pixels(pixels)
            ranked = rank(vectors, bank, scale=self.scale, top=top, floor=floor)
            for row in zip(*ranked, strict=True):
                classes, probabilities, cosines = (values.tolist() for values in row)
                names = [first[i] for i in classes]
                found.append(list(map(Guess, names, probabilities, cosines)))
        return found

    def floor(
        self, templates: str | Sequence[str] = TEMPLATES, cached: bool = True
    ) -> float | Float32[np.ndarray, " D"]:
        """Returns what a class has to exceed to be more probable than not, on its own (`rank`).

        A model that was trained with a sigmoid has learned that as its bias, a number. One trained
        with a softmax has not: it only knows which text fits better. There a class is compared with
        "something" in its place in the templates, so 0.5 means: the picture fits the class as well
        as it fits anything. That is no measured probability, but it does not depend on what other
        classes are asked for. `cached` is that of `bank`.
        """
        return -self.bias if self.bias else self.bank([ANYTHING], templates, cached)[0]

    def _batches(self, pictures: Iterable[Picture]) -> Iterator[UInt8[np.ndarray, "B S S 3"]]:
        """Yields pixels of all pictures, those of the next batches decoded meanwhile."""
        pixels: list[np.ndarray] = []
        with contextlib.closing(in_threads(self.read, pictures, ahead=self.batch_size)) as read:
            for _, found in read:
                pixels.append(found)
                if len(pixels) == self.batch_size:
                    yield np.stack(pixels)
                    pixels = []
        if pixels:
            yield np.stack(pixels)


def _check_several(given: Any, what: str, method: str) -> None:
    """Raises UserError for one picture or text where several are expected."""
    single = isinstance(given, str | os.PathLike | bytes) or hasattr(given, "getexif")
    if single or (isinstance(given, np.ndarray) and given.ndim in (2, 3)):
        shown = named(given) if not isinstance(given, str) else repr(given)
        raise UserError(f"{method} takes a list ({what} each), and got {shown}: put it in [ ].")


def _several(names: Iterable[Name]) -> list[tuple[str, ...]]:
    """Returns all names of each class. Raises UserError for no class, and one without a name."""
    found = [(name,) if isinstance(name, str) else name for name in names]
    if not found:
        raise UserError("There are no class names: give at least one.")
    for number, of_one in enumerate(found):
        texts = isinstance(of_one, Iterable) and all(isinstance(name, str) for name in of_one)
        if not texts or not len(of_one):
            raise UserError(f"Class {number} is {of_one!r}: give a name, or a list of its names.")
    return [tuple(map(str, of_one)) for of_one in found]
