"""The sets that a model is evaluated on: pictures, their labels, and the classes' names."""

import collections
import dataclasses
import hashlib
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict

from otter_jax.data.ensure import FILES, TESTED, ensure
from otter_jax.data.source import Source, in_both, open_dataset
from otter_jax.errors import UserError
from otter_jax.run import cluster
from otter_jax.zeroshot.bank import read_lines, read_names, spelled, templates_of
from otter_jax.zeroshot.labels import close_to, read_labels

EXAMPLES = 3  # in a line that is printed
NUMBERS = 10  # in an error
PLACEHOLDERS = ("nan", "null", "none", "n/a", "na", "unknown")  # as programs write a missing label


@dataclasses.dataclass(frozen=True)
class EvalSet:
    """Holds a labelled set and the classes to search in.

    Attributes:
      name: of the set in the config.
      names: of the classes.
      labels: int32 [N, M], the class numbers of each picture, padded with -1.
      templates: texts that a class name is put into, such as "a photo of {}.".
      no_label: number of pictures that have no label.
      unknown: labels that are not among the names, and the number of pictures that have each.
      about: where pictures, labels and names come from, and a fingerprint of the labels.
      pictures: of a set of pairs, searched in both directions, a number for each record, the same
        for the same picture; None for any other set.
      learned: what probes learn from, with the same classes, if the set has such a split.
    """

    name: str
    source: Source
    names: list[str]
    labels: Int[np.ndarray, "N M"]
    templates: tuple[str, ...]
    no_label: int = 0
    unknown: Mapping[str, int] = dataclasses.field(default_factory=dict)
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    pictures: Int[np.ndarray, "N"] | None = None
    learned: "EvalSet | None" = None

    @property
    def several(self) -> bool:
        """Tells whether some pictures have several labels."""
        return self.labels.shape[1] > 1

    @classmethod
    def open(cls, name: str, spec: ConfigDict, data_dir: str, *, exif: str = "apply") -> "EvalSet":
        """Opens config.eval.sets[name]; prints what has no label, or one that is not a class.

        `spec.label` is a feature of the set ("label", "caption") or a field of its JSON
        ("json.tags"). `spec.names` is a file with one class per line, or "" for the set's own: the
        names of a class feature, else all labels that occur. A label belongs to the class that is
        spelled the same (in Unicode's NFC); whole numbers are lines of the file, from 0, if it
        holds none of them. A class with synonyms has one name, "tench,or Tinca tinca". Captions
        among themselves are a set of pairs.

        Raises UserError if labels or names are missing, or numbers beyond the lines, and as
        `_with_learned` does.
        """
        key = f"eval.sets.{name}"
        templates = templates_of(spec.templates, f"{key}.templates")
        captions = spec.label == "caption"
        _make(spec, data_dir, captions, exif)
        source = open_dataset(data_dir, spec.data, spec.split)
        values = read_labels(source, spec.label, f"{key}.label")
        no_label = sum(not row for row in values)
        if no_label == len(values):
            raise UserError(
                f"{key}.label={spec.label!r}: none of the {len(values):,} pictures of "
                f"{source.name} has a label: all are null, empty, NaN or absent."
            )
        if no_label:
            print(
                f"{source.name}: {no_label:,} of {len(values):,} pictures have no label ("
                f"{spec.label} is null, empty, NaN or absent) and are left out."
            )
        own = source.classes(spec.label) if spec.label in source.features else None
        unknown: dict[str, int] = {}
        if own and not spec.names:
            names, rows = own, values
        else:
            if own:
                values = [[spelled(own[v]) for v in row] for row in values]
            counts = collections.Counter(v for row in values for v in dict.fromkeys(row))
            if spec.names:
                _refuse_marks(values, read_lines(spec.names, "class names"), f"{key}.label")
            names, number = _classes(spec.names, counts, key, source.name)
            rows = [[number[v] for v in row if v in number] for row in values]
            unknown = {v: count for v, count in sorted(counts.items()) if v not in number}
        labels = np.full((len(rows), max(map(len, rows))), -1, np.int32)
        for i, row in enumerate(rows):
            row = list(dict.fromkeys(row))  # a repeated label counts once
            labels[i, : len(row)] = row
        about = {key: spec[key] for key in ("data", "split", "label", "names")}
        about |= {"templates": list(templates), "labels": cluster.fingerprint((names, labels))}
        pictures = _pictures(source) if captions and not spec.names else None
        found = cls(name, source, names, labels, templates, no_label, unknown, about, pictures)
        return found._with_learned(spec, data_dir, exif) if spec.probe else found

    def _with_learned(self, spec: ConfigDict, data_dir: str, exif: str) -> "EvalSet":
        """Opens the split that probes learn from, with the classes of this one.

        Raises UserError if a picture has several labels, or both splits have a record.
        """
        key = f"eval.sets.{self.name}.probe={spec.probe!r}"
        split = ConfigDict(spec.to_dict() | {"split": spec.probe, "probe": ""})
        other = EvalSet.open(self.name, split, data_dir, exif=exif)
        if both := in_both(data_dir, spec.data, spec.split, spec.probe):
            raise UserError(
                f"{key}: {both:,} records are in the split {spec.split!r}, too, which is evaluated "
                "on. A probe must learn from other pictures."
            )
        if self.several or other.several:
            raise UserError(f"{key}: probes are for sets with one label for each picture.")
        number = {name: i for i, name in enumerate(self.names)}
        known = np.array([number.get(name, -1) for name in other.names], np.int32)
        labels = np.where(other.labels >= 0, known[other.labels], -1)
        if not (labels >= 0).any():
            raise UserError(f"{key}: no picture there has one of the classes of {spec.split!r}.")
        learned = dataclasses.replace(other, names=self.names, labels=labels)
        return dataclasses.replace(self, learned=learned)


