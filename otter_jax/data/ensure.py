"""Makes a data set if it is missing: plans it from what the user names, then builds it."""

import contextlib
import dataclasses
import fcntl
import pathlib
from collections.abc import Iterator, Sequence

import rich.console
import rich.progress

from otter_jax.data.build.builder import Prepared, changes, check_exif, check_same, prepare
from otter_jax.data.build.parts import Done
from otter_jax.data.build.plan import NO_CAPTION, UNCAPTIONED, Options, Plan, SourceMissing
from otter_jax.data.build.report import read_report, table
from otter_jax.data.formats import class_folders, kinds
from otter_jax.data.formats import tars as web_dataset
from otter_jax.data.formats.reading import USUAL, Reading
from otter_jax.data.formats.tars import Tars
from otter_jax.data.public import layouts, openmoji
from otter_jax.data.source import parse_mixture, version_folder
from otter_jax.errors import UserError

# What a folder holds: a folder of pictures per class, with two or more each if classes are learned,
# any number if they are only tested; or files as `prepare` reads them, with labels among these.
LEARNED, TESTED, FILES = "learned", "tested", "files"
REMEDY = (
    "To make it: otter-jax prepare SOURCE --name {}; or name its tars in data.tars, the folder of "
    "a transfer's pictures in data.folder."
)


def ensure(
    dataset: str,
    data_dir: str,
    tars: Tars = (),
    folder: str = "",
    *,
    captions: bool = True,
    exif: str = "apply",
    holds: str = LEARNED,
) -> None:
    """Makes the set if it is missing; other processes wait meanwhile.

    If the set exists and its source does not any more, the set is taken as it is.

    Args:
      dataset: "openmoji", a name of your own for what is in `tars` or `folder`, or a set that
        exists already; several sets as "a+b".
      data_dir: the folder of all data sets.
      tars: paths or globs of web-dataset tars, for a set of your own; they are its split "train",
        or {split: tars}.
      folder: a folder of labelled pictures, for a set of your own.
      captions: whether every picture must have a caption; one to evaluate on need not.
      exif: "apply" or "ignore", as pictures are to be read.
      holds: what is in `folder`: LEARNED, TESTED or FILES.

    Raises:
      UserError: the set is missing and cannot be made, was made of something else, has pictures
        without the captions that it must have, or turned otherwise than `exif` says, or both tars
        and folder are given.
    """
    sets = pathlib.Path(data_dir).expanduser()
    mixed = [name for name, _ in parse_mixture(dataset)]
    if len(mixed) > 1 and (tars or folder):
        raise UserError(f"{dataset} is of several sets: make each by itself before.")
    if len(mixed) > 1:
        for name in mixed:
            ensure(name, data_dir, captions=captions, exif=exif)
        return
    home = _home(sets, dataset)
    if dataset == openmoji.NAME and home.exists() and not (tars or folder):
        return  # its packages may be gone; and other versions of them would draw differently
    try:
        reading, options = Reading(captions=captions), Options(exif=exif)
        plan = _plan_of_config(dataset, sets, tars, folder, reading, options, holds)
    except SourceMissing:
        if not home.exists():
            raise
        plan = None
    if plan is None:
        found = version_folder(sets, dataset, REMEDY.format(dataset))
        prepared = not (tars or folder)
    else:
        if home.exists():  # a set made for either use serves both, unless captions are missing
            details = {what: it for what, it in plan.details.items() if what != "captions"}
            plan = dataclasses.replace(plan, details=details)
        found, prepared = make(plan, data_dir), False
    check_exif(found, exif, prepared=prepared)
    _check_captions(home, dataset, captions)


def plan_of(
    sources: Sequence[str],
    name: str,
    options: Options,
    reading: Reading = USUAL,
    *,
    layout: str = "",
) -> Plan:
    """Plans a set from the files, or the public set, that a user names.

    Args:
      sources: files, folders or globs, all of one kind; or the folder of a public set.
      name: of the set.
      options: for the images.
      reading: what the files leave open.
      layout: "", or the public set's name, a key of `layouts.LAYOUTS`.

    Raises:
      UserError: a source that is not there, of no known kind, or of another kind than the first.
    """
    if not layout:
        return kinds.plan_of(sources, name, options, reading)
    if layout not in layouts.LAYOUTS:
        raise UserError(f"--layout {layout!r}: one of {', '.join(layouts.LAYOUTS)}.")
    folder = pathlib.Path(sources[0]).expanduser()
    if len(sources) > 1 or not folder.is_dir() or reading != USUAL:
        raise UserError(f"--layout {layout} takes one folder, and nothing about how to read it.")
    return layouts.plan_of(layout, folder, name, options)


