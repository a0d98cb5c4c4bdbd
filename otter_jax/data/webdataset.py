"""Your own image-caption pairs, from web-dataset tars.

A tar holds, per pair, KEY.jpg (or .jpeg, .png, .webp) with KEY.txt (the caption), or with KEY.json
whose "caption" counts where there is no .txt, or with both. The key is the path up to the first dot
of the file name, and names a pair within its tar: another tar may use it again. Files of other
kinds are passed over.

The members of a key usually follow each other. They need not: up to WINDOW incomplete keys are
held while a tar is read, and a key leaves, complete or not, when that many others have begun after
it. What comes for a key that has left counts as a duplicate. So memory stays flat, and the same
tars always give the same set.

Nothing but a missing tar, or no pair at all, stops a build. What is wrong with a pair, or a tar, is
counted and named in report.json beside the records.
"""

import collections
import concurrent.futures
import glob
import json
import lzma
import os
import pathlib
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import tensorflow_datasets as tfds

from otter_jax.data import images
from otter_jax.data.captions import clean
from otter_jax.data.features import check_name, features
from otter_jax.errors import UserError

WINDOW = 64  # incomplete keys held at once
MAX_CHARS = 10_000  # of a stored caption
MAX_BYTES = 64 << 20  # of a file in a tar
NAMED = 5  # examples of each defect in the report
KINDS = dict.fromkeys(("jpg", "jpeg", "png", "webp"), "image") | {"txt": "txt", "json": "json"}

Tars = Sequence[str] | Mapping[str, Sequence[str]]
Members = dict[str, bytes]  # kind -> content, of one key
Item, Result = TypeVar("Item"), TypeVar("Result")


class WebDataset(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Pairs from web-dataset tars: image, caption, key, and the sidecar JSON as text."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, name: str, tars: Tars, data_dir: str | os.PathLike):
        """A set called `name`; `tars` are paths or globs, of the split "train" or {split: ...}.

        Raises:
          UserError: a glob that matches no file, or a name that cannot be a folder of TFDS.
        """
        check_name(name)
        self.name = name  # TFDS names a set by its class; here one class makes many
        self._tars = find(tars)
        self._report: dict[str, Any] = {}
        super().__init__(data_dir=data_dir)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Image-caption pairs from web-dataset tars; report.json says which.",
            features=features(json=tfds.features.Text()),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict]]]:
        return {split: self._generate_examples(split, tars) for split, tars in self._tars.items()}

    def _generate_examples(
        self, split: str, tars: Sequence[pathlib.Path]
    ) -> Iterator[tuple[int, dict]]:
        tally, pairs = Tally(), 0
        for tar in tars:
            for (key, members), defect in in_threads(_defect, _groups(tar, tally)):
                example = _example(key, members, defect, f"{tar.name}: {clean(key)}", tally)
                if example:
                    yield pairs, example
                    pairs += 1
        self._report[split] = {"pairs": pairs, **tally.found, "tars": _names(tars)}
        if not pairs:
            raise UserError(
                f"The data set {self.name} would have no pairs in {split}. A tar must hold "
                f"KEY.jpg, .jpeg, .png or .webp with KEY.txt or KEY.json.\n{table(self._report)}"
            )
        write_report(self.data_path, self._report)


class Tally:
    """Counts of what was dropped or changed, and for why, with the first names of each."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, dict]] = {"dropped": {}, "changed": {}}

    def dropped(self, why: str, name: str) -> None:
        self._count("dropped", why, name)

    def changed(self, why: str, name: str) -> None:
        self._count("changed", why, name)

    def _count(self, what: str, why: str, name: str) -> None:
        entry = self.found[what].setdefault(why, {"count": 0, "first": []})
        entry["count"] += 1
        if len(entry["first"]) < NAMED:
            entry["first"].append(name)


def find(tars: Tars) -> dict[str, list[pathlib.Path]]:
    """The files of each split: globs in the order given, each sorted, every file once.

    Raises:
      UserError: a path or glob that matches no file; it is named.
    """
    if isinstance(tars, str):
        tars = [tars]
    splits = tars if isinstance(tars, Mapping) else {"train": tars}
    found: dict[str, list[pathlib.Path]] = {}
    for split, patterns in splits.items():
        files: dict[str, pathlib.Path] = {}
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            path = os.path.expanduser(pattern)
            matches = [path] if os.path.isfile(path) else sorted(glob.glob(path, recursive=True))
            matches = [match for match in matches if os.path.isfile(match)]
            if not matches:
                raise UserError(f"No tar matches {pattern!r}. Check the path of the web-dataset.")
            for match in matches:
                files.setdefault(os.path.realpath(match), pathlib.Path(match))
        found[split] = list(files.values())
    return found


def check_same_tars(folder: pathlib.Path, tars: Tars) -> None:
    """That the set in `folder` was built from these tars, by their names and sizes.

    Tars that are no longer there are taken for the ones it was built from.

    Raises:
      UserError: it was built from others, or is no web-dataset.
    """
    built = made_of(folder, "tars")
    remedy = "Give this data another name, or remove that folder to build it again."
    if not built:
        raise UserError(f"The data set in {folder} was not built from tars. {remedy}")
    try:
        given = {split: _names(files) for split, files in find(tars).items()}
    except UserError:
        return
    if given != built:
        was = ", ".join(tar["name"] for part in built.values() for tar in part)
        raise UserError(
            f"The data set in {folder} was built from other tars, by name or size: {was}. {remedy}"
        )


def _names(tars: Sequence[pathlib.Path]) -> list[dict[str, Any]]:
    return [{"name": tar.name, "size": tar.stat().st_size} for tar in tars]


class _Header(tarfile.TarInfo):
    """A header that tells a cut or damaged tar from one that ends; tarfile itself is silent."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> "_Header":
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"after {archive.offset:,} bytes: {error}") from error


