"""Writes what is known of the noise in pairs: a table of all, numbers, and two pictures."""

import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import rich.table
from matplotlib.figure import Figure

from otter_jax.data.source import Source
from otter_jax.predict import sheet
from otter_jax.predict.model import Model
from otter_jax.predict.noise import BINS, HIGH, Judged, Matches, Pairs, noisiest

SHOWN = 60  # of the noisiest pairs, on the sheet
ROWS = 65_536  # of the table in a row group


def write(
    folder: pathlib.Path,
    source: Source,
    model: Model,
    pairs: Pairs,
    found: Sequence[Matches],
    judged: Judged,
) -> None:
    """Writes noise.parquet, noise.json, histogram.png and sheet.png into a folder."""
    order = noisiest(judged)
    write_table(folder / "noise.parquet", pairs, judged, order)
    about = {
        "set": source.name,
        "model": model.name,
        "scale": model.scale,
        "pairs": len(pairs.captions),
        "unreadable": [f"{key}: {why}" for key, why in pairs.unreadable],
        "matches": [_numbers(each) for each in found],
    }
    (folder / "noise.json").write_text(json.dumps(about, indent=2, ensure_ascii=False), "utf-8")
    histogram(found).savefig(folder / "histogram.png", dpi=150)
    cells = _cells(source, model, pairs, judged, order[:SHOWN])
    sheet.draw(
        cells,
        folder / "sheet.png",
        title=f"The noisiest pairs of {source.name}",
        note="above the caption that the picture came with, below the one that fits it better; "
        "bars: their shares in the transport",
    )


def write_table(path: pathlib.Path, pairs: Pairs, judged: Judged, order: np.ndarray) -> None:
    """Writes a Parquet with a row per pair, in this order; see docs/noise.md for its columns."""
    keys, captions = pa.array(pairs.keys), pa.array(pairs.captions)
    writer = None
    for first in range(0, len(order), ROWS):
        rows = order[first : first + ROWS]
        caption, picture = pa.array(judged.caption[rows]), pa.array(judged.picture[rows])
        columns = {
            "key": keys.take(pa.array(rows)),
            "caption": captions.take(pa.array(rows)),
            "score": judged.score[rows],
            "cosine": judged.cosine[rows],
            "own_share": judged.own[rows],
            "trust": judged.trust[rows],
            "better_caption": captions.take(caption),
            "better_caption_key": keys.take(caption),
            "better_caption_share": judged.caption_share[rows],
            "better_picture_key": keys.take(picture),
            "better_picture_share": judged.picture_share[rows],
        }
        table = pa.table(columns)
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    writer.close()


def histogram(found: Sequence[Matches]) -> Figure:
    """Draws how probable own and other captions are, with a logarithmic axis of counts."""
    figure = Figure(figsize=(4.2 * len(found), 3.6), layout="constrained")
    axes = figure.subplots(1, len(found), sharey=True, squeeze=False)[0]
    edges = np.linspace(0, 1, BINS + 1)
    for axis, each in zip(axes, found, strict=True):
        pictures = each.batch * each.batches
        for counts, label, colour in (
            (each.other_counts, "other captions", "#9aa5b1"),
            (each.own_counts, "own caption", "#2a6fdb"),
        ):
            axis.stairs(counts / pictures, edges, fill=True, color=colour, alpha=0.75, label=label)
        axis.set_yscale("log")
        axis.set_title(f"batch {each.batch:,}: own {each.on_diagonal:.2f}", fontsize=11)
        axis.set_xlabel("probability of the match")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("captions per picture")
    axes[0].legend(frameon=False, fontsize=9)
    return figure


def table(found: Sequence[Matches]) -> rich.table.Table:
    """Lays out the analysis, a row per size of batch."""
    out = rich.table.Table(title="Matches of pictures with captions", title_justify="left")
    for heading in (
        "batch",
        "on-diagonal",
        "off-diagonal, mean",
        "largest",
        f"≥ {HIGH}, per picture",
        "effective matches",
    ):
        out.add_column(heading, justify="right")
    for each in found:
        out.add_row(
            f"{each.batch:,}",
            f"{each.on_diagonal:.3f}",
            f"{each.off_mean:.1e}",
            f"{each.off_largest:.3f}",
            f"{each.off_high:.3f}",
            f"{each.effective:.1f}",
        )
    return out


def _numbers(each: Matches) -> dict[str, Any]:
    values = each._asdict()
    return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in values.items()}


def _cells(
    source: Source, model: Model, pairs: Pairs, judged: Judged, order: np.ndarray
) -> Iterator[sheet.Cell]:
    for i in order.tolist():
        better = int(judged.caption[i])
        lines = [
            sheet.Line(pairs.captions[i], f"{judged.own[i]:.2f}", float(judged.own[i])),
            sheet.Line(
                pairs.captions[better],
                f"{judged.caption_share[i]:.2f}",
                float(judged.caption_share[i]),
            ),
        ]
        pixels = model.read(source[int(pairs.numbers[i])]["image"])
        yield sheet.Cell(pixels, pairs.keys[i], lines)
