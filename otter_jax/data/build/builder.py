"""Makes the set that a plan describes: first its parts, then one TFDS set from all parts.

The records of the set are ordered by a hash of their images, so that a slice such as "train[95%:]"
is a fair sample, of images that the rest does not have; duplicates are counted, or left out.
Afterwards the parts are removed. While a set is made, it takes up to three times its size on disk.
"""

import collections
import contextlib
import dataclasses
import io
import itertools
import os
import pathlib
import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Int

from otter_jax.data import images
from otter_jax.data.build.parts import Done, is_there, parts_of, read_about, silent, tallies
from otter_jax.data.build.pieces import (
    Piece,
    column,
    count_records,
    first_names,
    pictures_in_order,
    repeated_in,
)
from otter_jax.data.build.plan import Options, Plan
from otter_jax.data.build.report import NAMED, PICTURES, Tally, read_report, table, write_report
from otter_jax.data.build.work import make_parts, stems
from otter_jax.errors import UserError

FULL = ("No space left on device", "Disk quota exceeded")
ABSENT = 1_000  # missing files that are named, evenly over all
REMEDY = "Give this data another name, or remove that folder to make it again."


class TooFewRecords(UserError):
    """Raised when too few records remain to make a set."""


def prepare(
    plan: Plan,
    home: pathlib.Path,
    *,
    workers: int = 1,
    beam: str = "",
    done: Done = silent,
) -> None:
    """Makes the set in the folder `home`; parts made earlier are used again.

    Args:
      plan: of the set.
      home: DATA_DIR/NAME/VERSION.
      workers: processes that make parts; 1 is this one.
      beam: options of Apache Beam, "--runner=FlinkRunner ...", which then makes the parts, and the
        set from them, wherever it runs; all of its workers must see `home` and the source under
        the same paths.
      done: called every few records with how much of the units' sizes they are, as far as it is
        known, and their number, None for what was there.

    Raises:
      UserError: no record remains, a class has too few, the disk is full, or a worker dies.
    """
    parts = home.parent / f"parts.{plan.digest}"
    began = time.monotonic()
    try:
        for other in home.parent.glob("parts.*"):
            if other != parts:
                print(
                    f"What an earlier start of {plan.name} checked is of no use: its source, its "
                    "options or this program have changed since.",
                    flush=True,
                )
                shutil.rmtree(other)
        parts.mkdir(parents=True, exist_ok=True)
        options = _beam_options(beam) if beam else None
        made = make_parts(plan, parts, workers, options, done)
        about = {"made": made, "seconds": time.monotonic() - began}
        report, pieces = _inspect(plan, parts, about)
        write(Prepared(plan, home.parent.parent, pieces, report, beam=bool(beam)), options)
    except OSError as error:
        raise _unwritten(plan, home, error.strerror or str(error)) from error
    except RuntimeError as error:  # ArrayRecord raises it for a full disk, too
        why = next((full for full in FULL if full in str(error)), "")
        if not why:
            raise
        raise _unwritten(plan, home, why) from error
    except TooFewRecords:
        shutil.rmtree(parts)  # once the source is mended, all of it must be read again
        raise
    shutil.rmtree(parts)


def _unwritten(plan: Plan, home: pathlib.Path, why: str) -> UserError:
    return UserError(
        f"The set {plan.name} cannot be written in {home.parent}: {why}. What is done is kept; the "
        "same command goes on from there."
    )


def check_same(home: pathlib.Path, plan: Plan) -> None:
    """Raises UserError if the set in `home` was made of other files or details than the plan's.

    Files are compared by their names and sizes, and by what else the plan says of them but their
    times: `changes` says those.
    """
    report = read_report(home)
    built = {split: about.get("files") for split, about in report.items()}
    if not any(built.values()):
        raise UserError(
            f"The data set in {home} was not built from files of yours, or by an older version of "
            f"otter_jax. {REMEDY}"
        )
    if not _are_same(built, plan.files):
        names = [file["name"] for files in built.values() for file in files]
        more = f" and {len(names) - 10:,} more" if len(names) > 10 else ""
        origin = next(iter(report.values()))["origin"]
        raise UserError(
            f"The data set in {home} was built from other files than {plan.origin}, by name or "
            f"size: from {origin}, {', '.join(names[:10])}{more}. {REMEDY}"
        )
    for about in report.values():
        for what, ours in plan.details.items():
            theirs = about["details"].get(what, ours)
            if theirs != ours:
                raise UserError(
                    f"The data set in {home} was built with another {what}, {theirs!r}, not "
                    f"{ours!r}. {REMEDY}"
                )