def _members(tar: pathlib.Path, tally: Tally) -> Iterator[tuple[str, str, bytes]]:
    """(key, kind, content) in the order of the tar, as far as it can be read."""
    try:
        with tarfile.open(tar, "r|*", bufsize=1 << 20, tarinfo=_Header) as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # tarfile remembers every header it has seen
                folder, _, file = member.name.removeprefix("./").rpartition("/")
                stem, _, extension = file.partition(".")
                kind = KINDS.get(extension.lower())
                if not member.isfile() or not stem or not kind:
                    continue
                if member.size > MAX_BYTES:
                    tally.dropped("file over 64 MiB", f"{tar.name}: {clean(member.name)}")
                    continue
                content = archive.extractfile(member).read()
                yield (f"{folder}/{stem}" if folder else stem), kind, content
    except (tarfile.TarError, OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
        tally.dropped("rest of a broken tar", f"{tar.name}: {error}")


def _groups(tar: pathlib.Path, tally: Tally) -> Iterator[tuple[str, Members]]:
    """The members of each key together; see the module's words on order."""
    waiting: dict[str, Members] = {}
    left: set[str] = set()
    doubled: set[str] = set()
    for key, kind, content in _members(tar, tally):
        if key in left or kind in waiting.get(key, ()):
            if key not in doubled:
                doubled.add(key)
                tally.dropped("duplicate key", f"{tar.name}: {clean(key)}")
            continue
        waiting.setdefault(key, {})[kind] = content
        leaves = None
        if len(waiting[key]) == len(set(KINDS.values())):
            leaves = key
        elif len(waiting) > WINDOW:
            leaves = next(iter(waiting))
        if leaves is not None:
            left.add(leaves)
            yield leaves, waiting.pop(leaves)
    yield from waiting.items()


def in_threads(
    work: Callable[[Item], Result], items: Iterable[Item]
) -> Iterator[tuple[Item, Result]]:
    """(item, work(item)) in the order of the items; WINDOW of them are held at once."""
    with concurrent.futures.ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        ahead: collections.deque = collections.deque()
        for item in items:
            ahead.append((item, pool.submit(work, item)))
            if len(ahead) > WINDOW:
                item, result = ahead.popleft()
                yield item, result.result()
        while ahead:
            item, result = ahead.popleft()
            yield item, result.result()


def unreadable(image: bytes) -> str | None:
    """What is wrong with the bytes of a picture, None if nothing is."""
    try:
        images.decode(image)
        return None
    except images.UnreadableImage as error:
        return str(error)


def _defect(group: tuple[str, Members]) -> str | None:
    _, members = group
    return unreadable(members["image"]) if "image" in members else None


def _example(
    key: str, members: Members, defect: str | None, name: str, tally: Tally
) -> dict[str, Any] | None:
    """The record of a key, or None with the reason in the tally."""
    if "image" not in members:
        return tally.dropped("caption without image", name)
    if len(members) == 1:
        return tally.dropped("image without caption", name)
    text, sidecar = members.get("json", b"{}").decode("utf-8-sig", "replace"), None
    try:
        sidecar = json.loads(text)
    except (ValueError, RecursionError):
        tally.changed("sidecar is not JSON, left out", name)
        text = "{}"
    if "txt" in members:
        caption = members["txt"].decode("utf-8-sig", "replace")
    else:
        caption = sidecar.get("caption") if isinstance(sidecar, dict) else None
    if not isinstance(caption, str):
        return tally.dropped("missing caption", name)
    cleaned = clean(caption)
    if not cleaned:
        return tally.dropped("empty caption", name)
    if defect:
        return tally.dropped("unreadable image", f"{name} ({defect})")
    if cleaned != caption.strip():
        tally.changed("caption cleaned of control characters", name)
    if len(cleaned) > MAX_CHARS:
        tally.changed(f"caption cut at {MAX_CHARS:,} characters", name)
    return {
        "image": members["image"],
        "caption": cleaned[:MAX_CHARS],
        "key": clean(key),
        "json": text,
    }


def write_report(folder: str | os.PathLike, report: dict[str, Any]) -> None:
    """Writes report.json of a set: per split, what was kept, what not, and what it is made of."""
    text = json.dumps(report, indent=2, ensure_ascii=False)
    (pathlib.Path(folder) / "report.json").write_text(text, encoding="utf-8")


def made_of(folder: pathlib.Path, what: str) -> dict[str, Any]:
    """{split: its "tars" or its "folder"} of the set in `folder`; empty if not made of those."""
    report = folder / "report.json"
    parts = json.loads(report.read_text("utf-8")) if report.exists() else {}
    return {split: part[what] for split, part in parts.items() if what in part}


def table(report: dict[str, Any]) -> str:
    """A report as lines to print: what was kept, then each defect with count and first names."""
    lines = []
    for split, part in report.items():
        if "tars" in part:
            lines.append(f"{split}: {part['pairs']:,} pairs from {len(part['tars'])} tars")
        else:
            folder = part["folder"]["name"]
            lines.append(f"{split}: {part['pictures']:,} pictures from the folder {folder}")
        for what in ("dropped", "changed"):
            for why, entry in part[what].items():
                names = "; ".join(entry["first"])
                lines.append(f"  {what} {entry['count']:>9,}  {why}: {names}")
    return "\n".join(lines)
