"""The sets that a model is evaluated on: pictures, their labels, and the classes' names."""

import dataclasses
import json

import numpy as np
from ml_collections import ConfigDict

from otter_jax.data.source import Source, open_dataset
from otter_jax.errors import UserError
from otter_jax.run.batches import ensure_once
from otter_jax.zeroshot.bank import read_names


@dataclasses.dataclass(frozen=True)
class EvalSet:
    """Holds a labelled set and the classes to search in.

    Attributes:
      name: of the set in the config.
      names: of the classes.
      labels: int32 [N, M], the class numbers of each picture, padded with -1.
      templates: texts that a class name is put into, such as "a photo of {}.".
    """

    name: str
    source: Source
    names: list[str]
    labels: np.ndarray  # int32 [N, M], padded with -1
    templates: tuple[str, ...]

    @classmethod
    def open(cls, name: str, spec: ConfigDict, data_dir: str) -> "EvalSet":
        """Opens config.eval.sets[name]. Raises UserError if labels or names are missing.

        `spec.label` is a feature of the set ("label", "caption") or a field of its JSON
        ("json.tags"). `spec.names` is a file with one class per line, or "" for the set's own: the
        names of a class feature, else all labels that occur. A label belongs to the class that is
        spelled the same; a class with synonyms has one name, "tench,or Tinca tinca".
        """
        ensure_once(spec.data, data_dir, spec.tars)
        source = open_dataset(data_dir, spec.data, spec.split)
        feature, _, field = spec.label.partition(".")
        if feature not in source.features:
            raise UserError(
                f"eval.sets.{name}.label={spec.label!r}: {source.name} has no feature {feature!r}; "
                f"it has {', '.join(source.features)}."
            )
        if not spec.templates or any("{}" not in template for template in spec.templates):
            raise UserError(
                f"eval.sets.{name}.templates={tuple(spec.templates)}: each needs {{}} where the "
                'name of the class goes, for example "a photo of {}.".'
            )
        values = [_values(source[i][feature], field) for i in range(len(source))]
        names = source.classes(feature)
        if names and not spec.names:
            rows = [[v for v in row if v >= 0] for row in values]  # -1: no label
        else:
            if names:
                values = [[names[v] for v in row if v >= 0] for row in values]
            values = [[str(v).strip() for v in row] for row in values]
            found = {v for row in values for v in row}
            names = read_names(spec.names) if spec.names else sorted(found)
            number = {label: i for i, label in enumerate(names)}
            rows = [[number[v] for v in row if v in number] for row in values]
            unknown = sorted(found - number.keys())
            if unknown:
                print(
                    f"{source.name}: {len(unknown)} labels are not among the {len(names)} class "
                    f"names and are left out, such as {', '.join(unknown[:3])}."
                )
        if not any(rows):
            raise UserError(
                f"eval.sets.{name}: no label of {source.name} is among the {len(names)} names."
            )
        labels = np.full((len(rows), max(map(len, rows))), -1, np.int32)
        for i, row in enumerate(rows):
            row = list(dict.fromkeys(row))  # a repeated label counts once
            labels[i, : len(row)] = row
        return cls(name, source, names, labels, tuple(spec.templates))


def _values(value, field):
    """Returns the labels of one record, as a list."""
    if field:
        try:
            value = json.loads(value).get(field, [])
        except (json.JSONDecodeError, AttributeError):
            value = []
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    return value if isinstance(value, list) else [value]
