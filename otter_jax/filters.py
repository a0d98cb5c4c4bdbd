"""What filter attention says about a network: rankings, histograms, pictures."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Float, PyTree, UInt8
from matplotlib.figure import Figure

Path = tuple[str, ...]
Attention = Mapping[Path, Float[np.ndarray, "_"]]  # by the path of a convolution

LAYERS = 4  # whose filters are shown with pictures
FILTERS = 3  # most, and as many least attended, of each
PICTURES = 6  # of each filter
WIDTH = 9.0  # of a figure, inches


class Excitement(NamedTuple):
    """The pictures that excite one filter most.

    Attributes:
      rank: 0 is the most attended filter of its layer, -1 the least.
    """

    layer: Path
    filter: int
    rank: int
    attention: float
    pictures: UInt8[np.ndarray, "P S S 3"]


def ranking(attention: Attention) -> dict[str, dict[str, list]]:
    """Per convolution the numbers of its filters, most attended first, and their attention."""
    ranked = {}
    for path, values in attention.items():
        order = np.argsort(-np.asarray(values), kind="stable")
        ranked["/".join(path)] = {
            "filters": order.tolist(),
            "attention": np.asarray(values)[order].round(5).tolist(),
        }
    return ranked


def extremes(attention: Attention) -> list[dict[str, Any]]:
    """The ends of the ranking, a row a convolution: its most and least attended filters."""

    def some(pairs):
        return ", ".join(f"{number} ({value:.3f})" for number, value in pairs[:FILTERS])

    rows = []
    for path, ranked in ranking(attention).items():
        pairs = list(zip(ranked["filters"], ranked["attention"], strict=True))
        rows.append(
            {
                "convolution": path,
                "filters": len(pairs),
                "most attended (mean |A|)": some(pairs),
                "least attended": some(pairs[::-1]),
            }
        )
    return rows


def telling(attention: Attention) -> list[Path]:
    """The convolutions whose filters differ most in attention, in the order given."""
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
    """For the most and least attended filters of the most telling layers, what they answer to.

    A filter's answer to a picture is the largest value, over all positions, of its convolution.
    """
    layers = telling(attention)

    @jax.jit
    def answers(variables, image):
        found = {}

        def watch(call, args, kwargs, context):
            out = call(*args, **kwargs)
            if context.method_name == "__call__" and context.module.path in layers:
                found["/".join(context.module.path)] = out.max((1, 2))
            return out

        with nn.intercept_methods(watch):
            model.apply(variables, normalise(image), train=False)
        return found

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


def plot_histograms(gates: Mapping[Path, Float[np.ndarray, "..."]]) -> Figure:
    """How the gates A of each convolution are spread, by its path."""
    columns = min(7, len(gates))
    rows = -(-len(gates) // columns)
    figure = Figure(figsize=(WIDTH, 0.5 + 0.85 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, squeeze=False).flat
    everything = np.concatenate([values.ravel() for values in gates.values()])
    low, high = np.quantile(everything, (0.001, 0.999))
    bins = np.linspace(min(low, 0.99), max(high, 1.01), 31)
    for axis in axes:
        axis.axis("off")
    for axis, (path, values) in zip(figure.axes, gates.items(), strict=False):
        axis.axis("on")
        axis.hist(np.clip(values.ravel(), bins[0], bins[-1]), bins=bins, color="C0")
        axis.axvline(1, color="black", linewidth=0.6)
        axis.set_yticks([])
        axis.tick_params(labelsize=5)
        axis.set_title("/".join(path), fontsize=5, pad=2)
    figure.suptitle("The gates A of each convolution (the line: 1, the start)", size=8)
    return figure


def plot_excitement(shown: Sequence[Excitement]) -> Figure:
    """A row of pictures a filter."""
    figure = Figure(figsize=(WIDTH, 0.75 * len(shown)), layout="constrained")
    axes = figure.subplots(len(shown), PICTURES + 1, squeeze=False)
    for row, one in zip(axes, shown, strict=True):
        place = f"most {one.rank + 1}" if one.rank >= 0 else f"least {-one.rank}"
        text = f"{'/'.join(one.layer)}\nfilter {one.filter}, {place}\n|A| = {one.attention:.3f}"
        row[0].text(1, 0.5, text, ha="right", va="center", fontsize=6)
        for axis in row:
            axis.axis("off")
        for axis, picture in zip(row[1:], one.pictures, strict=False):
            axis.imshow(picture)
    return figure


def plot_epochs(epochs: Sequence[Mapping[str, Any]]) -> Figure:
    """Accuracy after each phase."""
    figure = Figure(figsize=(WIDTH, 3), layout="constrained")
    axis = figure.subplots()
    numbers = range(1, len(epochs) + 1)
    for name in ("top-1", "top-3"):
        axis.plot(numbers, [epoch[name] for epoch in epochs], "o-", label=name)
    axis.set_xticks(numbers, [f"{i}\n{e['phase']}" for i, e in zip(numbers, epochs, strict=True)])
    axis.set(xlabel="epoch, and what it trained", ylabel="validation accuracy", ylim=(0, None))
    axis.legend()
    return figure


def plot_pruning(points: Sequence[Mapping[str, Any]]) -> Figure:
    """By the share of filters pruned: accuracy, by what goes first; size and speed."""
    figure = Figure(figsize=(WIDTH, 3), layout="constrained")
    accuracy, cost = figure.subplots(1, 2)
    shares = [point["share"] for point in points]
    for key, label in (
        ("top-1", "least attention first"),
        ("magnitude", "smallest kernel first"),
        ("random", "at random"),
    ):
        accuracy.plot(shares, [point[key] for point in points], "o-", label=label)
    size = [point["values"] / points[0]["values"] for point in points]
    cost.plot(shares, size, "o-", label="values")
    cost.plot(shares, [point["speed"] for point in points], "o-", label="speed here")
    accuracy.set(ylabel="validation top-1")
    cost.set(ylabel="the whole network = 1")
    for axis in (accuracy, cost):
        axis.set(xlabel="share of the filters pruned", ylim=(0, None))
        axis.legend()
    return figure
