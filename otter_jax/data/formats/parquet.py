"""Reads the rows of Parquet, so that a column which nobody asked for stops nothing.

A value that Python has no object for, such as a date beyond the year 9999 or nanoseconds, becomes
text. Names that several columns have are told apart: NAME, NAME_2 and so on.
"""

import io
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from otter_jax.data.build.plan import ROWS
from otter_jax.data.build.report import Tally
from otter_jax.data.formats import footer
from otter_jax.data.formats.packed import FREE, RATIO
from otter_jax.errors import UserError
from otter_jax.files import open_regular

HELD = 64 << 20  # bytes of rows that are decoded at once
# Writers end dictionaries at a megabyte; every row may have an entry of a larger one.
DICTIONARY, DICTIONARY_RATIO = 4 << 20, 20
# Whatever conversion raises on a value: out of range, invalid text, missing packages.
_FAILURES = (ValueError, OverflowError, TypeError, KeyError, ImportError, pa.ArrowException)


def names_of(table: pathlib.Path) -> tuple[str, ...]:
    """Returns the names of the columns as they are in the file, some perhaps several times."""
    return tuple(pq.read_schema(table).names)


def rows_in(
    table: pathlib.Path, group: int, needed: Sequence[str], tally: Tally
) -> Iterator[dict[str, Any]]:
    """Yields the rows of a row group by the names of the columns.

    If columns beside the `needed` ones cannot be read they are left out, which is tallied.
    """
    count = 0
    try:
        for batch in _batches(table, group, None):
            for row in _rows(batch):
                yield row
                count += 1
        return
    except (OSError, *_FAILURES) as error:
        why = f"{table.name}: row group {group} from its row {count} ({error})"
    rows = (row for batch in _batches(table, group, needed) for row in _rows(batch))
    for number, row in enumerate(rows):
        if number == count:  # so the others are the cause
            tally.changed("columns that nobody asked for and that cannot be read, left out", why)
        if number >= count:
            yield row


def firsts_in(
    table: pathlib.Path, group: int, needed: Sequence[str], size: int = ROWS
) -> Iterator[dict[str, Any]]:
    """Yields the rows of a row group with the `needed` columns alone, read `size` at a time."""
    for batch in _batches(table, group, needed, size):
        yield from _rows(batch)


def holds_images(table: pathlib.Path, image: str) -> bool:
    """Tells whether a column is of a type that holds images themselves, and not their paths."""
    kind = _storage(pq.read_schema(table).field(image).type)
    t = pa.types
    tests = (t.is_struct, t.is_binary, t.is_large_binary, t.is_binary_view, t.is_fixed_size_binary)
    return any(test(kind) for test in tests)


def check_types(table: pathlib.Path, image: str, caption: str) -> None:
    """Raises UserError if columns cannot hold an image and captions; "" is no column."""
    schema = pq.read_schema(table)
    for column, accepted, wanted in (
        (image, _is_image, "an image is bytes, a path, or a struct of `bytes` and `path`"),
        (caption, _is_caption, "a caption is a text, a number, or a list of them"),
    ):
        kind = _storage(schema.field(column).type) if column else pa.null()
        if not accepted(kind):
            raise UserError(
                f"The column {column!r} of {table} is {str(kind)[:100]}; {wanted}. Columns: "
                f"{', '.join(repr(name) for name in schema.names[:20])}."
            )


def _is_text(kind: pa.DataType) -> bool:
    t = pa.types
    if t.is_dictionary(kind) or t.is_run_end_encoded(kind):
        return _is_text(kind.value_type)
    tests = (t.is_string, t.is_large_string, t.is_string_view, t.is_binary, t.is_large_binary,
             t.is_binary_view, t.is_fixed_size_binary, t.is_null)  # fmt: skip
    return any(test(kind) for test in tests)


def _is_image(kind: pa.DataType) -> bool:
    if not pa.types.is_struct(kind):
        return _is_text(kind)
    return bool({"bytes", "path"} & {field.name for field in kind})


