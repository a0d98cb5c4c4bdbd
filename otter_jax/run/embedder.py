"""Embeds images and texts with one model, compiled once, on all devices."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, PyTree, UInt8

from otter_jax import gates
from otter_jax import mesh as meshes
from otter_jax.data.captions import Tokenizer


class Embedder:
    """Embeds images and texts with any weights of one model, in batches of one size.

    All processes make the same calls; each gets the embeddings of the whole batch.
    """

    def __init__(self, model: nn.Module, tokenizer: Tokenizer, mesh: Mesh, *, batch_size: int):
        """Takes a `batch_size` over all devices. Raises UserError unless it divides over them."""
        meshes.check_divides("eval.batch_size", batch_size, mesh.size)
        self._tokenizer, self._mesh, self._batch_size = tokenizer, mesh, batch_size
        whole, rows = meshes.shardings(mesh)

        def images(variables, image):
            return model.apply(_folded(variables), image, method=model.embed_images)

        def texts(variables, token_ids, mask):
            return model.apply(_folded(variables), token_ids, mask, method=model.embed_texts)

        self._images = jax.jit(images, in_shardings=(whole, rows), out_shardings=rows)
        self._texts = jax.jit(texts, in_shardings=(whole, rows, rows), out_shardings=whole)

    def images(self, variables: PyTree, image: UInt8[Array, "B H W 3"]) -> Float[Array, "B D"]:
        """Embeds one batch; its rows, and those of the result, are spread over the devices."""
        return self._images(variables, image)

    def texts(
        self,
        variables: PyTree,
        texts: Sequence[str],
        check_stop: Callable[[], None] = lambda: None,
    ) -> Float[np.ndarray, "N D"]:
        """Embeds any number of texts; `check_stop` is called once per batch, and may raise."""
        B, chunks = self._batch_size, []
        for start in range(0, len(texts), B):
            check_stop()
            part = list(texts[start : start + B])
            token_ids, mask = self._tokenizer.encode(part + [""] * (B - len(part)))
            rows = meshes.put_batch(_own_rows({"ids": token_ids, "mask": mask}), self._mesh)
            embedded = self._texts(variables, rows["ids"], rows["mask"])
            chunks.append(np.asarray(embedded)[: len(part)])
        return np.concatenate(chunks)


def _folded(variables):
    return variables | {"params": gates.fold(variables["params"])}


def _own_rows(batch):
    """Returns this process's rows of a batch that every process has as a whole."""
    count, index = jax.process_count(), jax.process_index()
    return {name: np.split(rows, count)[index] for name, rows in batch.items()}
