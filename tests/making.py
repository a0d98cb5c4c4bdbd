"""Sets that are made of a plan, and what came of it."""

import json

from pictures import noise

from otter_jax.data.build.report import Tally
from otter_jax.data.ensure import make
from otter_jax.data.source import open_dataset


def made(tmp_path, plan, split="train", **options):
    """The records by key, and the report's part, of a split of a plan's set."""
    home = make(plan, str(tmp_path / "sets"), **options)
    source = open_dataset(str(tmp_path / "sets"), plan.name, split)
    rows = [source[i] for i in range(len(source))]
    report = json.loads((home / "report.json").read_text())
    return {row["key"]: row for row in rows}, report[split]


def counts(part):
    """Reason -> number of the records that were dropped or changed for it."""
    return {why: entry["count"] for why, entry in (part["dropped"] | part["changed"]).items()}


def write_pictures(folder, number=6):
    """The names of so many pictures, 0.jpg and so on, written in a folder."""
    folder.mkdir(exist_ok=True)
    for n in range(number):
        (folder / f"{n}.jpg").write_bytes(noise(n))
    return [f"{n}.jpg" for n in range(number)]


def pairs_of(plan):
    """(key, caption) of every pair that a plan's units read, in their order."""
    records = (record for unit in plan.units["train"] for record in unit.read(Tally()))
    return [(record.fields["key"], record.fields["caption"]) for record in records]
