"""Conceptual Captions 3M (Sharma et al., ACL 2018): 3,318,333 web images with their alt texts.

Google gives the captions and URLs: `Train_GCC-training.tsv` (some 500 MB, "CAPTION <tab> URL" and
no header) from ai.google.com/research/ConceptualCaptions/download. Everyone downloads the images
themselves; many are gone: the OTTER authors had 2,911,810 readable ones, some 150 GB as they are,
about 50 GB at a shorter side of 256 pixels. The layouts of two downloaders are read:

- github.com/igorbrigadir/DownloadConceptualCaptions, as the authors used: ROOT holds the captions,
  `downloaded_training_report.tsv` (unpacked, where it came as .gz) and the folder `training/` with
  the files that the report names;
- img2dataset's tars: give them to prepare as they are, without a layout.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Iterator

import numpy as np

from otter_jax.data.build.plan import (
    Options,
    Plan,
    Record,
    Span,
    fingerprint,
    listed,
    need,
    pair,
    pair_features,
)
from otter_jax.data.build.report import Tally
from otter_jax.data.captions import clean
from otter_jax.data.formats.lines import byte_ranges, fields_of, lines_in

CAPTIONS = ("Train_GCC-training.tsv", "Train-GCC-training.tsv")
REPORT = ("downloaded_training_report.tsv",)
FOLDER = "training/"  # the beginning of every file name in the report


@dataclasses.dataclass(frozen=True)
class Captions(Span):
    """Reads the captions from byte `start` to `stop`."""

    captions: pathlib.Path
    report: pathlib.Path

    def read(self, tally: Tally) -> Iterator[Record]:
        """Yields the pairs whose image was downloaded."""
        files = Downloaded.of(self.report)
        for place, line in lines_in(self.captions, self.start, self.stop):
            fields = fields_of(line)
            name = f"{self.captions.name}: {place}"
            if len(fields) != 2:
                tally.dropped("row that is no caption and URL", name)
                continue
            caption, url = fields
            file = files.named(url)
            if file is None:
                tally.dropped("image not downloaded", f"{name} {clean(url)}")
                continue
            image = self.report.parent / file
            record = pair(name, image=image, caption=caption, key=file, tally=tally)
            if record:
                yield record


class Downloaded:
    """Finds the file that holds the image of a URL; takes 16 bytes of memory per image."""

    def __init__(self, report: pathlib.Path):
        self._report = report
        hashes, offsets = [], []
        for place, line in lines_in(report):
            fields = fields_of(line)
            url = next((field for field in fields if field.startswith("http")), None)
            if url and any(field.startswith(FOLDER) for field in fields):
                hashes.append(_hash(url))
                offsets.append(int(place.removeprefix("byte ")))
        order = np.argsort(np.array(hashes, np.int64), kind="stable")
        self._hashes = np.array(hashes, np.int64)[order]
        self._offsets = np.array(offsets, np.int64)[order]

    @classmethod
    @functools.lru_cache(maxsize=1)
    def of(cls, report: pathlib.Path) -> "Downloaded":
        """Reads a downloader's report, once per process."""
        return cls(report)

    def named(self, url: str) -> str | None:
        """Returns the file's path in the report's folder; None if it was not downloaded."""
        wanted = _hash(url)
        place = int(np.searchsorted(self._hashes, wanted))
        if place == len(self._hashes) or self._hashes[place] != wanted:
            return None
        start = int(self._offsets[place])
        _, line = next(lines_in(self._report, start))
        return next(field for field in fields_of(line) if field.startswith(FOLDER))


def plan(name: str, root: pathlib.Path, options: Options) -> Plan:
    """Plans the set from the authors' downloader. Raises UserError for files that are missing."""
    get = "Get it as the docstring of otter_jax/data/public/cc3m.py says"
    captions = need(root, CAPTIONS, f"the captions of Conceptual Captions. {get}")
    report = need(root, REPORT, f"the downloader's report. {get}")
    units = [Captions(*span, captions, report) for span in byte_ranges(captions)]
    files = listed([captions, report])
    return Plan(name, pair_features(), {"train": units}, {"train": files}, "CC3M", options=options)


def _hash(url: str) -> int:
    return fingerprint(url.encode("utf-8", "replace"))
