"""Makes a data set with a report beside it: report.json for programs, report.html for people."""

import io
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import rich.console
from jaxtyping import Int32
from matplotlib.figure import Figure

from otter_jax import files
from otter_jax.data.build.builder import check_options
from otter_jax.data.build.plan import Plan
from otter_jax.data.build.report import NAMED, read_report, table, write_report
from otter_jax.data.captions import Tokenizer
from otter_jax.data.ensure import make
from otter_jax.data.source import Source, open_dataset
from otter_jax.report import page
from otter_jax.report.pictures import SIDE, small
from otter_jax.run.console import duration

EVERY = 10.0  # seconds between lines of progress
SAMPLE = 20_000  # captions whose tokens are counted, evenly over the set
SHOWN = 24  # pictures in the report
TEXT = 300  # characters of a caption below one


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
        if any("exif" not in about["options"] for about in read_report(home).values()):
            console.print(
                "It was made before pictures were turned upright by their EXIF orientation: those "
                "that were resized lie as they did. To mend that, remove the folder."
            )
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
    """Adds the captions' lengths in tokens to report.json, and writes report.html, one file."""
    report = read_report(home)
    parts: list[tuple[str, page.Part]] = []
    for split, about in report.items():
        source = open_dataset(data_dir, name, split)
        parts.append((split, table({split: about}).splitlines()[0]))
        wrong = [
            {"": what, "records": entry["count"], "why": why, "first": "; ".join(entry["first"])}
            for what in ("dropped", "changed")
            for why, entry in about[what].items()
        ]
        parts += [("Dropped and changed", wrong)] if wrong else []
        parts.append(
            ("Shorter side of the images as they came, pixels", [about["shorter_side"]]),
        )
        if "caption" in source.features:
            captions = [source[i]["caption"] for i in source.sample(SAMPLE)]
            lengths = tokenizer.lengths(captions)
            about["tokens"] = token_counts(captions, lengths, tokenizer)
            rows = {what: n for what, n in about["tokens"].items() if what != "unknown_first"}
            parts.append(("Tokens of a caption", [rows]))
            parts.append(("Captions by their tokens", plot_lengths(lengths, tokenizer.max_tokens)))
        parts.append((f"{about['records'].capitalize()} of the set", some_of(source)))
    write_report(home, report)
    files.write_text(home / "report.html", page.page(f"The data set {name}", parts))


def token_counts(
    captions: Sequence[str], lengths: Int32[np.ndarray, " N"], tokenizer: Tokenizer
) -> dict[str, Any]:
    """Returns how long captions are in tokens, how many are cut, and how many it does not know.

    A caption counts as unknown if it gives special tokens and the one for unknown words alone.
    """
    unknown = [captions[i] for i in np.flatnonzero(tokenizer.known(captions) == 0)]
    return {
        "captions": len(lengths),
        "mean": round(float(lengths.mean()), 2),
        **{f"{q}%": int(np.quantile(lengths, q / 100)) for q in (50, 90, 95, 99, 100)},
        "max_tokens": tokenizer.max_tokens,
        "cut": round(float((lengths > tokenizer.max_tokens).mean()), 5),
        "unknown": len(unknown),
        "unknown_first": unknown[:NAMED],
    }


def tokens_line(report: dict) -> str:
    """Returns a line per split: how long its captions are in tokens, and how many are cut."""
    counted = {split: about["tokens"] for split, about in report.items() if "tokens" in about}
    return "\n".join(_tokens(split, tokens) for split, tokens in counted.items())


def _tokens(split: str, tokens: Mapping[str, Any]) -> str:
    line = (
        f"{split}: captions have {tokens['mean']} tokens on average, 95 % at most "
        f"{tokens['95%']}; {tokens['cut']:.2%} have more than {tokens['max_tokens']} and are cut"
    )
    if tokens["unknown"]:
        some = ", ".join(repr(text[:40]) for text in tokens["unknown_first"][:3])
        line += (
            f"; {tokens['unknown']:,} of {tokens['captions']:,} hold nothing that the tokenizer "
            f"knows, such as {some}"
        )
    return line


def some_of(source: Source) -> list[page.Shown]:
    """Returns small pictures, evenly over the set, each with its caption, labels or key."""
    return [
        page.Shown(small(source[i]["image"], SIDE), text_of(source, i))
        for i in source.sample(SHOWN)
    ]


def text_of(source: Source, index: int) -> str:
    """Returns the beginning of a record's caption, else its labels, else its key."""
    record = source[index]
    text = record.get("caption", "")
    for feature in ("label", "labels"):
        names = source.classes(feature) if feature in source.features else None
        if names:
            text = ", ".join(names[n] for n in np.atleast_1d(record[feature]) if n >= 0)
    text = text or source.key(index)
    return text[:TEXT] + "..." * (len(text) > TEXT)


def plot_lengths(lengths: Int32[np.ndarray, " N"], max_tokens: int) -> bytes:
    """Plots how many tokens captions have, and where they are cut; returns a PNG."""
    figure = Figure(figsize=(7, 2.6), layout="constrained")
    axis = figure.subplots()
    last = int(max(lengths.max(), max_tokens)) + 1
    axis.hist(lengths.clip(0, 4 * max_tokens), bins=np.arange(min(last, 4 * max_tokens) + 2) - 0.5)
    axis.axvline(max_tokens, color="black", linewidth=0.8, label=f"cut at {max_tokens}")
    axis.set(xlabel="tokens, special ones included", ylabel="captions")
    axis.legend()
    file = io.BytesIO()
    figure.savefig(file, dpi=120)
    return file.getvalue()
