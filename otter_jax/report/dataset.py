"""The report of a data set."""

import pathlib

import numpy as np
from matplotlib.figure import Figure

from otter_jax.data import images
from otter_jax.data.build.report import read_report, table, write_report
from otter_jax.data.captions import Tokenizer
from otter_jax.data.source import Source, open_dataset
from otter_jax.report import page
from otter_jax.run import directory

SAMPLE = 20_000  # captions whose tokens are counted, evenly over the set


SHOWN = (4, 6)  # rows and columns of pairs in the report


def write_report_page(home: pathlib.Path, data_dir: str, name: str, tokenizer: Tokenizer) -> None:
    """Adds what the captions are in tokens to report.json, and writes report.html of all."""
    written = read_report(home)
    parts: list[tuple[str, page.Part]] = []
    for split, part in written.items():
        source = open_dataset(data_dir, name, split)
        folder = home / "report"
        folder.mkdir(exist_ok=True)
        figures = {f"{part['records'].capitalize()} of the set": plot_some(source)}
        if "caption" in source.features:
            lengths = tokenizer.lengths([source[i]["caption"] for i in source.sample(SAMPLE)])
            part["tokens"] = {
                "captions": len(lengths),
                "mean": round(float(lengths.mean()), 2),
                **{f"{q}%": int(np.quantile(lengths, q / 100)) for q in (50, 90, 95, 99, 100)},
                "max_tokens": tokenizer.max_tokens,
                "truncated": round(float((lengths > tokenizer.max_tokens).mean()), 5),
            }
            figures["Tokens of a caption"] = plot_lengths(lengths, tokenizer.max_tokens)
        parts.append((split, table({split: part}).splitlines()[0]))
        wrong = [
            {"": what, "records": entry["count"], "why": why, "first": "; ".join(entry["first"])}
            for what in ("dropped", "changed")
            for why, entry in part[what].items()
        ]
        parts += [("Dropped and changed", wrong)] if wrong else []
        parts += [
            ("Shorter side of the images as they came, pixels", [part["shorter_side"]]),
            *([("Tokens", [part["tokens"]])] if "tokens" in part else []),
        ]
        for heading, figure in figures.items():
            path = pathlib.Path("report") / f"{split}_{heading.split()[0].lower()}.png"
            figure.savefig(home / path, dpi=120)
            parts.append((heading, path))
    write_report(home, written)
    directory.write_text(home / "report.html", page.page(f"The data set {name}", parts))


def tokens_line(report: dict) -> str:
    """What the captions are in tokens, a line a split."""
    return "\n".join(
        f"{split}: captions have {part['tokens']['mean']} tokens on average, 95 % at most "
        f"{part['tokens']['95%']}; {part['tokens']['truncated']:.2%} have more than "
        f"{part['tokens']['max_tokens']} and are cut"
        for split, part in write_report_page.items()
        if "tokens" in part
    )


def plot_some(source: Source) -> Figure:
    """Some pictures with their captions or labels, evenly over the set."""
    rows, columns = SHOWN
    figure = Figure(figsize=(1.6 * columns, 1.9 * rows), layout="constrained")
    axes = figure.subplots(rows, columns).flat
    for axis in axes:
        axis.axis("off")
    for axis, i in zip(figure.axes, source.sample(rows * columns), strict=False):
        found = source[i]
        axis.imshow(images.decode(found["image"]))
        names = source.classes("labels") if "labels" in source.features else None
        text = ", ".join(names[n] for n in found["labels"]) if names else found["caption"]
        text = text.replace("$", r"\$")  # which would begin a formula
        axis.set_title(text[:60] + "..." * (len(text) > 60), fontsize=5, wrap=True)
    return figure


def plot_lengths(lengths: np.ndarray, max_tokens: int) -> Figure:
    """How many tokens captions have, and where they are cut."""
    figure = Figure(figsize=(7, 2.6), layout="constrained")
    axis = figure.subplots()
    last = int(max(lengths.max(), max_tokens)) + 1
    axis.hist(lengths.clip(0, 4 * max_tokens), bins=np.arange(min(last, 4 * max_tokens) + 2) - 0.5)
    axis.axvline(max_tokens, color="black", linewidth=0.8, label=f"cut at {max_tokens}")
    axis.set(xlabel="tokens, special ones included", ylabel="captions")
    axis.legend()
    return figure
