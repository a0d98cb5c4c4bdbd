"""Finds the pictures that excite the most and the least attended filters."""

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from flax import traverse_util
from jaxtyping import PyTree, UInt8
from ml_collections import ConfigDict

from otter_jax.run import batches
from otter_jax.transfer.labelled import Labelled
from otter_jax.transfer.pruning import Attention, Path

LAYERS = 4  # whose filters are shown with pictures
FILTERS = 3  # per layer, of the most attended and of the least attended
PICTURES = 6  # per filter
SHOWN = 512  # pictures to choose from, at most


class Excitement(NamedTuple):
    """Holds the pictures that excite one filter most.

    Attributes:
      rank: 0 is the most attended filter of its layer, -1 the least.
    """

    layer: Path
    filter: int
    rank: int
    attention: float
    pictures: UInt8[np.ndarray, "P S S 3"]


def telling(attention: Attention) -> list[Path]:
    """Returns the convolutions whose attention varies most, in the order given."""
    spread = sorted(attention, key=lambda path: -float(np.std(attention[path])))
    return [path for path in attention if path in spread[:LAYERS]]


def excite(
    model: nn.Module,
    variables: PyTree,
    attention: Attention,
    images: UInt8[np.ndarray, "N S S 3"],
    *,
    normalise: Callable[[Any], Any],
    batch_size: int,
) -> list[Excitement]:
    """Finds the pictures that excite the filters of the layers whose attention varies most.

    Per layer, these are the most and the least attended filters. A picture excites a filter by the
    largest value, over all positions, of the filter's convolution.
    """
    layers = telling(attention)

    def of_layer(module, method):
        return method == "__call__" and module.path in layers

    @jax.jit
    def answers(variables, image):
        _, captured = model.apply(
            variables, normalise(image), train=False,
            capture_intermediates=of_layer, mutable=["intermediates"],
        )  # fmt: skip
        outputs = traverse_util.flatten_dict(captured["intermediates"])
        return {"/".join(path): outputs[*path, "__call__"][0].max((1, 2)) for path in layers}

    parts = []
    for start in range(0, len(images), batch_size):
        part = images[start : start + batch_size]
        padded = np.concatenate([part, np.zeros((batch_size - len(part), *part.shape[1:]), "u1")])
        parts.append(answers(variables, padded))
    whole = jax.tree.map(lambda *xs: np.concatenate(xs)[: len(images)], *parts)
    shown = []
    for layer in layers:
        order = np.argsort(-attention[layer], kind="stable")
        few = min(FILTERS, len(order) // 2)
        for rank in (*range(few), *range(-few, 0)):
            number = int(order[rank])
            best = np.argsort(-whole["/".join(layer)][:, number], kind="stable")[:PICTURES]
            value = float(attention[layer][number])
            shown.append(Excitement(layer, number, rank, value, images[best]))
    return shown


def some_images(config: ConfigDict, data: Labelled) -> UInt8[np.ndarray, "N S S 3"]:
    """Reads the first pictures of a split, cropped as in validation; the same in all processes."""
    found = []
    with contextlib.closing(batches.evaluation(config, data.source, shared=False)) as reader:
        for batch in reader:
            found += list(batch["image"][batch["valid"]])
            if len(found) >= SHOWN:
                break
    return np.stack(found[:SHOWN])
