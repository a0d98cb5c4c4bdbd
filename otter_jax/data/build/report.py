"""Counts and names what is wrong with the records of a set, and keeps that beside the set."""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from otter_jax.data.captions import clean
from otter_jax.errors import UserError
from otter_jax.files import write_text

NAMED = 5  # examples of each defect in the report
PICTURES = "pictures-{}.npy"  # beside a set, per split: a digest of each record's image


class Tally:
    """Counts records that were dropped or changed, per reason, and keeps the first names of each.

    Attributes:
      found: {"dropped" or "changed": {reason: {"count": number, "first": names}}}.
    """

    def __init__(self) -> None:
        self.found: dict[str, dict[str, dict]] = {"dropped": {}, "changed": {}}

    def dropped(self, why: str, name: str) -> None:
        """Counts a record that is left out."""
        self._count("dropped", why, 1, [name])

    def changed(self, why: str, name: str) -> None:
        """Counts a record that is kept, but not as it was."""
        self._count("changed", why, 1, [name])

    def add(self, found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
        """Adds another tally's `found`; its names come after those that are here."""
        for what, reasons in found.items():
            for why, entry in reasons.items():
                self._count(what, why, entry["count"], entry["first"])

    def total(self, what: str) -> int:
        """Returns how many were "dropped" or "changed" in all."""
        return sum(entry["count"] for entry in self.found[what].values())

    def _count(self, what: str, why: str, count: int, names: list[str]) -> None:
        entry = self.found[what].setdefault(why, {"count": 0, "first": []})
        entry["count"] += count
        entry["first"] += map(clean, names[: NAMED - len(entry["first"])])


def write_report(folder: str | os.PathLike, report: Mapping[str, Any]) -> None:
    """Writes report.json of a set: per split the records kept and dropped, and the files read."""
    text = json.dumps(report, indent=2, ensure_ascii=False)
    write_text(pathlib.Path(folder) / "report.json", text)


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a value as JSON."""
    write_text(path, json.dumps(value))


def read_report(folder: pathlib.Path) -> dict[str, Any]:
    """Reads the report.json of the set in `folder`; {} if there is none.

    Raises UserError if it is damaged.
    """
    path = folder / "report.json"
    try:
        return json.loads(path.read_text("utf-8")) if path.exists() else {}
    except ValueError as error:
        raise UserError(
            f"{path} is damaged ({error}). Remove the set's folder to make it again."
        ) from error


def table(report: Mapping[str, Any]) -> str:
    """Returns a report as lines to print: the records kept, then each defect with some names."""
    lines = []
    for split, about in report.items():
        lines.append(f"{split}: {about['kept']:,} {about['records']} from {about['origin']}")
        if about.get("shared_pictures"):  # sets of older versions do not say
            often = "in several pairs" if about["records"] == "pairs" else "several times"
            several = f"{about['shared_pictures']:,} of them {often}"
            lines.append(f"  {about['pictures']:,} different pictures, {several}")
        for what in ("dropped", "changed"):
            for why, entry in about[what].items():
                names = "; ".join(entry["first"])
                lines.append(f"  {what} {entry['count']:>9,}  {why}: {names}")
    return "\n".join(lines)
