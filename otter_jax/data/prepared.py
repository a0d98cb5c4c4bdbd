"""Sets made of units: every record checked, large images resized once, and nothing done twice.

A unit is what is read in one go: a tar, a megabyte of a table, a folder. Its records are checked
and become a part, a Parquet file that is renamed into place when it is whole: a preparation that
was stopped goes on with the units that have no part yet. At the end the parts become a TFDS set,
without the duplicates among them and in the order of a hash, so that a slice such as "train[95%:]"
is a fair sample; then they are removed. On disk that is up to three times the set while it is made.

What is wrong with a record stops nothing: it is counted and named in report.json beside the set.
"""

import collections
import concurrent.futures.process
import dataclasses
import functools
import hashlib
import itertools
import json
import lzma
import multiprocessing
import os
import pathlib
import shlex
import shutil
import time
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow_datasets as tfds
from jaxtyping import Bool, Int

from otter_jax.data import images, worker
from otter_jax.data.captions import clean
from otter_jax.data.features import check_name, write
from otter_jax.data.tally import NAMED, Tally, read_report, table, write_report
from otter_jax.errors import UserError

MAX_CHARS = 10_000  # of a stored caption
MAX_BYTES = 64 << 20  # of an image's file
WINDOW = 64  # records of a unit held at once
THREADS = 16  # at most, of a process
ROWS = 256  # records of a part written and read at once
ABSENT = ("missing file", "unreadable file", "image not downloaded", "rest of a broken file")

Item, Result = TypeVar("Item"), TypeVar("Result")


class Record(NamedTuple):
    """One record as a source has it.

    Attributes:
      name: what the report calls it: its file, and what it is called there.
      image: its bytes, or the file that holds them.
      fields: what the set's features ask for beside the image.
    """

    name: str
    image: bytes | pathlib.Path
    fields: dict[str, Any]


@runtime_checkable
class Unit(Protocol):
    """What is read in one go. It can be pickled, and its repr says what it is.

    Attributes:
      size: for the progress, in any one measure: bytes, files.
    """

    size: int

    def read(self, tally: Tally) -> Iterator[Record]:
        """The records, always in the same order; what is none goes into the tally."""


@dataclasses.dataclass(frozen=True)
class Span:
    """A unit, but for its reading: from `start` to `stop` of something, in bytes or in files."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        """How much it is."""
        return self.stop - self.start


@dataclasses.dataclass(frozen=True)
class Options:
    """What is done to every record.

    Attributes:
      resize: pixels; an image whose shorter side is longer is resized to it. 0: none is, and all
        are stored as the bytes that came.
      format: "jpeg" or "webp", of the resized ones.
      quality: of their encoder, 1 to 100.
      min_size: pixels; images whose shorter side is shorter are dropped.
      keep_duplicates: records whose image bytes and caption or labels are those of an earlier one.
    """

    resize: int = 0
    format: str = "jpeg"
    quality: int = 90
    min_size: int = 0
    keep_duplicates: bool = True

    def __post_init__(self):
        if self.resize < 0 or self.min_size < 0:
            raise UserError(f"resize={self.resize}, min_size={self.min_size}: pixels, 0 or more.")
        if self.format not in images.ENCODERS:
            raise UserError(f"format={self.format!r}: one of {', '.join(images.ENCODERS)}.")
        if not 1 <= self.quality <= 100:
            raise UserError(f"quality={self.quality}: from 1 to 100.")


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a set is made of, and how.

    Attributes:
      name: of the set.
      features: beside `image`.
      units: of each split.
      files: what the units come from, {"name", "size"} of each, by split: other files make another
        set.
      origin: the same in a few words, for people.
      records: what they are called: "pairs" or "pictures".
      details: what else makes another set: columns, folders.
    """

    name: str
    features: Mapping[str, Any]
    units: Mapping[str, Sequence[Unit]]
    files: Mapping[str, Sequence[Mapping[str, Any]]]
    origin: str
    records: str = "pairs"
    options: Options = Options()
    details: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        check_name(self.name)

    @property
    def digest(self) -> str:
        """A name for what would be in the parts."""
        what = (self.name, self.units, self.files, self.options, self.origin, *self.features)
        return hashlib.sha256(repr(what).encode("utf-8", "replace")).hexdigest()[:16]


