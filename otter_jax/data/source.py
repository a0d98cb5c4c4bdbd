"""Reads the records of a set on disk, or of several sets as one."""

import bisect
import difflib
import functools
import itertools
import math
import operator
import pathlib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple, SupportsIndex

import grain
import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Int64

from otter_jax.data.build.report import PICTURES
from otter_jax.errors import UserError

AGAIN = "Copy it again, or remove that folder and make it again."


class Range(NamedTuple):
    """Some records of a split that follow each other: from number `start` to before `stop`."""

    split: str
    start: int
    stop: int


class Source:
    """Reads the records of a split: `source[i]` is a dict, `len(source)` their number.

    `image` is the encoded bytes; text (caption, key, json, ...) is str, a label an int.

    Attributes:
      name: set and split, for messages.
      features: the TFDS features of a record, by name.
    """

    def __init__(
        self,
        name: str,
        records: Any,
        features: Any,
        *,
        folder: pathlib.Path | None = None,
        ranges: Sequence[Range] = (),
    ):
        """`folder` is the set's, and `ranges` what the records are of it, if it is on disk."""
        self.name = name
        self.features = features
        self._records, self._folder, self._ranges = records, folder, tuple(ranges)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        """Returns the record of this number. Raises UserError if the set's files are damaged."""
        record = _record_at(self._records, operator.index(index), self.name, self._folder)
        return {
            name: value.decode("utf-8", "replace")
            if isinstance(value, bytes) and not isinstance(self.features[name], tfds.features.Image)
            else value
            for name, value in record.items()
        }

    def classes(self, feature: str) -> list[str] | None:
        """Returns the class names of a feature of labels, one or many; None for any other."""
        found = self.features[feature]
        if isinstance(found, tfds.features.Sequence):
            found = found.feature
        return list(found.names) if isinstance(found, tfds.features.ClassLabel) else None

    def sample(self, most: int) -> list[int]:
        """Returns the numbers of at most `most` records, evenly over all."""
        return np.linspace(0, len(self) - 1, min(most, len(self))).astype(int).tolist()

    def key(self, index: SupportsIndex) -> str:
        """Returns a name for the record: its key, else its number."""
        return self[index]["key"] if "key" in self.features else str(operator.index(index))

    def check_has(self, feature: str) -> None:
        """Raises UserError if the records do not have the feature."""
        if feature not in self.features:
            raise UserError(
                f"{self.name} has no feature `{feature}`; it has {', '.join(self.features)}."
            )

    def pictures(self) -> Int64[np.ndarray, "N"] | None:
        """Returns a digest of each record's image as it came, equal ones for the same image.

        None if the set does not keep them: it was not made here, or by an older version.
        """
        if self._folder is None:
            return None
        found = [np.zeros(0, np.int64)]
        for split, start, stop in self._ranges:
            path = self._folder / PICTURES.format(split)
            if not path.exists():
                return None
            try:
                found.append(np.load(path, mmap_mode="r")[start:stop])
            except (ValueError, EOFError) as error:
                raise UserError(f"{path} is damaged ({error}). {AGAIN}") from error
        joined = np.concatenate(found)
        return joined if len(joined) == len(self) else None

    def parts(self) -> list[tuple["Source", float]]:
        """Returns the sets that this is mixed of, itself if of none, and the share of each."""
        return [(self, 1.0)]

    def order(self, seed: int) -> grain.MapDataset:
        """Returns the records' numbers, shuffled by the seed, anew in each epoch, without end."""
        return grain.MapDataset.range(len(self)).seed(seed).shuffle().repeat()