def make(
    plan: Plan,
    data_dir: str,
    *,
    workers: int = 1,
    beam: str = "",
    done: Done | None = None,
) -> pathlib.Path:
    """Makes the set that `plan` describes if it is missing, and returns its folder.

    `workers`, `beam` and `done` are those of `builder.prepare`; without `done` a terminal shows a
    bar. Raises what that raises, and UserError if the existing set was made of other files.
    """
    home = _home(pathlib.Path(data_dir).expanduser(), plan.name)
    with _first(home) as missing:
        if missing:
            print(f"Building the data set {plan.name} in {home}", flush=True)
            with _progress(plan) if done is None else contextlib.nullcontext(done) as call:
                prepare(plan, home, workers=workers, beam=beam, done=call)
            print(table(read_report(home)), flush=True)
    check_same(home, plan)
    if not missing and (changed := changes(home, plan)):
        print(changed, flush=True)
    return home


def _home(sets: pathlib.Path, dataset: str) -> pathlib.Path:
    """Returns the version folder of a set that is made here."""
    return sets / dataset / str(Prepared.VERSION)


def _check_captions(home: pathlib.Path, dataset: str, captions: bool) -> None:
    """Raises UserError if captions are needed and missing; says if some pictures went for that."""
    without = left_out = 0
    for about in read_report(home).values():
        without += about["changed"].get(UNCAPTIONED, {"count": 0})["count"]
        left_out += sum(about["dropped"].get(why, {"count": 0})["count"] for why in NO_CAPTION)
    if captions and without:
        raise UserError(
            f"{without:,} pictures of the data set {dataset} have no caption: it was made to be "
            f"evaluated on. To train, give the data another name, or remove {home} to make it "
            "again without them."
        )
    if not captions and left_out:
        print(
            f"{dataset}: {left_out:,} records without caption were left out when it was made; "
            f"remove {home} to evaluate on them, too."
        )


def _plan_of_config(
    dataset: str,
    sets: pathlib.Path,
    given: Tars,
    folder: str,
    reading: Reading,
    options: Options,
    holds: str,
) -> Plan | None:
    """Plans the set that a config names; None if the config names no source for it."""
    if given and folder:
        raise UserError(
            f"The data set {dataset} is to be made of tars and of the folder {folder}: give one of "
            "the two."
        )
    if dataset == openmoji.NAME:
        if given or folder:
            kind = "tars" if given else "folder"
            raise UserError(f"The name openmoji is taken: give the data of your {kind} another.")
        return openmoji.plan(options)
    if given:
        return web_dataset.plan(dataset, given, options, reading)
    if not folder:
        return None
    root = pathlib.Path(folder).expanduser().resolve()
    if (sets / dataset).resolve().is_relative_to(root):  # the next time it would be read as a class
        raise UserError(
            f"The data set {dataset} would be built in the folder that holds its pictures, "
            f"{root}: give it another name or another folder of data sets."
        )
    if holds != FILES:
        return class_folders.plan(dataset, folder, options, learned=holds == LEARNED)
    if not root.is_dir():
        raise SourceMissing(f"There is no folder {root}.")
    return kinds.plan_of([str(root)], dataset, options, reading)


@contextlib.contextmanager
def _progress(plan: Plan) -> Iterator[Done]:
    """Shows progress on a terminal; yields the function to call after each unit."""
    console = rich.console.Console(stderr=True)
    total = sum(unit.size for units in plan.units.values() for unit in units)
    with rich.progress.Progress(
        console=console, disable=not console.is_terminal, transient=True
    ) as bar:
        task = bar.add_task(plan.name, total=total)
        yield lambda size, records: bar.advance(task, size)


@contextlib.contextmanager
def _first(home: pathlib.Path) -> Iterator[bool]:
    """Yields True to the one process that is to make the set, False once it is there."""
    if home.exists():
        yield False
        return
    with _lock(home.parent):
        yield not home.exists()


@contextlib.contextmanager
def _lock(folder: pathlib.Path) -> Iterator[None]:
    """Admits one process at a time. The lock is the system's: a killed process leaves none."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / ".lock", "w")  # noqa: SIM115 - closed below
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"Another process makes the data set in {folder}; waiting for it.", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        raise UserError(
            f"The data set cannot be written in {folder}: {error.strerror}. Mend data.dir or "
            "--data_dir."
        ) from error
    with file:
        yield