def changes(home: pathlib.Path, plan: Plan) -> str:
    """Returns how the source seems to have changed since the set in `home` was made, "" if not.

    Noticed are other modification times of the plan's files, and files that were missing when the
    set was made and are there now; of more than ABSENT missing ones, so many are looked for.
    Pictures that a table names, and that were there, are not looked at again.
    """
    found = []
    for split, about in read_report(home).items():
        for built, now in zip(about["files"], plan.files.get(split, ()), strict=False):
            if built.get("modified", now.get("modified")) != now.get("modified"):
                found.append(f"{now['name']}: another modification time")
        there = [path for path in about.get("absent", {}).get("files", ()) if is_there(path)]
        if there:
            count, looked = about["absent"]["count"], len(about["absent"]["files"])
            some = f"{looked:,} of the {count:,}" if looked < count else f"the {count:,}"
            found.append(
                f"{len(there):,} of {some} files that could not be read are there, such as "
                f"{there[0]}"
            )
    if not found:
        return ""
    more = f" (and {len(found) - NAMED:,} more)" if len(found) > NAMED else ""
    return (
        f"The set {plan.name} is used as it was made, but since then {'; '.join(found[:NAMED])}"
        f"{more}. If that matters, remove the set, and the same command makes it again: "
        f"rm -r {shlex.quote(str(home))}"
    )


def _are_same(
    built: Mapping[str, Sequence[Mapping[str, Any]] | None],
    files: Mapping[str, Sequence[Mapping[str, Any]]],
) -> bool:
    """Tells whether the files of a set are those of a plan, by all but times that the set notes."""
    return built.keys() == files.keys() and all(
        len(of := built[split] or ()) == len(now)
        and all(
            about.get(key) == value
            for noted, about in zip(of, now, strict=True)
            for key, value in noted.items()
            if key != "modified"
        )
        for split, now in files.items()
    )


def check_options(home: pathlib.Path, options: Options) -> None:
    """Raises UserError if the set in `home` was made with other options."""
    asked = dataclasses.asdict(options)
    for about in read_report(home).values():
        other = {key: value for key, value in about["options"].items() if value != asked[key]}
        if other:
            was = ", ".join(f"{key}={value!r}" for key, value in other.items())
            raise UserError(f"The data set in {home} was made with {was}. {REMEDY}")


def check_exif(home: pathlib.Path, exif: str, *, prepared: bool) -> None:
    """Raises UserError if pictures of the set in `home` were turned otherwise than `exif` says.

    Those that were turned upright cannot be turned back. Those whose orientation was ignored are as
    wanted if the set was `prepared` so by hand.
    """
    changed = [about.get("changed", {}) for about in read_report(home).values()]
    done = images.TURNED if exif == "ignore" else images.IGNORED
    count = sum(reasons[done]["count"] for reasons in changed if done in reasons)
    if count and (exif == "ignore" or not prepared):
        other, how = "ignore", "stored as their pixels lie, their EXIF orientation ignored,"
        if exif == "ignore":
            other, how = "apply", "turned upright by their EXIF orientation"
        raise UserError(
            f"{count:,} pictures of the data set in {home} were {how} when it was made, and "
            f"data.exif={exif} cannot change that. Say --config.data.exif={other}; or make the set "
            f"again, in otter-jax prepare with --exif {exif}. {REMEDY}"
        )


def _inspect(
    plan: Plan, folder: pathlib.Path, about: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, list[Piece]]]:
    """Returns the report of the parts in `folder`, and the pieces of each split.

    `about` goes into the report of each split. Raises TooFewRecords if no record of a split, or
    too few of a class, remain.
    """
    report, pieces = {}, {}
    for split, units in stems(plan, folder).items():
        found, pieces[split] = _inspect_split(plan, split, units)
        report[split] = found | about
        if not found["kept"]:
            raise TooFewRecords(
                f"The data set {plan.name} would have no {plan.records} in {split}.\n"
                f"{table(report)}"
            )
    if plan.check_classes is not None:
        every = itertools.chain.from_iterable(pieces.values())
        counts = collections.Counter(label for piece in every for label in piece.labels())
        try:
            plan.check_classes(counts)
        except UserError as error:
            raise TooFewRecords(f"{error}\n{table(report)}") from error
    return report, pieces


