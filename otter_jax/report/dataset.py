"""Makes a data set with a report beside it: report.json for programs, report.html for people."""

import pathlib
import time

import numpy as np
import rich.console
from jaxtyping import Int32
from matplotlib.figure import Figure

from otter_jax.data import images
from otter_jax.data.build.builder import check_options
from otter_jax.data.build.plan import Plan
from otter_jax.data.build.report import read_report, table, write_report
from otter_jax.data.captions import Tokenizer
from otter_jax.data.ensure import make
from otter_jax.data.source import Source, open_dataset
from otter_jax.report import page
from otter_jax.run import directory
from otter_jax.run.console import duration

EVERY = 10.0  # seconds between lines of progress
SAMPLE = 20_000  # captions whose tokens are counted, evenly over the set
SHOWN = (4, 6)  # rows and columns of pictures in the report


def make_with_report(
    plan: Plan,
    data_dir: str,
    *,
    tokenizer: Tokenizer,
    workers: int,
    beam: str = "",
    console: rich.console.Console,
) -> pathlib.Path:
    """Makes the set and its report if they are missing, and returns the folder of the set.

    Args:
      plan: of the set.
      data_dir: the folder of all data sets.
      tokenizer: counts the tokens of the captions.
      workers: processes that read the source.
      beam: options of Apache Beam, which then makes the set; "" for none.
      console: where progress is printed.

    Raises:
      UserError: the existing set was made of other files or with other options; and all that
        `ensure.make` raises.
    """
    home = make(plan, data_dir, workers=workers, beam=beam, done=Progress(plan, console))
    check_options(home, plan.options)
    if not (home / "report.html").exists():
        write_page(home, data_dir, plan.name, tokenizer)
        console.print(tokens_line(read_report(home)))
        console.print(f"The set {plan.name} is ready; its report: {home / 'report.html'}")
    else:
        console.print(f"The set {plan.name} is in {home} already; nothing was done.")
    return home


class Progress:
    """Prints every few seconds how much of a plan is read, and how long the rest will take."""

    def __init__(self, plan: Plan, console: rich.console.Console):
        """Starts the clock."""
        self._console, self._records = console, plan.records
        self._total = sum(unit.size for units in plan.units.values() for unit in units)
        self._began = self._said = time.monotonic()
        self._found = self._read = self._count = 0

    def __call__(self, size: int, records: int | None) -> None:
        """Counts so many records of `size`; None if an earlier start has made them."""
        if records is not None:
            self._read, self._count = self._read + size, self._count + records
        else:
            self._found += size
        now = time.monotonic()
        if now - self._said <= EVERY or not self._count:
            return
        self._said, passed = now, now - self._began
        left = ""
        if self._read:  # some units do not tell how far they are read
            rest = self._total - self._found - self._read
            left = f" | left {duration(passed * rest / self._read)}"
        self._console.print(
            f"{(self._found + self._read) / self._total:.0%} | "
            f"{self._count:,} {self._records} checked, {self._count / passed:.0f}/s{left}"
        )


def write_page(home: pathlib.Path, data_dir: str, name: str, tokenizer: Tokenizer) -> None:
    """Adds the captions' lengths in tokens to report.json, and writes report.html."""
    report = read_report(home)
    parts: list[tuple[str, page.Part]] = []
    (home / "report").mkdir(exist_ok=True)
    for split, about in report.items():
        source = open_dataset(data_dir, name, split)
        figures = {f"{about['records'].capitalize()} of the set": plot_some(source)}
        if "caption" in source.features:
            lengths = tokenizer.lengths([source[i]["caption"] for i in source.sample(SAMPLE)])
            about["tokens"] = {
                "captions": len(lengths),
                "mean": round(float(lengths.mean()), 2),
                **{f"{q}%": int(np.quantile(lengths, q / 100)) for q in (50, 90, 95, 99, 100)},
                "max_tokens": tokenizer.max_tokens,
                "cut": round(float((lengths > tokenizer.max_tokens).mean()), 5),
            }
            figures["Tokens of a caption"] = plot_lengths(lengths, tokenizer.max_tokens)
        parts.append((split, table({split: about}).splitlines()[0]))
        wrong = [
            {"": what, "records": entry["count"], "why": why, "first": "; ".join(entry["first"])}
            for what in ("dropped", "changed")
            for why, entry in about[what].items()
        ]
        parts += [("Dropped and changed", wrong)] if wrong else []
        parts += [
            ("Shorter side of the images as they came, pixels", [about["shorter_side"]]),
            *([("Tokens", [about["tokens"]])] if "tokens" in about else []),
        ]
        for heading, figure in figures.items():
            path = pathlib.Path("report") / f"{split}_{heading.split()[0].lower()}.png"
            figure.savefig(home / path, dpi=120)
            parts.append((heading, path))
    write_report(home, report)
    directory.write_text(home / "report.html", page.page(f"The data set {name}", parts))


def tokens_line(report: dict) -> str:
    """Returns a line per split: how long its captions are in tokens, and how many are cut."""
    return "\n".join(
        f"{split}: captions have {about['tokens']['mean']} tokens on average, 95 % at most "
        f"{about['tokens']['95%']}; {about['tokens']['cut']:.2%} have more than "
        f"{about['tokens']['max_tokens']} and are cut"
        for split, about in report.items()
        if "tokens" in about
    )


def plot_some(source: Source) -> Figure:
    """Plots some pictures, evenly over the set, with their captions or labels."""
    rows, columns = SHOWN
    figure = Figure(figsize=(1.6 * columns, 1.9 * rows), layout="constrained")
    for axis in figure.subplots(rows, columns).flat:
        axis.axis("off")
    for axis, i in zip(figure.axes, source.sample(rows * columns), strict=False):
        record = source[i]
        axis.imshow(images.decode(record["image"]))
        names = source.classes("labels") if "labels" in source.features else None
        text = ", ".join(names[n] for n in record["labels"]) if names else record["caption"]
        text = text.replace("$", r"\$")  # which would begin a formula
        axis.set_title(text[:60] + "..." * (len(text) > 60), fontsize=5, wrap=True)
    return figure


def plot_lengths(lengths: Int32[np.ndarray, " N"], max_tokens: int) -> Figure:
    """Plots how many tokens captions have, and where they are cut."""
    figure = Figure(figsize=(7, 2.6), layout="constrained")
    axis = figure.subplots()
    last = int(max(lengths.max(), max_tokens)) + 1
    axis.hist(lengths.clip(0, 4 * max_tokens), bins=np.arange(min(last, 4 * max_tokens) + 2) - 0.5)
    axis.axvline(max_tokens, color="black", linewidth=0.8, label=f"cut at {max_tokens}")
    axis.set(xlabel="tokens, special ones included", ylabel="captions")
    axis.legend()
    return figure
