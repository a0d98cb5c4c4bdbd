"""Makes dataclasses of tables in a file, says which key is wrong, and compares values of JSON."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from otter_jax.errors import UserError

WORDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


def section(cls: type, table: Any, where: str) -> Any:
    """Makes a dataclass of a table; `where` names the file and the table.

    Raises UserError for unknown and missing keys, and for values of another type than the field's.
    """
    check_table(table, where)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    refuse_unknown(table, fields, where)
    for name, field in fields.items():
        has_default = (
            field.default is not dataclasses.MISSING
            or field.default_factory is not dataclasses.MISSING
        )
        if name not in table and not has_default:
            raise UserError(f"{where}.{name} is missing.")
    kinds = typing.get_type_hints(cls)
    return cls(**{n: _value(kinds[n], value, f"{where}.{n}") for n, value in table.items()})


def check_table(value: Any, where: str) -> None:
    """Raises UserError if a value is no table."""
    if not isinstance(value, Mapping):
        raise UserError(f"{where}={value!r}: a table of keys and values.")


def refuse_unknown(table: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    """Raises UserError for a key that is not known, with the nearest that is."""
    known = list(known)
    for name in table:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
            meant = f"; did you mean {near[0]!r}?" if near else "."
            raise UserError(
                f"{where}: there is no key {name!r}{meant} There are: {', '.join(sorted(known))}."
            )


def differences(before: Any, now: Any, key: str = "") -> list[str]:
    """Returns "key: old -> new" for whatever differs between two values of JSON."""
    if isinstance(before, dict) and isinstance(now, dict):
        names = sorted({*before, *now})
        inner = (
            differences(before.get(n, "absent"), now.get(n, "absent"), f"{key}.{n}".strip("."))
            for n in names
        )
        return [line for lines in inner for line in lines]
    return [] if before == now else [f"{key}: {before} -> {now}"]


def _value(kind: Any, value: Any, where: str) -> Any:
    """Returns a value as its field has it: lists are tuples, whole numbers may be floats."""
    if dataclasses.is_dataclass(kind):
        return section(kind, value, where)
    origin, of = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        if not isinstance(value, list):
            raise UserError(f"{where}={value!r}: a list.")
        return tuple(_value(of[0], each, where) for each in value)
    if origin not in (None, types.UnionType):
        check_table(value, where)
        return {name: _value(of[1], each, f"{where}.{name}") for name, each in value.items()}
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise UserError(f"{where}={value!r}: {WORDS[kind]}.")
    return value
