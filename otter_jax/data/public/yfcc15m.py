"""YFCC15M: the 14,829,396 photographs of YFCC100M (Thomee et al., 2016) that CLIP's authors chose.

ROOT holds

- `yfcc100m_subset_data.tsv` (some 800 MB; "line number <tab> photo <tab> hash"), unpacked from
  openaipublic.azureedge.net/clip/data/yfcc100m_subset_data.tsv.bz2;
- `yfcc100m_dataset` (some 45 GB; 100 million lines whose first fields are line number, photo, hash
  and whose 9th and 10th are title and description), the metadata of YFCC100M from
  multimedia-commons on AWS;
- `data/images/abc/def/abcdef....jpg`, the photographs by their hash as they lie there: some 1.5 TB
  for these 15 million.

A caption is "TITLE. DESCRIPTION", as the OTTER release reads it: URL escapes undone (+ is a space)
and markup removed. Three things differ: where one of the two is empty the other stands alone, while
the release leaves ". "; %2B is a +, there a space; and HTML entities (&amp;) are undone.
"""

import dataclasses
import functools
import html
import itertools
import pathlib
import re
import urllib.parse
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool

from otter_jax.data.build.plan import Options, Plan, Record, Span, listed, need, pair, pair_features
from otter_jax.data.build.report import Tally
from otter_jax.data.captions import clean
from otter_jax.data.formats.lines import byte_ranges, lines_in
from otter_jax.errors import UserError

SUBSET, METADATA = ("yfcc100m_subset_data.tsv",), ("yfcc100m_dataset", "yfcc100m_dataset.txt")
TITLE, DESCRIPTION = 8, 9  # numbers of these fields, from 0
LOOKED_AT = 1_000  # lines of the subset, before all are read
RANGE = 64 << 20  # bytes of metadata per unit: some 140,000 lines, 20,000 of them in the subset
TAG = re.compile("<[^>]*>")


@dataclasses.dataclass(frozen=True)
class Lines(Span):
    """Reads the metadata from byte `start` to `stop`."""

    subset: pathlib.Path
    metadata: pathlib.Path

    def read(self, tally: Tally) -> Iterator[Record]:
        """Yields the photographs that are in the subset."""
        chosen = read_subset(self.subset)
        for place, line in lines_in(self.metadata, self.start, self.stop):
            fields = line.rstrip("\r\n").split("\t")
            if not fields[0].isdigit() or len(fields) <= DESCRIPTION:
                tally.dropped("line of metadata that is none", f"{self.metadata.name}: {place}")
                continue
            number = int(fields[0])
            photo, sha = fields[1], fields[2]
            if number >= len(chosen) or not chosen[number]:
                tally.dropped("photograph outside the subset", photo)
                continue
            image = self.metadata.parent / "data" / "images" / sha[:3] / sha[3:6] / f"{sha}.jpg"
            text = caption(fields[TITLE], fields[DESCRIPTION])
            record = pair(photo, image=image, caption=text, key=photo, tally=tally)
            if record:
                yield record


def caption(title: str, description: str) -> str:
    """Makes a caption of two fields of the metadata."""
    parts = (
        html.unescape(TAG.sub("", urllib.parse.unquote_plus(part))).strip()
        for part in (title, description)
    )
    return ". ".join(filter(None, parts))


@functools.lru_cache(maxsize=1)
def read_subset(subset: pathlib.Path) -> Bool[np.ndarray, " N"]:
    """Marks the lines of the metadata that are in the subset, in 100 MB."""
    numbers = (line.partition("\t")[0].strip() for _, line in lines_in(subset))
    lines = np.fromiter((int(n) for n in numbers if n.isdigit()), np.int64)
    chosen = np.zeros(int(lines.max(initial=-1)) + 1, bool)
    chosen[lines] = True
    return chosen


def plan(name: str, root: pathlib.Path, options: Options) -> Plan:
    """Plans the set of the subset's photographs. Raises UserError for files that are missing."""
    get = "Get it as the docstring of otter_jax/data/public/yfcc15m.py says"
    subset = need(root, SUBSET, f"CLIP's list of photographs. {get}")
    metadata = need(root, METADATA, f"the metadata of YFCC100M. {get}")
    first = [line for _, line in itertools.islice(lines_in(subset), LOOKED_AT)]
    if not any(line.partition("\t")[0].strip().isdigit() for line in first):
        shown = clean(first[0][:40]) if first else ""
        raise UserError(
            f"{subset} names no photograph: its lines must begin with the number of a line of "
            f"{metadata.name}, and the first one is {shown!r}. {get}."
        )
    units = [Lines(*span, subset, metadata) for span in byte_ranges(metadata, RANGE)]
    files = listed([subset, metadata])
    return Plan(
        name, pair_features(), {"train": units}, {"train": files}, "YFCC15M", options=options
    )
