"""Finds out what a folder holds: tars, a table with its pictures, or pictures with captions."""

import os
import pathlib
from typing import NamedTuple

from otter_jax.data.captions import clean
from otter_jax.data.formats.columns import SUFFIXES as TABLES
from otter_jax.data.formats.patterns import walk
from otter_jax.data.formats.reading import Reading
from otter_jax.data.images import SUFFIXES as PICTURES
from otter_jax.errors import UserError

# What Hugging Face's image folders call their tables, which name files beside them.
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
CAPTIONS = (".txt", ".json")  # of a picture of the same name
NAMED = 6  # files in a message


class Contents(NamedTuple):
    """Counts and lists the files in a folder and below it, without hidden ones.

    Attributes:
      pictures: how many there are.
      captioned: whether any has a caption beside it.
      arrow: whether there is a file of Arrow.
      prepared: whether there is a file of ArrayRecord.
      tables: all of them, sorted.
    """

    pictures: int
    captioned: bool
    arrow: bool
    prepared: bool
    tables: list[pathlib.Path]


def contents_of(root: pathlib.Path, untrusted: bool = False) -> Contents:
    """Looks through a folder and those below it, once each.

    Raises UserError as `walk` does.
    """
    captioned = arrow = prepared = False
    pictures, tables = 0, []
    for folder, names in walk(root, untrusted):
        stems: dict[str, set[str]] = {}
        for name in names:
            stem, suffix = os.path.splitext(name)
            if name.startswith("."):
                continue
            if suffix.lower() in (*PICTURES, *CAPTIONS):
                kind = "picture" if suffix.lower() in PICTURES else "caption"
                pictures += kind == "picture"
                # By the first dot too, as in a web-dataset.
                stems.setdefault(kind, set()).update((stem, name.partition(".")[0]))
            arrow |= suffix.lower() == ".arrow"
            prepared |= ".array_record" in name
            if name.lower().endswith(TABLES):
                tables.append(pathlib.Path(folder, name))
        captioned |= bool(stems.get("picture", set()) & stems.get("caption", set()))
    return Contents(pictures, captioned, arrow, prepared, sorted(tables))


def tables_of(root: pathlib.Path, reading: Reading) -> list[pathlib.Path]:
    """Returns the tables that a folder is; [] if it is pictures with their own captions.

    Prints how many pictures there are beside those of an image folder, which may name only some.

    Raises UserError if only its user can tell which of its tables is meant.
    """
    found = contents_of(root, reading.untrusted)
    metadata = [table for table in found.tables if table.name.lower() in METADATA]
    if metadata and found.pictures:
        chosen = _of_one_kind(metadata)
        more = f" and {len(chosen) - 1:,} more" * (len(chosen) > 1)
        also = ", not those with a caption beside them" * found.captioned
        print(
            f"{clean(str(root))}: of its {found.pictures:,} pictures those are taken that "
            f"{clean(str(chosen[0].relative_to(root)))}{more} names{also}."
        )
        return chosen
    if not found.pictures:
        shards = [table for table in found.tables if table.name.lower().endswith(".parquet")]
        if not shards:
            _check_not_made(root, found)
        # Spark and Hadoop write a table as a folder of part-00000 and so on.
        parts = [table for table in found.tables if table.name.startswith("part-")]
        if shards or len(found.tables) in (1, len(parts) or 1):
            return shards or found.tables
    elif found.captioned or not reading.captions:
        return []
    if not found.tables:
        return []
    shown = ", ".join(clean(str(table)) for table in found.tables[:NAMED])
    more = f" and {len(found.tables) - NAMED:,} more" * (len(found.tables) > NAMED)
    what = "pictures, but no captions beside them" if found.pictures else "no picture"
    one = len(found.tables) == 1
    raise UserError(
        f"The folder {root} holds {what}. It holds {'a table' if one else 'tables'}, {shown}{more}"
        f": give {'that' if one else 'the one that is meant, or a glob,'} instead of the folder."
    )


def _check_not_made(root: pathlib.Path, found: Contents) -> None:
    """Raises UserError for a folder that another program, or this one, has made of a data set."""
    if found.arrow:
        raise UserError(
            f"The folder {root} holds Arrow files, as Hugging Face's save_to_disk writes them. "
            "Make them Parquet: datasets.load_from_disk(FOLDER)['train'].to_parquet(FILE), "
            "without ['train'] if there are no splits."
        )
    if found.prepared:
        raise UserError(
            f"The folder {root} holds a data set that is made already, in ArrayRecord files. To "
            "read it, name it and the folder of data sets that it is in: --config.data.name=NAME "
            "--config.data.dir=DIR"
        )


def _of_one_kind(metadata: list[pathlib.Path]) -> list[pathlib.Path]:
    """Returns one table per folder, since the others of a folder say the same."""
    by_folder: dict[pathlib.Path, pathlib.Path] = {}
    for table in sorted(metadata, key=_preference):
        by_folder.setdefault(table.parent, table)
    return sorted(by_folder.values())


def _preference(table: pathlib.Path) -> int:
    return METADATA.index(table.name.lower())
