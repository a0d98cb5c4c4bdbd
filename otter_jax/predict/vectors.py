"""Writes the vectors of pictures or texts, as Parquet or .npz, in flat memory.

A Parquet file of pictures is an index (`index.py`). In Parquet a vector is its D numbers in float16
as bytes, which is read ten times as fast as a list: np.frombuffer(value, np.float16). The cosines
differ by at most 5e-4 from those of float32. In .npz they are float32: what is to be read by others
need not be small.
"""

import hashlib
import io
import json
import pathlib
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, UInt8

from otter_jax.data.captions import clean
from otter_jax.errors import UserError
from otter_jax.files import written_whole
from otter_jax.predict.outputs import Parts, check_place

EMBEDDING, TEXT = "embedding", "text"  # columns; paths are in tables.PATH
LOAD = b"otter_jax.load"  # how to load the model again, in the metadata
TEXTS = 1_024  # texts that are embedded between two looks at whether to stop


@runtime_checkable
class Embeds(Protocol):
    """Is what these files need of a `Model`."""

    name: str
    identity: str
    dim: int
    batch_size: int

    def read(self, picture: Any) -> UInt8[np.ndarray, "S S 3"]: ...

    def embed_pixels(self, pixels: Any) -> Float32[np.ndarray, "N D"]: ...

    def embed_texts(self, texts: Any) -> Float32[np.ndarray, "N D"]: ...


def check_out(out: pathlib.Path) -> None:
    """Raises UserError for an --out that cannot be written, before time is spent."""
    if out.suffix.lower() not in (".npz", ".parquet"):
        raise UserError(f"--out {out}: give it the ending .npz or .parquet.")
    check_place(out)
    if out.suffix.lower() == ".npz" and out.exists():
        raise UserError(
            f"{out} is there already, and only .parquet can be brought up to date: delete it, or "
            "give another --out."
        )


def about(model: Embeds, **more: str) -> dict[str, Any]:
    """Returns what a file of vectors depends on: another model's is never gone on with."""
    return {"command": "embed", "model": model.identity, "dim": model.dim, **more}


def dtype_of(out: pathlib.Path) -> np.dtype:
    """Returns the type of a file's numbers."""
    return np.dtype(np.float32 if out.suffix.lower() == ".npz" else np.float16)


def schema(
    columns: Sequence[tuple[str, pa.DataType]], out: pathlib.Path, model: Embeds, load: Any
) -> pa.Schema:
    """Returns the columns with the vector's, and how the model is loaded again."""
    fields = [*columns, (EMBEDDING, pa.binary(dtype_of(out).itemsize * model.dim))]
    said = json.dumps({"name": model.name, **load})
    return pa.schema(fields, {LOAD: said.encode()})


def packed(vectors: Float32[np.ndarray, "N D"], kind: pa.DataType) -> pa.Array:
    """Returns vectors as a column of this type of bytes."""
    dtype = np.dtype(f"<f{kind.byte_width // vectors.shape[1]}")
    small = np.ascontiguousarray(vectors, dtype)
    return pa.FixedSizeBinaryArray.from_buffers(kind, len(vectors), [None, pa.py_buffer(small)])


def blocks(rows: Iterable[pa.RecordBatch], dim: int) -> Iterator[Float32[np.ndarray, "N {dim}"]]:
    """Yields the vectors of rows in float32, a few thousand at a time."""
    for batch in rows:
        column = batch[EMBEDDING]
        width = column.type.byte_width
        begin, size = column.offset * width, len(column) * width
        found = np.frombuffer(column.buffers()[1], np.uint8, size, begin) if size else np.zeros(0)
        yield found.view(f"<f{width // dim}").reshape(-1, dim).astype(np.float32)


def texts_of(file: pathlib.Path) -> list[str]:
    """Returns the lines of a file, each a text. Raises UserError if there is none."""
    try:
        content = file.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no UTF-8"
        raise UserError(f"--texts {file} cannot be read: {why}.") from None
    texts = [clean(line) for line in content.splitlines()]
    if not any(texts):
        raise UserError(f"--texts {file} has no text: it must have one on each line.")
    return texts


def embed_texts(
    model: Embeds,
    texts: Sequence[str],
    out: pathlib.Path,
    *,
    load: Any,
    check_stop: Callable[[], None],
    advance: Callable[[int], None],
) -> int:
    """Writes a vector for each text, in their order; goes on after those of an earlier start.

    Nothing is done if all of them are in the file. Returns how many were embedded.
    """
    digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()
    columns = schema([(TEXT, pa.string())], out, model, load)
    with Parts(out, columns, about(model, texts=digest)) as parts:
        if out.exists():  # of these very texts, or `parts` would refuse it
            advance(len(texts))
            return 0
        done = sum(batch.num_rows for batch in parts.rows([TEXT]))
        advance(done)
        for start in range(done, len(texts), TEXTS):
            check_stop()
            some = texts[start : start + TEXTS]
            vectors = packed(model.embed_texts(some), columns.field(EMBEDDING).type)
            parts.add(pa.record_batch([pa.array(some, pa.string()), vectors], parts.schema))
            advance(len(some))
        finish(parts, parts.rows, TEXT)
        return len(texts) - done


def finish(parts: Parts, rows: Callable[[], Iterable[pa.RecordBatch]], name: str) -> None:
    """Writes what was collected into the file, in the format that its name says.

    Args:
      parts: that collected it.
      rows: gives all rows, each time that it is called.
      name: of the column beside the vectors.
    """
    parts.flush()
    if parts.out.suffix.lower() == ".parquet":
        parts.finish(rows())
        return
    with written_whole(parts.out) as scratch, zipfile.ZipFile(scratch, "w") as archive:
        _write_embeddings(archive, rows, parts.about["dim"])
        names = np.array([value for batch in rows() for value in batch[name].to_pylist()], np.str_)
        for member, array in ((f"{name}s", names), ("model", np.array(parts.about["model"]))):
            file = io.BytesIO()
            np.lib.format.write_array(file, array, allow_pickle=False)
            archive.writestr(f"{member}.npy", file.getvalue())
    parts.drop()


def _write_embeddings(
    archive: zipfile.ZipFile, rows: Callable[[], Iterable[pa.RecordBatch]], dim: int
) -> None:
    """Writes the array `embeddings` of an .npz, a few rows at a time."""
    count = sum(batch.num_rows for batch in rows())
    header = {"descr": "<f4", "fortran_order": False, "shape": (count, dim)}
    with archive.open("embeddings.npy", "w", force_zip64=True) as member:
        np.lib.format.write_array_header_2_0(member, header)
        for vectors in blocks(rows(), dim):
            member.write(np.ascontiguousarray(vectors))