def _inspect_split(
    plan: Plan, split: str, units: Sequence[pathlib.Path]
) -> tuple[dict[str, Any], list[Piece]]:
    """Returns a split's report, and its parts with the records to be left out marked.

    `units` are the stems of the units' parts.
    """
    tally = Tally()
    for found in itertools.chain.from_iterable(map(tallies, units)):
        tally.add(found)
    parts = list(itertools.chain.from_iterable(map(parts_of, units)))
    repeated = repeated_in(parts)
    if repeated.any():
        entry = {"count": int(repeated.sum()), "first": first_names(parts, repeated)}
        if plan.options.keep_duplicates:
            tally.add({"changed": {"duplicate, kept": entry}})
        else:
            tally.add({"dropped": {"duplicate": entry}})
    absent = [path for part in parts for path in read_about(part)["absent"]]
    left_out = repeated & (not plan.options.keep_duplicates)
    kept = int((~left_out).sum())
    sides = np.minimum(column(parts, "width"), column(parts, "height"))
    rows_of_picture = np.unique(column(parts, "picture")[~left_out], return_counts=True)[1]
    pieces, first = [], 0
    for part in parts:
        last = first + count_records(part)
        pieces.append(Piece(part, split, first, left_out[first:last]))
        first = last
    report = {
        "records": plan.records,
        "origin": plan.origin,
        "details": dict(plan.details),
        "read": kept + tally.total("dropped"),
        "kept": kept,
        "duplicates": int(repeated.sum()),
        "pictures": len(rows_of_picture),  # different ones
        "shared_pictures": int((rows_of_picture > 1).sum()),  # with several records
        "shorter_side": _quantiles(sides),  # pixels, as they came
        **tally.found,
        "files": list(plan.files[split]),
        "options": dataclasses.asdict(plan.options),
    }
    if absent:
        some = np.linspace(0, len(absent) - 1, min(ABSENT, len(absent))).astype(int)
        report["absent"] = {"count": len(absent), "files": [absent[i] for i in some]}
    return report, pieces


def _quantiles(values: Int[np.ndarray, "_"]) -> dict[str, int]:
    """Returns minimum, maximum and the 1, 10, 50, 90 and 99 % quantiles; {} for no values."""
    shares = {"min": 0, "1%": 0.01, "10%": 0.1, "50%": 0.5, "90%": 0.9, "99%": 0.99, "max": 1}
    return {name: int(np.quantile(values, q)) for name, q in shares.items()} if len(values) else {}


class Prepared(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Writes the pieces of a plan's parts as a TFDS set."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(
        self,
        plan: Plan,
        data_dir: str | os.PathLike,
        pieces: Mapping[str, Sequence[Piece]],
        report: Mapping[str, Any],
        *,
        beam: bool = False,
    ):
        """Takes the pieces of each split, and the report that is written beside them.

        With `beam` Apache Beam writes the set.
        """
        self.name = plan.name  # TFDS names a set by its class; here one class makes many
        self._plan, self._pieces, self._report, self._beam = plan, pieces, report, beam
        super().__init__(data_dir=data_dir)

    def _info(self) -> tfds.core.DatasetInfo:
        image = {"image": tfds.features.Image(shape=(None, None, 3))}
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{self._plan.records} from {self._plan.origin}; report.json says which.",
            features=tfds.features.FeaturesDict({**image, **self._plan.features}),
            disable_shuffling=True,  # TFDS sorts by our keys, not by a hash of them
            **self._plan.credit,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        write_report(self.data_path, self._report)
        for split, pieces in self._pieces.items():
            np.save(
                pathlib.Path(self.data_path) / PICTURES.format(split), pictures_in_order(pieces)
            )
        return {split: self._generate_examples(split) for split in self._pieces}

    def _generate_examples(self, split: str) -> Any:
        if self._beam:
            import apache_beam

            pieces = apache_beam.Create(self._pieces[split], reshuffle=True)
            return pieces | apache_beam.FlatMap(Piece.examples)
        return itertools.chain.from_iterable(map(Piece.examples, self._pieces[split]))


def _beam_options(text: str) -> Any:
    """Returns the PipelineOptions of Apache Beam. Raises UserError if it is not installed."""
    try:
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise UserError(
            "--beam needs Apache Beam, which is not installed: pip install -e '.[beam]'."
        ) from error
    return PipelineOptions(shlex.split(text))


def write(builder: tfds.core.DatasetBuilder, beam_options: Any = None) -> None:
    """Writes the set of a TFDS builder as ArrayRecord files, which are read without TensorFlow.

    TFDS sorts by the key or a hash of it: in memory up to 1 GB, beyond that through temporary files
    as large as the set itself. `beam_options` are the PipelineOptions of Apache Beam, for a builder
    that uses it.
    """
    for leftover in pathlib.Path(builder.data_dir).parent.glob("incomplete.*"):
        shutil.rmtree(leftover)  # of a build that was killed
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()  # its bars would fill a log
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS announces sizes it does not know yet
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(
                try_download_gcs=False, beam_options=beam_options
            ),
            file_format="array_record",
        )