class Mixture(Source):
    """Reads several sets as one: their records are numbered one set after the other.

    In training every set is read in an order of its own, epoch after epoch, and has its share of
    any few records in a row: so two sets of the same pictures meet by chance alone. An epoch is as
    many records as all sets have together.
    """

    def __init__(self, sources: Sequence[Source], weights: Sequence[float]):
        """`weights` are relative shares. Raises UserError if not all sets have images."""
        self.name = " + ".join(source.name for source in sources)
        self._sources, self._weights = tuple(sources), tuple(weights)
        self._starts = list(itertools.accumulate(map(len, sources), initial=0))
        first, *others = (source.features for source in sources)
        names = [name for name in first if all(name in features for features in others)]
        self.features = {name: first[name] for name in names}
        if "image" not in names:
            raise UserError(f"{self.name}: not all of these sets have images.")

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        number, own = self._find(index)
        record = self._sources[number][own]
        return {name: record[name] for name in self.features}

    def parts(self) -> list[tuple[Source, float]]:
        """Returns the sets, and the share of each in a batch."""
        total = sum(self._weights)
        shares = (weight / total for weight in self._weights)
        return list(zip(self._sources, shares, strict=True))

    def classes(self, feature: str) -> list[str] | None:
        """Returns the class names of a feature of labels if all sets have the same; else None."""
        first, *others = (source.classes(feature) for source in self._sources)
        return first if all(other == first for other in others) else None

    def key(self, index: SupportsIndex) -> str:
        """Returns the name of the set, and of the record in it."""
        number, own = self._find(index)
        return f"{self._sources[number].name} {self._sources[number].key(own)}"

    def order(self, seed: int) -> grain.MapDataset:
        """Returns the records' numbers, shuffled and mixed as the class says, without end.

        The first set has the order that it has alone; the seed of another is drawn from `seed` and
        its number in the mixture.
        """
        orders = [
            source.order(seed_of(seed, number)).map(functools.partial(operator.add, start))
            for number, (source, start) in enumerate(zip(self._sources, self._starts, strict=False))
        ]
        return grain.MapDataset.mix(orders, self._weights)

    def _find(self, index: SupportsIndex) -> tuple[int, int]:
        """Returns the number of the set that a record is in, and the record's number there."""
        index = range(len(self))[index]
        number = bisect.bisect_right(self._starts, index) - 1
        return number, index - self._starts[number]


