"""Reads the classes that a picture may show, as people type them or keep them in a file."""

import csv
import os
import pathlib
from collections.abc import Iterable
from typing import NamedTuple

from otter_jax.errors import UserError
from otter_jax.zeroshot.bank import read_lines, spelled

REMEDY = 'give names with commas between them, --classes "dog,sofa", or a file with one on a line'
EXAMPLES = 3  # in a message
SHOWN = 200  # characters of a list, in a message


class Classes(NamedTuple):
    """Holds classes, each with all its names, the one that it is called by first.

    `notes` say what was left out of what was given.
    """

    names: list[tuple[str, ...]]
    notes: list[str]

    @property
    def first(self) -> list[str]:
        """The name that each class is called by."""
        return [names[0] for names in self.names]


def read_classes(given: str) -> Classes:
    """Returns the classes of a list, "dog,sofa", or of a file's lines.

    In a list a name with commas stands in quotes, as in CSV: 'dog,"salt, pepper"'. A line of a file
    is a name, or NAME<TAB>SYNONYM;SYNONYM. Blank and repeated names are left out, and noted.

    Raises UserError if there is no class, or the file cannot be read.
    """
    path = pathlib.Path(given)
    if os.path.isfile(os.path.expanduser(given)):  # pathlib's fails for a list of over 255 bytes
        lines = read_lines(given, "classes", spell=str)
        found = _classes(map(_of_line, lines), given, REMEDY)
    elif "," not in given and path.suffix in (".txt", ".tsv", ".csv"):
        raise UserError(f"There is no file {given} with classes: {REMEDY}.")
    else:
        found = listed(given)
    if len(found.names) == 1:
        found.notes.append(f"{alone(found)}; --multi judges it on its own")
    return found


def listed(text: str, where: str = "--classes", remedy: str = REMEDY) -> Classes:
    """Returns the classes of a list with commas, whatever files there are.

    `where` says where it stands, and `remedy` what to do if there is no class in it, for messages.
    Raises UserError in that case, and for quotes that do not close.
    """
    try:
        names = next(csv.reader([text], skipinitialspace=True, strict=True), [])
    except csv.Error as error:
        shown = text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
        raise UserError(
            f"The classes {shown!r} cannot be told apart ({error}): a name with commas stands in "
            "quotes, 'dog,\"salt, pepper\"'."
        ) from None
    return _classes([(spelled(name),) for name in names], where, remedy)


def alone(classes: Classes) -> str:
    """Returns what is to be said of the only class of `classes`."""
    (name,) = classes.first
    return f"{name!r} is the only class, so its probability is 1 whatever a picture shows"


def _of_line(line: str) -> tuple[str, ...]:
    """Returns the names of a line, without repeated ones; ("",) of a blank line."""
    name, _, more = line.partition("\t")
    names = dict.fromkeys(map(spelled, [name, *more.split(";")]))
    return tuple(each for each in names if each) or ("",)


def _classes(rows: Iterable[tuple[str, ...]], where: str, remedy: str) -> Classes:
    """Leaves out blank and repeated names. Raises UserError if nothing is left."""
    found: dict[str, tuple[str, ...]] = {}
    blank, repeated = 0, []
    for names in rows:
        first = names[0]
        if not first:
            blank += 1
        elif first in found:
            repeated.append(first)
            found[first] = tuple(dict.fromkeys(found[first] + names))
        else:
            found[first] = names
    if not found:
        raise UserError(f"There are no classes in {where}: {remedy}.")
    notes = []
    if blank:
        notes.append(f"{where}: {_count(blank, 'blank name')} left out")
    if repeated:
        some = ", ".join(map(repr, dict.fromkeys(repeated[:EXAMPLES])))
        notes.append(f"{where}: {_count(len(repeated), 'name')} there again, such as {some}")
    return Classes(list(found.values()), notes)


def _count(number: int, what: str) -> str:
    """Returns how many there are, with the verb."""
    return f"1 {what} is" if number == 1 else f"{number:,} {what}s are"
