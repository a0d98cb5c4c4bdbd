"""Plans sets to evaluate on from lists of pictures, each with one label or several."""

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import tensorflow_datasets as tfds

from otter_jax.data.build.plan import Options, Plan, Record
from otter_jax.data.build.report import Tally
from otter_jax.data.captions import clean
from otter_jax.errors import UserError

SLICE = 1_000  # pictures of a unit

Labelled = tuple[str, tuple[str, ...]]  # a picture's path in the root, and the names of its classes
UNLABELLED = "picture without a label among the classes"


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Reads some pictures of a list."""

    root: pathlib.Path
    records: tuple[Labelled, ...]

    @property
    def size(self) -> int:
        """The number of pictures."""
        return len(self.records)

    def read(self, tally: Tally) -> Iterator[Record]:
        """Yields the pictures in the order of the list."""
        for path, names in self.records:
            if not names:
                tally.dropped(UNLABELLED, path)
                continue
            fields = {"labels": list(dict.fromkeys(names)), "key": clean(path)}
            yield Record(clean(path), self.root / path, fields)


def slices(root: pathlib.Path, records: Sequence[Labelled]) -> list[Pictures]:
    """Cuts a list of pictures into units."""
    return [Pictures(root, tuple(records[i : i + SLICE])) for i in range(0, len(records), SLICE)]


def count(records: Sequence[Labelled]) -> int:
    """Counts the pictures that have a label."""
    return sum(bool(names) for _, names in records)


def labelled_plan(
    name: str,
    *,
    names: Sequence[str],
    units: Mapping[str, Sequence[Pictures]],
    files: Mapping[str, Sequence[Mapping]],
    origin: str,
    options: Options,
    details: Mapping[str, str] | None = None,
) -> Plan:
    """Plans a set whose pictures have `labels` among `names`, each name counted once.

    The other arguments are those of `Plan`. Raises UserError for a class without a name.
    """
    if not all(name.strip() for name in names):
        # TFDS would drop it, and so shift the numbers of all classes after it.
        raise UserError(f"A class of {origin} has no name in its list.")
    bank = tfds.features.ClassLabel(names=list(dict.fromkeys(names)))
    features = {"labels": tfds.features.Sequence(bank), "key": tfds.features.Text()}
    return Plan(
        name, features, units, files, origin, records="pictures", options=options,
        details=details or {},
    )  # fmt: skip


def joined(synonyms: str) -> str:
    """Joins the synonyms of a class as the OTTER release does: "tench,or Tinca tinca"."""
    names = (name.replace("_", " ").strip() for name in synonyms.split(", "))
    return ",or ".join(filter(None, names))
