"""Labels as the records of a set hold them: a feature, or a field of their JSON."""

import collections
import difflib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from otter_jax.data.source import Source
from otter_jax.errors import UserError
from otter_jax.zeroshot.bank import spelled

FIELDS = 12  # that a message lists
SAMPLE = 100  # records that are searched for a field


def read_labels(source: Source, label: str, key: str) -> list[list[Any]]:
    """Reads the labels of each record: class numbers of a class feature, else texts, spelled.

    Null, NaN, texts without a visible character and the class number -1 are no labels. `label` is a
    feature, or FEATURE.FIELD, a field of its JSON (FEATURE.FIELD.FIELD of an object in it; through
    lists, too); `key` is that of the config. Raises UserError if there is no such feature or field,
    or it holds something else.
    """
    feature, _, field = label.partition(".")
    if feature not in source.features:
        _refuse_feature(source, label, key)
    if isinstance(source.features[feature], tfds.features.Image):
        raise UserError(f"{key}={label!r}: that is the picture itself, and no label.")
    path = field.split(".") if field else []
    numbered = not path and source.classes(feature) is not None
    rows, missing = [], True
    for i in range(len(source)):
        value = source[i][feature]
        found = list(_at(_parsed(value) if path else value, path))
        missing = missing and not found
        if any(isinstance(each, dict) for each in found) or (feature == "json" and not path):
            _refuse_objects(source, i, label, key)
        rows.append([v if numbered else _text(v) for v in found if _is_label(v, numbered)])
    if missing:
        _refuse_missing(source, feature, field, label, key)
    return rows


def close_to(text: str, known: Iterable[str]) -> str:
    """Returns the one of `known` that is spelled most alike; "" if none is."""
    plain = {each.casefold().replace("_", " "): each for each in known}
    found = difflib.get_close_matches(text.casefold().replace("_", " "), plain, 1)
    return plain[found[0]] if found else ""


def _at(value: Any, path: Sequence[str]) -> Iterator[Any]:
    """Yields what is at a path in a JSON value; each item of lists on the way."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list):
        for item in value:
            yield from _at(item, path)
    elif not path:
        yield value
    elif isinstance(value, dict):
        whole = ".".join(path)
        if whole in value:  # a name that has dots itself
            yield from _at(value[whole], ())
        elif path[0] in value:
            yield from _at(value[path[0]], path[1:])


def _parsed(value: Any) -> Any:
    """Parses a JSON text; returns None if it is none, and other values as they are."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return None


def _is_label(value: Any, numbered: bool) -> bool:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return False
    return value >= 0 if numbered else bool(_text(value))


def _text(value: Any) -> str:
    """Returns a label as text; 3.0 is 3, as programs write whole numbers where some are missing."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return spelled(value if isinstance(value, str) else json.dumps(value))


def _fields(value: Any, before: str = "") -> Iterator[str]:
    """Yields the fields of a JSON value, those in it as FIELD.FIELD."""
    if isinstance(value, list):
        for item in value:
            yield from _fields(item, before)
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield f"{before}{name}"
            yield from _fields(inner, f"{before}{name}.")


def _refuse_feature(source: Source, label: str, key: str) -> None:
    feature, _, _ = label.partition(".")
    inside = {f for i in source.sample(SAMPLE) for f in _fields(_parsed(source[i].get("json")))}
    meant = f" Did you mean json.{label}?" if label in inside else _meant(feature, source.features)
    raise UserError(
        f"{key}={label!r}: {source.name} has no feature {feature!r}; it has "
        f"{', '.join(source.features)}.{meant}"
    )


def _refuse_objects(source: Source, number: int, label: str, key: str) -> None:
    feature, _, field = label.partition(".")
    inner = _at(_parsed(source[number][feature]), field.split(".") if field else ())
    names = list(dict.fromkeys(name for value in inner for name in _fields(value)))[:FIELDS]
    such = ", ".join(f"{label}.{name}" for name in names)
    raise UserError(
        f"{key}={label!r}: in {source.name} that holds objects with fields, and no labels (in "
        f"{source.key(number)}). Name a field of them: {such or 'there is none'}."
    )


def _refuse_missing(source: Source, feature: str, field: str, label: str, key: str) -> None:
    """Raises UserError if no record has the field; lists may all be empty."""
    seen = collections.Counter(
        name
        for i in range(len(source))
        for name in dict.fromkeys(_fields(_parsed(source[i][feature])))
    )
    if not field or field in seen:
        return
    there = ", ".join(f"{name} ({count:,})" for name, count in seen.most_common(FIELDS))
    more = f" and {len(seen) - FIELDS:,} more" if len(seen) > FIELDS else ""
    raise UserError(
        f"{key}={label!r}: none of the {len(source):,} records of {source.name} has a field "
        f"{field!r} in its {feature}. Fields and the number of records that have them: "
        f"{there or 'none'}{more}.{_meant(field, seen, f'{feature}.')}"
    )


def _meant(name: str, known: Iterable[str], before: str = "") -> str:
    found = close_to(name, known)
    return f" Did you mean {before}{found}?" if found else ""
