"""Writes the report page of a transfer: accuracy, gates, pruning, and pictures per filter."""

import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import rich.console
from jaxtyping import Float, PyTree
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from otter_jax import files
from otter_jax import mesh as meshes
from otter_jax.report import page
from otter_jax.run import cluster, directory
from otter_jax.run.console import progress_bar
from otter_jax.transfer import phases, pictures, pruning
from otter_jax.transfer.network import attention_of, gates_of, trained
from otter_jax.transfer.pictures import FILTERS, PICTURES, Attention, Excitement, Path, some_images
from otter_jax.transfer.pruning import rankings
from otter_jax.transfer.validation import Validation, normaliser

WIDTH = 9.0  # of a figure, inches
SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7)  # of the filters, pruned for the report


def ranking(attention: Attention) -> dict[str, dict[str, list]]:
    """Returns the filters of each convolution, most attended first, and their attention."""
    ranked = {}
    for path, values in attention.items():
        order = np.argsort(-np.asarray(values), kind="stable")
        ranked["/".join(path)] = {
            "filters": order.tolist(),
            "attention": np.asarray(values)[order].round(5).tolist(),
        }
    return ranked


def extremes(attention: Attention) -> list[dict[str, Any]]:
    """Returns a table's rows, one per convolution: its most and least attended filters."""

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


def plot_histograms(gates: Mapping[Path, Float[np.ndarray, "..."]]) -> Figure:
    """Plots a histogram of the gates A of each convolution."""
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
    """Plots one row of pictures per filter."""
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


def epochs_of(workdir: pathlib.Path) -> Iterator[dict[str, Any]]:
    """Yields the results of each epoch; damaged and other files are passed over."""
    yield from filter(None, (each.read() for each in directory.evaluations(workdir)))


def plot_epochs(epochs: Sequence[Mapping[str, Any]]) -> Figure:
    """Plots the accuracy after each phase."""
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
    """Plots accuracy, size and speed over the share of filters pruned."""
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


def write(
    config: ConfigDict,
    workdir: pathlib.Path,
    validate: Validation,
    *,
    console: rich.console.Console,
) -> None:
    """Writes WORKDIR/report.html with its pictures in report/, filters.json and pruning.json.

    Does nothing if the report exists. All processes call it, and help to measure.
    """
    if cluster.stack(np.array((workdir / "report.html").exists()))[0]:
        return
    console.print(f"Measuring for the report, {workdir / 'report.html'}")
    network = trained(config, workdir, len(validate.data.names))
    model, params, variables = network.model, network.params, network.folded()
    epochs = list(epochs_of(workdir))
    figures = {"Accuracy": plot_epochs(epochs)}
    groups = phases.sizes(params, model)
    used = phases.groups_of(phases.parse(config.phases))
    parts: list[tuple[str, Any]] = [
        ("Epochs", epochs),
        ("What was trained", [{"group": phases.GROUPS[g], "values": groups[g]} for g in used]),
    ]
    attention = attention_of(params)
    results: dict[str, Any] = {}
    if attention:
        results["filters.json"] = ranking(attention)
        parts.append(("The filters ranked (all of them: filters.json)", extremes(attention)))
        figures["Gates"] = plot_histograms(gates_of(params))
        points = prune_points(config, model, variables, attention, validate, console)
        results["pruning.json"] = points
        if points:
            figures["Pruning"] = plot_pruning(points)
            parts.append(("Pruning", points))
        shown = pictures.excite(
            model,
            variables,
            attention,
            some_images(config, validate.data),
            normalise=normaliser(config),
            batch_size=config.eval.batch_size,
        )
        figures["What excites the most and least attended filters"] = plot_excitement(shown)
    if cluster.is_first():  # the others have only helped to measure
        for name, result in results.items():
            directory.write_json(workdir / name, result)
        title = f"Transfer of {config.model.arch} to {config.data.name}, {config.phases}"
        _write_page(workdir, title, parts, figures)
    console.print(f"The report is in {workdir / 'report.html'}.")


def _write_page(
    workdir: pathlib.Path,
    title: str,
    parts: list[tuple[str, page.Part]],
    figures: Mapping[str, Figure],
) -> None:
    folder = workdir / "report"
    folder.mkdir(exist_ok=True)
    drawn = []
    for number, (heading, figure) in enumerate(figures.items()):
        figure.savefig(folder / f"{number}.png", dpi=150)
        drawn.append((heading, pathlib.Path("report") / f"{number}.png"))
    files.write_text(workdir / "report.html", page.page(title, [*parts, *drawn]))


def prune_points(
    config: ConfigDict,
    model: nn.Module,
    variables: PyTree,
    attention: Mapping[pictures.Path, np.ndarray],
    validate: Validation,
    console: rich.console.Console,
) -> list[dict[str, Any]]:
    """Measures accuracy, size and speed of a network for each share of its filters pruned.

    Nothing is trained in between. For comparison with the ranking by attention, "magnitude" is the
    top-1 accuracy when the filters with the smallest folded kernels go, "random" when as many go at
    random. `values` counts those of the smaller network; `speed` is how many times as fast it is as
    the whole one, on this machine and a training batch.
    """
    if not pruning.norms(model):
        return []
    images = some_images(config, validate.data)[: config.train.batch_size]
    images = normaliser(config)(images)
    whole = pruning.forward(model, variables, images)

    def measure(keep):
        masked = meshes.put_whole(pruning.mask(variables, keep, model), validate.mesh)
        return validate(masked["params"], masked["batch_stats"])

    by = rankings(model, attention, variables["params"], config.seed)
    points = []
    with progress_bar(console) as bar:
        for share in bar.track((0.0, *SHARES), description="pruning"):
            keeps = {
                name: pruning.lowest(ranked, share, model, variables["params"])
                for name, ranked in by.items()
            }
            measured = {name: measure(keep) for name, keep in keeps.items()}
            small, fewer = pruning.smaller(model, variables, keeps["attention"])
            points.append(
                {
                    "share": share,
                    **measured["attention"],
                    "magnitude": measured["magnitude"]["top-1"],
                    "random": measured["random"]["top-1"],
                    "values": sum(leaf.size for leaf in jax.tree.leaves(fewer["params"])),
                    "speed": pruning.faster(whole, pruning.forward(small, fewer, images)),
                }
            )
    return points