def seed_of(seed: int, number: int) -> int:
    """Returns the seed of set `number` of a mixture: `seed` itself for number 0."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0]) if number else seed


def parse_mixture(name: str) -> list[tuple[str, float]]:
    """Splits a name such as "cc3m+mine" or "0.7*cc3m+0.3*mine" into sets and their weights.

    Weights that are not given are 0, and stand for the size of the set. Raises UserError for a
    weight that is no number above 0, or if some of the sets have weights and others have none.
    """
    found = []
    for term in name.split("+"):
        weight, star, dataset = term.strip().rpartition("*")
        try:
            value = float(weight) if star else 0.0
        except ValueError:
            value = -1.0
        if not dataset.strip() or (star and not 0 < value < math.inf):
            raise UserError(
                f"What is {term!r} in the data set {name!r}? Sets are mixed as a+b, by their "
                "sizes, or as 0.7*a+0.3*b."
            )
        found.append((dataset.strip(), value))
    if len({bool(weight) for _, weight in found}) > 1:
        raise UserError(f"The data set {name!r}: give all of its sets a weight, or none.")
    if len({dataset for dataset, _ in found}) < len(found):
        raise UserError(f"The data set {name!r} has a set twice.")
    return found


def open_dataset(data_dir: str, name: str, split: str, *, remedy: str = "") -> Source:
    """Opens a split of a set on disk: one made here, or any other that TFDS wrote as ArrayRecord.

    Args:
      data_dir: the folder of all data sets.
      name: a folder in it: "openmoji", "food101", or with config or version, "a/b/1.0.0". Of
        several versions the newest is taken. Several sets are mixed: "a+b" by their sizes,
        "0.7*a+0.3*b" by weights.
      split: of each set: "train", or a slice in TFDS's notation, "train[:95%]". Where it would
        begin or end between records of the same image, it does so after the last of them.
      remedy: tells the user what to do if there is no such split.

    Raises:
      UserError: no such set or split, nothing in it, or files that need TensorFlow.
    """
    sets = parse_mixture(name)
    if len(sets) > 1:
        sources = [open_dataset(data_dir, each, split, remedy=remedy) for each, _ in sets]
        pairs = zip(sets, sources, strict=True)
        return Mixture(sources, [weight or float(len(source)) for (_, weight), source in pairs])
    builder = _open(data_dir, name)
    known = ", ".join(sorted(builder.info.splits))
    try:
        ranges = _ranges(builder, split)
        parts = [tfds.core.ReadInstruction(*range_, unit="abs") for range_ in ranges]
        records = _read(builder, functools.reduce(operator.add, parts)) if parts else ()
    except NotImplementedError as error:
        raise UserError(
            f"The data set {name} in {data_dir} is not in ArrayRecord files, the only ones that "
            "can be read without TensorFlow. Build it with file_format='array_record'."
        ) from error
    except UserError:
        raise
    except (ValueError, KeyError):  # TFDS on an unknown split
        records = ()
    if not len(records):
        raise UserError(
            f"The data set {name} has no split {split!r}, or nothing in it (no slice divides the "
            f"records of one image); there are: {known}. {remedy}".strip()
        )
    folder = pathlib.Path(builder.data_dir)
    return Source(f"{name}:{split}", records, builder.info.features, folder=folder, ranges=ranges)


def in_both(data_dir: str, name: str, split: str, other: str) -> int:
    """Counts the records of a set, or of all sets of a mixture, that are in both of two splits."""
    count = 0
    for each, _ in parse_mixture(name):
        builder = _open(data_dir, each)
        for a, b in itertools.product(_ranges(builder, split), _ranges(builder, other)):
            if a.split == b.split:
                count += max(min(a.stop, b.stop) - max(a.start, b.start), 0)
    return count


def _ranges(builder: tfds.core.DatasetBuilder, split: str) -> list[Range]:
    """Returns the records of a slice in TFDS's notation, where no image's records are divided.

    Raises ValueError if there is no such split, or it has not as many records.
    """
    splits = builder.info.splits
    found = []
    for part in tfds.core.ReadInstruction.from_spec(split).to_absolute(splits):
        size = splits[part.splitname].num_examples
        start, stop = part.from_ or 0, size if part.to is None else part.to
        start, stop = (_after_image(builder, part.splitname, at, size) for at in (start, stop))
        if start < stop:
            found.append(Range(part.splitname, start, stop))
    return found


def _after_image(builder: tfds.core.DatasetBuilder, split: str, at: int, size: int) -> int:
    """Returns the number of the first record from `at` on whose image is not that before `at`."""
    images = _images(builder)
    if not 0 < at < size or not images:
        return at
    records = _read(builder, split)
    image = "image" if "image" in images else images[0]
    folder = pathlib.Path(builder.data_path)

    def picture(number):
        return _record_at(records, number, f"{builder.name}:{split}", folder)[image]

    before = picture(at - 1)
    while at < size and picture(at) == before:
        at += 1
    return at


def _record_at(
    records: Sequence[Any], number: int, name: str, folder: pathlib.Path | None
) -> dict[str, Any]:
    """Returns a record of the set `name` in `folder`. Raises UserError for damaged files."""
    try:
        record = records[number]
        if all(value is None for value in record.values()):  # of a file that was cut, in silence
            raise ValueError("there is nothing at its place")
    except IndexError:
        raise
    except Exception as error:  # the reader of ArrayRecord raises several types
        remedy = f"Remove {folder}, and make the set again" if folder else ""
        raise UserError(
            f"{name}: record {number} cannot be read, its file is damaged or gone "
            f"({type(error).__name__}: {str(error).strip()[:200]}). {remedy}".strip()
        ) from error
    return record


def _images(builder: tfds.core.DatasetBuilder) -> list[str]:
    """Returns the names of the features that are images."""
    features = builder.info.features.items()
    return [name for name, feature in features if isinstance(feature, tfds.features.Image)]


def _read(builder: tfds.core.DatasetBuilder, split: Any) -> Sequence[Any]:
    """Returns the records of a split as they are stored, images as bytes."""
    skip = {name: tfds.decode.SkipDecoding() for name in _images(builder)}
    return builder.as_data_source(split, decoders=skip)


def _open(data_dir: str, name: str) -> tfds.core.DatasetBuilder:
    folder = version_folder(pathlib.Path(data_dir).expanduser(), name)
    try:
        return tfds.builder_from_directory(str(folder))
    except Exception as error:  # of TFDS, protobuf or JSON: whatever is damaged
        reason = str(error).partition("\n")[0].rstrip(".")
        raise UserError(
            f"The data set in {folder} cannot be opened: {reason or type(error).__name__}. {AGAIN}"
        ) from error


def version_folder(data_dir: pathlib.Path, name: str, remedy: str = "") -> pathlib.Path:
    """Finds the folder of a set's newest version, with its dataset_info.json.

    Raises UserError, which ends with `remedy`, if there is none.
    """
    found = [info.parent for info in data_dir.glob(f"{name}/*/dataset_info.json")]
    found = [folder for folder in found if not folder.name.startswith("incomplete.")]
    if (data_dir / name / "dataset_info.json").exists():
        found = [data_dir / name]
    if not found:
        there = sorted(
            {
                str(info.parent.parent.relative_to(data_dir))
                for depth in ("*/*", "*/*/*")
                for info in data_dir.glob(f"{depth}/dataset_info.json")
            }
        )
        near = difflib.get_close_matches(name, there, n=1)
        guess = f" Did you mean {near[0]}?" if near else ""
        raise UserError(
            f"There is no data set {name} in {data_dir}; there are: {', '.join(there) or 'none'}."
            f"{guess} {remedy}".strip()
        )
    return max(
        found, key=lambda folder: [int(number) for number in re.findall(r"\d+", folder.name)]
    )