def _make(spec: ConfigDict, data_dir: str, captions: bool, exif: str) -> None:
    """Makes the data that a set names, if they are missing; other processes wait."""
    holds = TESTED if spec.label == "label" else FILES
    options = {"captions": captions, "exif": exif, "holds": holds}
    with cluster.first_before_others():
        ensure(spec.data, data_dir, spec.tars, spec.folder, **options)


def _pictures(source: Source) -> Int[np.ndarray, "N"]:
    """Returns a number for the picture of each record, the same for the same bytes."""
    digests = source.pictures()
    if digests is None:
        hashes = (hashlib.sha256(source[i]["image"]).digest() for i in range(len(source)))
        digests = np.array([int.from_bytes(each[:8], "big", signed=True) for each in hashes])
    return np.unique(digests, return_inverse=True)[1]


def _classes(
    path: str, counts: Mapping[str, int], key: str, source: str
) -> tuple[list[str], dict[str, int]]:
    """Returns the classes' names, and {label: class number} for labels that are among them.

    `counts` has the number of pictures of each label. Prints what is read in another way than by
    its spelling, or left out.
    """
    if not path:
        return _own_names(counts, key, source)
    names = read_names(path)
    number = {label: i for i, label in enumerate(names)}
    if not number.keys() & counts.keys():
        lines = _by_lines(path, counts, key, source)
        number |= {label: number[name] for label, name in lines.items()}
    unknown = sorted(counts.keys() - number.keys())
    alike = [(label, close_to(label, names)) for label in unknown[:EXAMPLES]]
    some = ", ".join(f"{a!r} (there is {b!r})" if b else repr(a) for a, b in alike)
    if len(unknown) == len(counts):
        raise UserError(
            f"{key}: no label of {source} is among the {len(names)} names in {path}. Labels: "
            f"{some}. Names: {_some(map(repr, names))}. A label belongs to the name that is "
            "spelled the same."
        )
    if unknown:
        print(
            f"{source}: {len(unknown):,} labels are not among the {len(names):,} class names in "
            f"{pathlib.Path(path).name} and are left out, such as {some}."
        )
    return names, number


def _own_names(
    counts: Mapping[str, int], key: str, source: str
) -> tuple[list[str], dict[str, int]]:
    """Takes all labels that occur for the classes, and prints which look like no name."""
    names = sorted(counts)
    if all(_whole(label) is not None for label in names):
        print(
            f"{source}: the classes are called {_some(names)}, for want of other names: "
            f"{key}.names may be a file with the name of class 0 on its first line, and so on."
        )
    odd = [label for label in names if label.casefold() in PLACEHOLDERS]
    if odd:
        print(f"{source}: {_some(odd)} is a label and a class like any other.")
    return names, {label: i for i, label in enumerate(names)}


def _by_lines(path: str, counts: Mapping[str, int], key: str, source: str) -> dict[str, str]:
    """Returns {label: name} where labels are the numbers of lines, from 0, and prints that.

    That is, if all are whole numbers but for such as "nan"; {} otherwise. Raises UserError if a
    number has no line, or a blank one.
    """
    found = {label: _whole(label) for label in counts}
    numbers = {label: n for label, n in found.items() if n is not None}
    others = (label for label, n in found.items() if n is None)
    if not numbers or not all(label.casefold() in PLACEHOLDERS for label in others):
        return {}
    lines = read_lines(path, "class names")
    wrong = {n for n in numbers.values() if not 0 <= n < len(lines) or not lines[n]}
    if wrong:
        pictures = sum(counts[label] for label, n in numbers.items() if n in wrong)
        from_1 = 0 not in numbers.values() and wrong == {len(lines)}
        more = " If they count from 1, put an empty line before the first name." if from_1 else ""
        raise UserError(
            f"{key}: the labels of {source} are whole numbers, read as line numbers of {path} from "
            f"0 to {len(lines) - 1}; there is no name for "
            f"{_some(map(str, sorted(wrong)), NUMBERS)}, which {pictures:,} pictures have. Mend "
            f"the file, or write null where there is no label.{more}"
        )
    there = sorted(set(numbers.values()))
    first = ", ".join(f"{n} is {lines[n]!r}" for n in there[:EXAMPLES])
    zero = "" if 0 in there else " (which no picture has)"
    print(f"{source}: the labels are read as line numbers of {path}, from 0{zero}: {first}.")
    return {label: lines[n] for label, n in numbers.items()}


def _refuse_marks(values: Sequence[Sequence[str]], lines: Sequence[str], key: str) -> None:
    """Raises UserError if each picture has a 0 or 1 for each class instead of its labels."""
    if len(lines) > 1 and all(
        len(row) in (0, len(lines)) and {*row} <= {"0", "1"} for row in values
    ):
        raise UserError(
            f"{key}: each picture has {len(lines)} numbers that are all 0 or 1, as many as there "
            "are class names. Give the labels themselves, names or class numbers, not a mark for "
            "each class."
        )


def _whole(label: str) -> int | None:
    """Returns the whole number that a text is, as programs write it (3, 3.0); else None."""
    digits, _, rest = label.partition(".")
    if not re.fullmatch("-?(0|[1-9][0-9]{0,17})", digits) or not re.fullmatch("0*", rest):
        return None
    return int(digits)


def _some(texts: Iterable[str], most: int = EXAMPLES) -> str:
    """Joins the first of some texts."""
    texts = list(texts)
    more = f" and {len(texts) - most:,} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more