def _is_caption(kind: pa.DataType) -> bool:
    t = pa.types
    lists = (t.is_list, t.is_large_list, t.is_fixed_size_list, t.is_list_view, t.is_large_list_view)
    if any(test(kind) for test in lists):
        kind = _storage(kind.value_type)
    numbers = (t.is_integer, t.is_floating, t.is_decimal)
    return _is_text(kind) or any(test(kind) for test in numbers)


def _storage(kind: pa.DataType) -> pa.DataType:
    """Returns what an extension type is stored as; any other type as it is."""
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def _batches(
    table: pathlib.Path, group: int, needed: Sequence[str] | None, size: int = ROWS
) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(table) as file, open_regular(table) as content:
        columns = None if needed is None else list(needed)
        size = min(size, _rows_at_once(footer.groups_of(table)[group], columns, content))
        yield from file.iter_batches(size, row_groups=[group], columns=columns)


def _rows_at_once(
    group: footer.Group, columns: Sequence[str] | None, content: io.BufferedIOBase
) -> int:
    """Returns how many rows of a group can be decoded within HELD bytes, as far as it says.

    Raises OSError for columns that unpack to far more than their size: runs of one value, or an
    entry of a dictionary that all rows have, take next to nothing in a file.
    """
    rows, whole = max(1, group.rows), 0
    most = rows
    for chunk in group.chunks:
        if columns is not None and chunk.path[:1] and chunk.path[0] not in columns:
            continue
        name, size = ".".join(chunk.path), max(chunk.unpacked, 8 * chunk.values)
        if size > min(FREE + RATIO * chunk.packed, rows * FREE):
            raise OSError(f"column {name!r} unpacks to {size >> 20:,} MiB")
        whole += size
        if chunk.dictionary:
            content.seek(chunk.dictionary)
            entries = footer.first_page(content.read(16))
            if entries > DICTIONARY and entries > DICTIONARY_RATIO * chunk.packed:
                raise OSError(f"the dictionary of column {name!r} unpacks to {entries >> 20:,} MiB")
            most = min(most, HELD // max(1, entries))
    return max(1, min(most, HELD * rows // max(1, whole)))


def _rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    names = distinct(batch.schema.names)
    columns = [_values(column) for column in batch.columns]
    for values in zip(*columns, strict=True):
        yield dict(zip(names, values, strict=True))


def distinct(names: Sequence[str]) -> list[str]:
    """Returns the names, each later one that is there already with a number."""
    found: dict[str, None] = {}
    for name in names:
        number, new = 2, name
        while new in found:
            new, number = f"{name}_{number}", number + 1
        found[new] = None
    return list(found)


def _values(column: pa.Array) -> list[Any]:
    """Returns the values of a column as Python's objects, or as text."""
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    try:
        return column.to_pylist()
    except _FAILURES:
        return [_value(scalar) for scalar in column]


def _value(scalar: pa.Scalar) -> Any:
    """Returns a value as Python's object; the innermost ones that have none as text."""
    try:
        return scalar.as_py()
    except _FAILURES:
        pass
    if isinstance(scalar, pa.ExtensionScalar):
        return _value(scalar.value)
    if isinstance(scalar, pa.StructScalar):
        fields = zip(distinct([field.name for field in scalar.type]), scalar.values(), strict=True)
        return {name: _value(value) for name, value in fields}
    if isinstance(scalar, pa.ListScalar | pa.LargeListScalar | pa.FixedSizeListScalar):
        return [_value(value) for value in scalar.values]
    for kind in (pa.binary(), pa.string(), pa.int64()):
        if kind == pa.binary() and not isinstance(scalar, pa.StringScalar | pa.LargeStringScalar):
            continue
        try:
            found = scalar.cast(kind).as_py()
        except _FAILURES:
            continue
        return found.decode("utf-8", "replace") if isinstance(found, bytes) else str(found)
    return f"a value of {scalar.type}"