def prepare(
    plan: Plan,
    home: pathlib.Path,
    *,
    workers: int = 1,
    beam: str = "",
    done: Callable[[int, int], None] = lambda size, records: None,
) -> None:
    """Makes the set in the version folder `home`, from the parts that are there and those it makes.

    Args:
      plan: what of.
      home: DATA_DIR/NAME/VERSION.
      workers: processes that make parts; 1 is this one.
      beam: options of Apache Beam, "--runner=FlinkRunner ...", which then makes the parts, and the
        set from them, wherever it runs; all of its workers must see `home` and the source under
        the same paths.
      done: is told of every part its unit's bytes and its records, 0 records if it was there.

    Raises:
      UserError: nothing is left, the disk is full, or a worker dies.
    """
    parts = home.parent / f"parts.{plan.digest}"
    began = time.monotonic()
    try:
        for other in home.parent.glob("parts.*"):  # of other files or options
            if other != parts:
                shutil.rmtree(other)
        parts.mkdir(parents=True, exist_ok=True)
        options = _beam_options(beam) if beam else None
        made = _make_parts(plan, parts, workers, options, done)
        seconds = time.monotonic() - began
        about = {"made": made, "seconds": seconds}
        write(Prepared(plan, home.parent.parent, parts, about, beam=bool(beam)), options)
    except OSError as error:
        raise UserError(
            f"The set {plan.name} cannot be written in {home.parent}: {error.strerror or error}. "
            f"What is done is kept; the same command goes on from there."
        ) from error
    except EmptySet:
        shutil.rmtree(parts)  # once the source is mended, all is to be read again
        raise
    shutil.rmtree(parts)


class EmptySet(UserError):
    """Nothing of the source can be kept."""


def check_same(home: pathlib.Path, plan: Plan) -> None:
    """That the set in `home` was made of files with the names and sizes of the plan's.

    Raises UserError if not.
    """
    remedy = "Give this data another name, or remove that folder to build it again."
    report = read_report(home)
    built = {split: part.get("files") for split, part in report.items()}
    if not any(built.values()):
        raise UserError(f"The data set in {home} was not built from files of yours. {remedy}")
    for part in report.values():
        for what, ours in {"origin": plan.origin, **plan.details}.items():
            theirs = part[what] if what == "origin" else part["details"].get(what)
            if theirs != ours:
                raise UserError(
                    f"The data set in {home} was built with another {what}, {theirs!r}, not "
                    f"{ours!r}. {remedy}"
                )
    if built != {split: list(files) for split, files in plan.files.items()}:
        was = [file["name"] for part in built.values() for file in part]
        more = f" and {len(was) - 10:,} more" if len(was) > 10 else ""
        raise UserError(
            f"The data set in {home} was built from other files, by name or size: "
            f"{', '.join(was[:10])}{more}. {remedy}"
        )


def check_options(home: pathlib.Path, options: Options) -> None:
    """That the set in `home` was made with these options. Raises UserError if not."""
    asked = dataclasses.asdict(options)
    for part in read_report(home).values():
        other = {key: value for key, value in part["options"].items() if value != asked[key]}
        if other:
            was = ", ".join(f"{key}={value!r}" for key, value in other.items())
            raise UserError(
                f"The data set in {home} was made with {was}. Give this data another name, or "
                "remove that folder to make it again."
            )


