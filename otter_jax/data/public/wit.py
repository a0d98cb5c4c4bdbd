"""WIT (Srinivasan et al., arXiv:2103.01913): images of Wikipedia with the texts around them.

ROOT holds `wit_v1.train.all-*.tsv.gz` (10 files, 25 GB; 17 columns with a header) from
github.com/google-research-datasets/wit, and `image_pixels/*.csv.gz` (some 300 GB; "URL <tab> base64
of the image <tab> page"), as Wikimedia publishes them at 300 pixels for the Kaggle competition and
at analytics.wikimedia.org/published/datasets/one-off/caption_competition. Of 37 million rows those
in English are taken, some 5 million. If you download the images by URL instead, you need no layout:
img2dataset's tars are read as they are.

The caption is the first of: reference description (the text below the image), alt text, attribution
description. The OTTER release does not say which of them it takes.

Each worker holds all captions in memory: some 1.5 GB for all of WIT.
"""

import base64
import binascii
import csv
import dataclasses
import functools
import gzip
import pathlib
from collections.abc import Iterator

from otter_jax.data.build.plan import Options, Plan, Record, listed, need_all, pair, pair_features
from otter_jax.data.build.report import Tally
from otter_jax.data.captions import clean
from otter_jax.data.formats.lines import lines_in

LANGUAGE = "en"
TEXTS = (
    "caption_reference_description",
    "caption_alt_text_description",
    "caption_attribution_description",
)


@dataclasses.dataclass(frozen=True)
class Pixels:
    """Reads the images of one file of pixels."""

    texts: tuple[pathlib.Path, ...]
    pixels: pathlib.Path
    size: int

    def read(self, tally: Tally) -> Iterator[Record]:
        """Yields the pairs that have a caption in English."""
        captions = read_captions(self.texts, LANGUAGE)
        for place, line in lines_in(self.pixels):
            url, _, rest = line.partition("\t")
            name = f"{self.pixels.name}: {place} {clean(url)}"
            caption = captions.get(url)
            if caption is None:
                tally.dropped(f"no caption in {LANGUAGE!r}", name)
                continue
            try:
                image = base64.b64decode(rest.partition("\t")[0], validate=True)
            except (binascii.Error, ValueError):
                tally.dropped("row whose image is no base64", name)
                continue
            key = url.rpartition("/")[2]
            record = pair(name, image=image or None, caption=caption, key=key, tally=tally)
            if record:
                yield record


@functools.lru_cache(maxsize=1)
def read_captions(texts: tuple[pathlib.Path, ...], language: str) -> dict[str, str]:
    """Returns {URL of an image: its first caption in this language}."""
    found: dict[str, str] = {}
    for file in texts:
        with gzip.open(file, "rt", encoding="utf-8", errors="replace", newline="") as lines:
            for row in csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE):
                if row.get("language") == language and row.get("image_url"):
                    text = next((row[name] for name in TEXTS if row.get(name)), "")
                    if text.strip():
                        found.setdefault(row["image_url"], text)
    return found


def plan(name: str, root: pathlib.Path, options: Options) -> Plan:
    """Plans the set of the English captions. Raises UserError for files that are missing."""
    get = "Get it as the docstring of otter_jax/data/public/wit.py says"
    texts = tuple(need_all(root, "wit_v1.train*.tsv.gz", f"the texts of WIT. {get}"))
    pixels = need_all(root, "image_pixels/*.csv.gz", f"the images of WIT. {get}")
    units = [Pixels(texts, file, file.stat().st_size) for file in pixels]
    files = listed([*texts, *pixels])
    return Plan(name, pair_features(), {"train": units}, {"train": files}, "WIT", options=options)
