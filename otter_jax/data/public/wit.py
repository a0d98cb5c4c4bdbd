"""WIT (Srinivasan et al., arXiv:2103.01913): images of Wikipedia with the texts around them.

ROOT holds `wit_v1.train.all-*.tsv.gz` (10 files, 25 GB; 17 columns with a header) from
github.com/google-research-datasets/wit, and `image_pixels/*.csv.gz` (some 300 GB; "URL <tab> base64
of the image <tab> page"), as Wikimedia publishes them at 300 pixels for the Kaggle competition and
at analytics.wikimedia.org/published/datasets/one-off/caption_competition. Of 37 million rows those
in English are taken, some 5 million. If you download the images by URL instead, you need no layout:
img2dataset's tars are read as they are.

The caption is the first of: reference description (the text below the image), alt text, attribution
description. The OTTER release does not say which of them it takes. Of an image on several pages the
first text is taken, and the further ones are counted.

Each worker holds all captions in memory: some 1.5 GB for all of WIT.
"""

import array
import base64
import binascii
import collections
import contextlib
import csv
import dataclasses
import functools
import gzip
import pathlib
import zlib
from collections.abc import Iterator

import numpy as np

from otter_jax.data.build.plan import (
    Options,
    Plan,
    Record,
    fingerprint,
    listed,
    need_all,
    pair,
    pair_features,
)
from otter_jax.data.build.report import Tally
from otter_jax.data.captions import clean
from otter_jax.data.formats.lines import lines_in
from otter_jax.errors import UserError

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
        texts = read_texts(self.texts, LANGUAGE)
        for place, line in lines_in(self.pixels):
            url, _, rest = line.partition("\t")
            name = f"{self.pixels.name}: {place} {clean(url)}"
            caption = texts.captions.get(url)
            if caption is None:
                known = url in texts
                why = f"no caption in {LANGUAGE!r}" if known else "image without a row of text"
                tally.dropped(why, name)
                continue
            try:
                image = base64.b64decode(rest.partition("\t")[0], validate=True)
            except (binascii.Error, ValueError):
                tally.dropped("row whose image is no base64", name)
                continue
            key = url.rpartition("/")[2]
            record = pair(name, image=image or None, caption=caption, key=key, tally=tally)
            if record:
                for _ in range(texts.further.get(url, 0)):
                    tally.changed(f"further text in {LANGUAGE!r} of one image, left out", name)
                yield record


class Texts:
    """Holds the texts of images by the images' URLs.

    Attributes:
      captions: the first text in the language of each image that has one.
      further: number of further texts in it, of images that have more than one.
    """

    def __init__(self, language: str):
        self._language = language
        self.captions: dict[str, str] = {}
        self.further: collections.Counter[str] = collections.Counter()
        self._others = np.zeros(0, np.int64)  # hashes of URLs without such a text: 8 bytes each

    def __contains__(self, url: str) -> bool:
        """Tells whether there is a row for this URL, in whatever language."""
        wanted = fingerprint(url.encode("utf-8", "replace"))
        place = int(np.searchsorted(self._others, wanted))
        there = place < len(self._others) and self._others[place] == wanted
        return url in self.captions or bool(there)

    def read(self, file: pathlib.Path) -> None:
        """Adds the rows of a file."""
        others = array.array("q")
        with open_rows(file) as rows:
            for row in rows:
                url, text = row.get("image_url"), ""
                if not url:
                    continue
                if row.get("language") == self._language:
                    text = next((row[name] for name in TEXTS if row.get(name)), "").strip()
                if not text:
                    others.append(fingerprint(url.encode("utf-8", "replace")))
                elif self.captions.setdefault(url, text) is not text:
                    self.further[url] += 1
        self._others = np.union1d(self._others, np.frombuffer(others, np.int64))


@contextlib.contextmanager
def open_rows(file: pathlib.Path) -> Iterator[csv.DictReader]:
    """Opens a file of texts to read its rows by the names in its header."""
    with gzip.open(file, "rt", encoding="utf-8-sig", errors="replace", newline="") as lines:
        yield csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)


@functools.lru_cache(maxsize=1)
def read_texts(files: tuple[pathlib.Path, ...], language: str) -> Texts:
    """Reads the texts in all files, once per process.

    Raises UserError for a file that is broken: without its rest, images would lack their texts.
    """
    found = Texts(language)
    for file in files:
        try:
            found.read(file)
        except (OSError, EOFError, zlib.error, csv.Error) as error:
            raise UserError(f"{file} cannot be read to its end: {error}. Get it again.") from error
    return found


def plan(name: str, root: pathlib.Path, options: Options) -> Plan:
    """Plans the set of the English captions. Raises UserError for files that are missing."""
    get = "Get it as the docstring of otter_jax/data/public/wit.py says"
    texts = tuple(need_all(root, "wit_v1.train*.tsv.gz", f"the texts of WIT. {get}"))
    for file in texts:
        with open_rows(file) as rows:
            missing = {"language", "image_url", *TEXTS} - set(rows.fieldnames or ())
        if missing:
            raise UserError(
                f"{file} has no column {', '.join(sorted(missing))} in its first line. {get}."
            )
    pixels = need_all(root, "image_pixels/*.csv.gz", f"the images of WIT. {get}")
    units = [Pixels(texts, file, file.stat().st_size) for file in pixels]
    files = listed([*texts, *pixels])
    return Plan(name, pair_features(), {"train": units}, {"train": files}, "WIT", options=options)