class Prepared(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """The set that a plan's parts become."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(
        self,
        plan: Plan,
        data_dir: str | os.PathLike,
        parts: pathlib.Path,
        about: Mapping[str, Any],
        *,
        beam: bool = False,
    ):
        """Of the plan's parts, all in the folder `parts`; `about` goes into the report.

        With `beam` Apache Beam writes the set.
        """
        self.name = plan.name  # TFDS names a set by its class; here one class makes many
        self._plan, self._parts, self._about, self._beam = plan, parts, about, beam
        self._report: dict[str, Any] = {}
        super().__init__(data_dir=data_dir)

    def _info(self) -> tfds.core.DatasetInfo:
        image = {"image": tfds.features.Image(shape=(None, None, 3))}
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{self._plan.records} from {self._plan.origin}; report.json says which.",
            features=tfds.features.FeaturesDict({**image, **self._plan.features}),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {split: self._generate_examples(split) for split in self._plan.units}

    def _generate_examples(self, split: str) -> Any:
        parts = [self._parts / name for name in _names(self._plan)[split]]
        options, tally = self._plan.options, Tally()
        for part in parts:
            tally.add(json.loads(part.with_suffix(".json").read_text("utf-8")))
        repeated = _repeated(parts)
        if repeated.any():
            entry = {"count": int(repeated.sum()), "first": _first_names(parts, repeated)}
            if options.keep_duplicates:
                tally.add({"changed": {"duplicate, kept": entry}})
            else:
                tally.add({"dropped": {"duplicate": entry}})
        left_out = repeated & (not options.keep_duplicates)
        kept = int((~left_out).sum())
        sides = np.minimum(_column(parts, "width"), _column(parts, "height"))
        self._report[split] = {
            "records": self._plan.records,
            "origin": self._plan.origin,
            "details": dict(self._plan.details),
            "read": kept + tally.total("dropped"),
            "kept": kept,
            "duplicates": int(repeated.sum()),
            "shorter_side": _quantiles(sides),  # pixels, as they came
            **tally.found,
            "files": list(self._plan.files[split]),
            "options": dataclasses.asdict(options),
            **self._about,
        }
        if not kept:
            raise EmptySet(
                f"The data set {self.name} would have no {self._plan.records} in {split}.\n"
                f"{table(self._report)}"
            )
        write_report(self.data_path, self._report)
        ends = np.cumsum([_rows(part) for part in parts])
        pieces = [
            (part, int(end - len(out)), out)
            for part, end, out in zip(parts, ends, np.split(left_out, ends[:-1]), strict=True)
        ]
        if self._beam:
            import apache_beam

            return apache_beam.Create(pieces, reshuffle=True) | apache_beam.FlatMap(_kept)
        return itertools.chain.from_iterable(map(_kept, pieces))


def pair(
    name: str, *, image: bytes | pathlib.Path | None, caption: Any, key: str, sidecar: str = "{}",
    tally: Tally,
) -> Record | None:  # fmt: skip
    """The record of an image and its caption; None if one is missing, with the reason tallied.

    A caption of control characters is cleaned of them, a long one cut.
    """
    name = clean(name)
    if image is None:
        return tally.dropped("caption without image", name)
    if not isinstance(caption, str):
        return tally.dropped("missing caption", name)
    cleaned = clean(caption)
    if not cleaned:
        return tally.dropped("empty caption", name)
    if cleaned != caption.strip():
        tally.changed("caption cleaned of control characters", name)
    if "\ufffd" in caption:
        tally.changed("caption with U+FFFD for bytes that are no UTF-8", name)
    if len(cleaned) > MAX_CHARS:
        tally.changed(f"caption cut at {MAX_CHARS:,} characters", name)
    fields = {"caption": cleaned[:MAX_CHARS], "key": clean(key), "json": sidecar}
    return Record(name, image, fields)


def pair_features() -> dict[str, Any]:
    """What `pair` makes: caption, key, and what else is known as the text of a JSON object."""
    return {name: tfds.features.Text() for name in ("caption", "key", "json")}


def need(root: pathlib.Path, names: Sequence[str], what: str) -> pathlib.Path:
    """The file in `root` that has one of these names. Raises UserError, saying `what`, if none."""
    for name in names:
        if (root / name).exists():
            return root / name
    raise UserError(f"There is no {' or '.join(names)} in {root}, {what}.")


def need_all(root: pathlib.Path, pattern: str, what: str) -> list[pathlib.Path]:
    """The files in `root` of a glob, sorted. Raises UserError, saying `what`, if there are none."""
    found = sorted(root.glob(pattern))
    if not found:
        raise UserError(f"There is no {pattern} in {root}, {what}.")
    return found


def listed(files: Iterable[pathlib.Path]) -> list[dict[str, Any]]:
    """Names and sizes of files, as a plan has them."""
    return [{"name": clean(file.name), "size": file.stat().st_size} for file in files]


def in_threads(
    work: Callable[[Item], Result], items: Iterable[Item]
) -> Iterator[tuple[Item, Result]]:
    """(item, work(item)) in the order of the items; WINDOW of them are held at once."""
    with concurrent.futures.ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        ahead: collections.deque = collections.deque()
        for item in items:
            ahead.append((item, pool.submit(work, item)))
            if len(ahead) > WINDOW:
                item, result = ahead.popleft()
                yield item, result.result()
        while ahead:
            item, result = ahead.popleft()
            yield item, result.result()


class _Checked(NamedTuple):
    """The image of a record, as it is stored; `why` and `detail` if it cannot be."""

    why: str = ""
    detail: str = ""
    image: bytes = b""
    size: tuple[int, int] = (0, 0)  # width and height as it came
    resized: bool = False
    digest: int = 0  # of the bytes that came, and the caption or the labels


def check(record: Record, options: Options) -> _Checked:
    """Reads, decodes and if need be resizes the image of a record."""
    try:
        content = record.image
        if isinstance(content, pathlib.Path):
            if content.stat().st_size > MAX_BYTES:
                return _Checked("file over 64 MiB")
            content = content.read_bytes()
    except FileNotFoundError:
        return _Checked("missing file")
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        return _Checked("unreadable file", f" ({error})")
    if not content:
        return _Checked("empty file")
    if len(content) > MAX_BYTES:
        return _Checked("file over 64 MiB")
    # Keys and what else came with a pair may differ.
    said = [record.fields.get(name) for name in ("caption", "labels")]
    try:
        size, stored = images.shrink(
            content, options.resize, format=options.format, quality=options.quality
        )
    except images.UnreadableImage as error:
        return _Checked("unreadable image", f" ({error})")
    if min(size) < options.min_size:
        return _Checked("image too small", f" ({size[0]} x {size[1]})")
    digest = hash64(content, repr(said).encode("utf-8", "surrogatepass"))
    return _Checked(image=stored, size=size, resized=stored is not content, digest=digest)


def hash64(*parts: bytes) -> int:
    """A number of 64 bits, signed, that tells these bytes from others."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part)
    return int.from_bytes(digest.digest(), "little", signed=True)


def _names(plan: Plan) -> dict[str, list[str]]:
    """The file names of the parts of each split."""
    return {
        split: [f"{split}-{number:06}.parquet" for number in range(len(units))]
        for split, units in plan.units.items()
    }


def _beam_options(text: str) -> Any:
    """Apache Beam's options. Raises UserError if it is not installed."""
    try:
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise UserError(
            "--beam needs Apache Beam, which is not installed: pip install -e '.[beam]'."
        ) from error
    return PipelineOptions(shlex.split(text))


def _make_parts(
    plan: Plan,
    folder: pathlib.Path,
    workers: int,
    beam_options: Any,
    done: Callable[[int, int], None],
) -> int:
    """Makes the parts that are missing; how many records these have."""
    missing, made = [], 0
    for split, names in _names(plan).items():
        for unit, name in zip(plan.units[split], names, strict=True):
            if (folder / name).exists() and not _worth_again(folder / name):
                done(unit.size, 0)
            else:
                missing.append((unit, folder / name))
    make = functools.partial(make_part, options=plan.options)
    if beam_options is not None:
        import apache_beam

        with apache_beam.Pipeline(options=beam_options) as pipeline:
            units = pipeline | apache_beam.Create(missing, reshuffle=True)
            _ = units | apache_beam.MapTuple(make)
        return sum(_rows(path) for _, path in missing)
    try:
        for unit, records in _run(make, missing, workers):
            made += records
            done(unit.size, records)
    except concurrent.futures.process.BrokenProcessPool as error:
        raise UserError(
            f"A process that prepared {plan.name} was killed, perhaps for want of memory. What is "
            "done is kept; the same command goes on from there, in less memory with fewer workers."
        ) from error
    return made


def _run(
    make: Callable[[Unit, pathlib.Path], int],
    missing: Sequence[tuple[Unit, pathlib.Path]],
    workers: int,
) -> Iterator[tuple[Unit, int]]:
    """Each unit when its part is made, and the part's records."""
    if min(workers, len(missing)) <= 1:
        for unit, path in missing:
            yield unit, make(unit, path)
        return
    with concurrent.futures.ProcessPoolExecutor(
        min(workers, len(missing)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=worker.begin,
    ) as pool:
        units = {pool.submit(make, unit, path): unit for unit, path in missing}
        try:
            for future in concurrent.futures.as_completed(units):
                yield units[future], future.result()
        except BaseException:  # now, not when the units under way are through
            pool.shutdown(wait=False, cancel_futures=True)
            for child in multiprocessing.active_children():
                child.kill()
            raise


def make_part(unit: Unit, path: pathlib.Path, *, options: Options) -> int:
    """Writes the part of a unit, and beside it what was wrong with the unit; its records."""
    tally, rows, written = Tally(), [], 0
    scratch = path.with_suffix(f".{uuid.uuid4().hex}.tmp")  # a runner may try a unit twice at once
    with pq.ParquetWriter(scratch, _PART, compression="none") as writer:
        for record, checked in in_threads(
            functools.partial(check, options=options), _readable(unit, tally)
        ):
            if checked.why:
                tally.dropped(checked.why, record.name + checked.detail)
                continue
            if checked.resized:
                tally.changed(f"image resized to {options.resize} pixels", record.name)
            rows.append(
                (record.name, checked.image, *checked.size, checked.digest,
                 json.dumps(record.fields))
            )  # fmt: skip
            if len(rows) == ROWS:
                written += _write(writer, rows)
        written += _write(writer, rows)
    path.with_suffix(".json").write_text(json.dumps(tally.found), encoding="utf-8")
    scratch.replace(path)
    return written


def _readable(unit: Unit, tally: Tally) -> Iterator[Record]:
    """The records of a unit, as far as it can be read."""
    try:
        yield from unit.read(tally)
    except (OSError, EOFError, zlib.error, lzma.LZMAError, pa.ArrowException) as error:
        tally.dropped("rest of a broken file", f"{_first_path(unit)}: {error}")


def _first_path(unit: Unit) -> str:
    """What a unit is of, for people."""
    paths = (v for v in dataclasses.asdict(unit).values() if isinstance(v, pathlib.Path))
    return next((path.name for path in paths), repr(unit))


def _worth_again(part: pathlib.Path) -> bool:
    """Whether files were not there when a part was made; they may be by now."""
    dropped = json.loads(part.with_suffix(".json").read_text("utf-8"))["dropped"]
    return not dropped.keys().isdisjoint(ABSENT)


_PART = pa.schema(
    [
        ("name", pa.string()),
        ("image", pa.binary()),
        ("width", pa.int32()),  # as it came
        ("height", pa.int32()),
        ("digest", pa.int64()),  # of what came; two of 15 million are equal by chance in 1 of 10^5
        ("fields", pa.string()),  # JSON
    ]
)


def _write(writer: pq.ParquetWriter, rows: list[tuple]) -> int:
    columns = zip(*rows, strict=True) if rows else [[]] * len(_PART)
    arrays = [pa.array(list(c), f.type) for c, f in zip(columns, _PART, strict=True)]
    writer.write_batch(pa.record_batch(arrays, _PART))
    written = len(rows)
    rows.clear()
    return written


def _rows(part: pathlib.Path) -> int:
    return pq.read_metadata(part).num_rows


def _kept(piece: tuple[pathlib.Path, int, np.ndarray]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and example of the records of a part, without those that are left out."""
    path, first, left_out = piece
    with pq.ParquetFile(path) as part:
        batches = part.iter_batches(ROWS, columns=["image", "fields"])
        rows = itertools.chain.from_iterable(batch.to_pylist() for batch in batches)
        for number, row in enumerate(rows):
            if not left_out[number]:
                yield first + number, {"image": row["image"], **json.loads(row["fields"])}


def _first_names(parts: Sequence[pathlib.Path], chosen: Bool[np.ndarray, "_"]) -> list[str]:
    """The names of the first records that are chosen."""
    wanted = np.flatnonzero(chosen)[:NAMED]
    names, first = [], 0
    for part in parts:
        last = first + _rows(part)
        here = [int(n) - first for n in wanted if first <= n < last]
        if here:
            column = pq.read_table(part, columns=["name"])["name"]
            names += [column[n].as_py() for n in here]
        first = last
    return names


def _column(parts: Sequence[pathlib.Path], name: str) -> Int[np.ndarray, "_"]:
    found = [pq.read_table(part, columns=[name])[name].to_numpy() for part in parts]
    return np.concatenate([np.zeros(0, np.int64), *found])


def _quantiles(values: Int[np.ndarray, "_"]) -> dict[str, int]:
    """The least, the largest, and what 1, 10, 50, 90 and 99 % are at most; {} of nothing."""
    shares = {"min": 0, "1%": 0.01, "10%": 0.1, "50%": 0.5, "90%": 0.9, "99%": 0.99, "max": 1}
    return {name: int(np.quantile(values, q)) for name, q in shares.items()} if len(values) else {}


def _repeated(parts: Sequence[pathlib.Path]) -> Bool[np.ndarray, "_"]:
    """Which records, all parts in a row, have the digest of an earlier one."""
    digests = _column(parts, "digest")
    repeated = np.ones(len(digests), bool)
    repeated[np.unique(digests, return_index=True)[1]] = False
    return repeated
