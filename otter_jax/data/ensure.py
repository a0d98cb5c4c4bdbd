"""Makes a set unless it is there."""

import contextlib
import fcntl
import functools
import pathlib
from collections.abc import Callable, Iterator

import tensorflow_datasets as tfds

from otter_jax.data.build.builder import Prepared, check_same, prepare, write
from otter_jax.data.build.plan import Options, Plan
from otter_jax.data.build.report import read_report, table
from otter_jax.data.formats.class_folders import Folders, check_same_folder
from otter_jax.data.formats.tars import Tars
from otter_jax.data.public.openmoji import Openmoji
from otter_jax.data.source import _version_folder, sets_of
from otter_jax.errors import UserError


def ensure(dataset: str, data_dir: str, tars: Tars = (), folder: str = "") -> None:
    """Builds the set unless it is there; whoever comes while it is being built waits.

    Args:
      dataset: "openmoji", a name of your own for what is in `tars` or `folder`, or a set that is
        there already; several sets as "a+b".
      data_dir: the folder of all data sets.
      tars: paths or globs of web-dataset tars, for a set of your own; they are its split "train",
        or {split: tars}.
      folder: a folder with a folder of pictures per class, for a labelled set of your own.

    Raises:
      UserError: neither there nor to be built, there but made of something else, or both tars and
        folder given.
    """
    sets = pathlib.Path(data_dir).expanduser()
    parts = sets_of(dataset)
    if len(parts) > 1:
        if tars or folder:
            raise UserError(f"{dataset} is of several sets: make each by itself before.")
        for part, _ in parts:
            ensure(part, data_dir)
        return
    if tars and folder:
        raise UserError(
            f"The data set {dataset} is to be made of tars and of the folder {folder}: give one of "
            "the two."
        )
    if dataset == "openmoji" and (tars or folder):
        raise UserError(
            f"The name openmoji is taken: give the data of your {'tars' if tars else 'folder'} "
            "another."
        )
    if tars:
        _ensure_tars(dataset, sets, tars)
    elif folder:
        home = _ensure_built(functools.partial(Folders, name=dataset, root=folder), dataset, sets)
        check_same_folder(home, folder)
    elif dataset == "openmoji":
        _ensure_built(Openmoji, dataset, sets)
    else:
        _version_folder(sets, dataset, "To build it, give the tars or the folder it is made of.")


def make(
    plan: Plan,
    data_dir: str,
    *,
    workers: int = 1,
    beam: str = "",
    done: Callable[[int, int], None] = lambda size, records: None,
) -> pathlib.Path:
    """The folder of the set that `plan` describes, which is made unless it is there.

    `workers`, `beam` and `done` are those of `prepared.prepare`; so are the errors raised, and
    UserError if the set that is there was made of other files.
    """
    home = pathlib.Path(data_dir).expanduser() / plan.name / str(Prepared.VERSION)
    with _first(home) as missing:
        if missing:
            print(f"Building the data set {plan.name} in {home}", flush=True)
            prepare(plan, home, workers=workers, beam=beam, done=done)
            print(table(read_report(home)), flush=True)
    check_same(home, plan)
    return home


def _ensure_tars(dataset: str, sets: pathlib.Path, tars: Tars) -> None:
    try:
        plan = tars.plan(dataset, tars, Options())
    except UserError:
        # Tars that are no longer there are taken for the ones the set was built from.
        if not (sets / dataset / str(Prepared.VERSION)).exists():
            raise
    else:
        make(plan, str(sets))


def _ensure_built(
    make: Callable[..., tfds.core.GeneratorBasedBuilder], dataset: str, sets: pathlib.Path
) -> pathlib.Path:
    """The folder of a set that its builder writes in one go, unless it is there."""
    home = sets / dataset / "1.0.0"
    builder = None if home.exists() else make(data_dir=sets)  # its mistakes come before any wait
    with _first(home) as missing:
        if missing:
            _build(builder)
    return home


def _build(builder: tfds.core.DatasetBuilder) -> None:
    home = pathlib.Path(builder.data_dir)
    print(f"Building the data set {builder.name} in {home}", flush=True)
    write(builder)
    sizes = ", ".join(
        f"{split.num_examples:,} {name}" for name, split in builder.info.splits.items()
    )
    print(f"Built {builder.name}: {sizes}", flush=True)
    report = read_report(home)
    if report:
        print(table(report), flush=True)


@contextlib.contextmanager
def _first(home: pathlib.Path) -> Iterator[bool]:
    """Whether the set is still to be made; if so nobody else makes it in this context."""
    if home.exists():
        yield False
        return
    with _lock(home.parent):
        yield not home.exists()


@contextlib.contextmanager
def _lock(folder: pathlib.Path) -> Iterator[None]:
    """One process at a time; a lock of the operating system, so a killed build leaves none."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / ".lock", "w")  # noqa: SIM115 - closed below
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        raise UserError(
            f"The data set cannot be written in {folder}: {error.strerror}. Mend data.dir or "
            "--data_dir."
        ) from error
    with file:
        yield
