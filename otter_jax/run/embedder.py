"""Embeds images and texts with one model, compiled once per shape, on all devices."""

import bisect
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, PyTree, UInt8

from otter_jax import gates
from otter_jax import mesh as meshes
from otter_jax.data.captions import Tokenizer
from otter_jax.run.programs import Program


class Embedder:
    """Embeds images and texts with any weights of one model, in batches of one size or of few.

    All processes make the same calls; each gets the embeddings of the whole batch.

    Attributes:
      batch_size: the largest batch, over all devices.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        mesh: Mesh,
        *,
        batch_size: int,
        smaller: Sequence[int] = (),
        shorter: Sequence[int] = (),
        kept: bool = False,
    ):
        """Compiles nothing yet; `batch_size` is over all devices, and must divide over them.

        What is left over is padded to one of the sizes `smaller` and `batch_size`; texts of few
        tokens to the next of the lengths `shorter` and max_tokens. With `kept`, programs are kept
        on disk.
        """
        self._tokenizer, self._mesh, self.batch_size = tokenizer, mesh, batch_size
        self._sizes = [*sorted(size for size in smaller if size < batch_size), batch_size]
        most = tokenizer.max_tokens
        self._lengths = [*sorted(length for length in shorter if length < most), most]
        whole, rows = meshes.shardings(mesh)

        def images(variables, image):
            return model.apply(gates.folded(variables), image, method=model.embed_images)

        def texts(variables, token_ids, mask):
            return model.apply(gates.folded(variables), token_ids, mask, method=model.embed_texts)

        def pooled(variables, token_ids, mask):
            return model.apply(variables, token_ids, mask, method=model.pool_texts)

        self._images = jax.jit(images, in_shardings=(whole, rows), out_shardings=rows)
        self._texts = jax.jit(texts, in_shardings=(whole, rows, rows), out_shardings=whole)
        self._pooled = jax.jit(pooled, in_shardings=(whole, rows, rows), out_shardings=whole)
        self._whole = jax.jit(lambda x: x, in_shardings=rows, out_shardings=whole)
        if kept:
            self._images = Program(self._images, mesh, "images", model)
            self._texts = Program(self._texts, mesh, "texts", model)

    def image_batch(self, variables: PyTree, image: UInt8[Array, "B H W 3"]) -> Float[Array, "B D"]:
        """Embeds one batch whose rows are spread over the devices; so are those of the result."""
        return self._images(variables, image)

    def prepare(self, variables: PyTree, number: int, size: int) -> None:
        """Compiles what so many images of size x size take first; it is kept (`Program`)."""
        _, rows = meshes.shardings(self._mesh)
        shape = (self._fitting(number), size, size, 3)
        self._images.compiled(variables, jax.ShapeDtypeStruct(shape, np.uint8, sharding=rows))

    def images(
        self,
        variables: PyTree,
        images: UInt8[np.ndarray, "N H W 3"],
        check_stop: Callable[[], None] = lambda: None,
    ) -> Float[np.ndarray, "N D"]:
        """Embeds any number of images; `check_stop` is called once per batch, and may raise."""

        def embed(start, rows, padding):
            part = images[start : start + rows]
            blank = np.zeros((padding, *images.shape[1:]), images.dtype)
            image = self._put(image=np.concatenate([part, blank]))["image"]
            found = self._images(variables, image)
            return np.asarray(found if self._mesh.size == 1 else self._whole(found))

        return self._in_batches(embed, len(images), check_stop)

    def texts(
        self,
        variables: PyTree,
        texts: Sequence[str],
        check_stop: Callable[[], None] = lambda: None,
    ) -> Float[np.ndarray, "N D"]:
        """Embeds any number of texts; `check_stop` is called once per batch, and may raise."""
        return self._of_texts(self._texts, variables, texts, check_stop)

    def pooled(
        self,
        variables: PyTree,
        texts: Sequence[str],
        check_stop: Callable[[], None] = lambda: None,
    ) -> Float[np.ndarray, "N W"]:
        """Returns what the text encoder makes of texts, before the common space, as `texts`."""
        return self._of_texts(self._pooled, variables, texts, check_stop)

    def _of_texts(self, program, variables, texts, check_stop):
        """Joins what a program makes of texts."""

        def embed(start, rows, padding):
            part = [*texts[start : start + rows], *[""] * padding]
            token_ids, mask = self._tokenizer.encode(part)
            longest = int(mask.any(axis=0).nonzero()[0].max(initial=-1)) + 1
            length = self._lengths[bisect.bisect_left(self._lengths, longest)]
            rows = self._put(token_ids=token_ids[:, :length], mask=mask[:, :length])
            return np.asarray(program(variables, rows["token_ids"], rows["mask"]))

        return self._in_batches(embed, len(texts), check_stop)

    def _in_batches(self, embed, count, check_stop):
        """Joins the batches that `embed(start, rows, padding)` makes, without the padding."""
        parts, start = [], 0
        while start < count:
            check_stop()
            whole = self._fitting(count - start)
            rows = min(whole, count - start)
            parts.append(embed(start, rows, whole - rows)[:rows])
            start += rows
        return np.concatenate(parts)

    def _fitting(self, rest: int) -> int:
        """Returns the size that holds `rest` rows, or the next below if most would be padding."""
        place = bisect.bisect_left(self._sizes, min(rest, self.batch_size))
        size = self._sizes[place]
        return self._sizes[place - 1] if place and 4 * rest < size else size

    def _put(self, **batch):
        """Puts this process's part of a batch that every process has made whole on its devices."""
        processes, own = jax.process_count(), jax.process_index()
        rows = {name: np.split(values, processes)[own] for name, values in batch.items()}
        return meshes.put_batch(rows, self._mesh)
