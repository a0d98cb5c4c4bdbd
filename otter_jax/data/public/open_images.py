"""Google Open Images V6, the test split: 125,436 photographs with several labels each.

ROOT holds, all from storage.googleapis.com/openimages/web/download_v7.html,

- `test/`, the photographs as ID.jpg (36 GB; some 5 GB at a shorter side of 256 pixels);
- `test-annotations-human-imagelabels.csv` (ImageID, Source, LabelName, Confidence);
- `oidv6-class-descriptions.csv` (LabelName, DisplayName, of 20,638 classes);
- `oidv6-classes-trainable.txt`, or `classes-trainable.txt`: one LabelName per line, 19,958 in all.

The bank holds the names of the trainable classes; an image's labels are those that people confirmed
(Confidence 1). Images without any are left out, as the OTTER release does, and counted. Classes of
the same name are one class, since nobody could tell them apart by name.
"""

import csv
import pathlib

from otter_jax.data.build.plan import Options, Plan, listed, need
from otter_jax.data.captions import clean
from otter_jax.data.public.labels import labelled_plan, slices
from otter_jax.errors import UserError
from otter_jax.files import read_text

LABELS = ("test-annotations-human-imagelabels.csv",)
NAMES = ("oidv6-class-descriptions.csv", "class-descriptions.csv")
TRAINABLE = ("oidv6-classes-trainable.txt", "classes-trainable.txt")


def plan(name: str, root: pathlib.Path, options: Options) -> Plan:
    """Plans the test split. Raises UserError for files that are missing or do not match."""
    get = "Get it as the docstring of otter_jax/data/public/open_images.py says"
    labels = need(root, LABELS, f"the labels of Open Images. {get}")
    descriptions = need(root, NAMES, f"the names of its classes. {get}")
    trainable = need(root, TRAINABLE, f"the list of its trainable classes. {get}")
    need(root, ("test",), f"the folder of its photographs. {get}")
    with open(descriptions, newline="", encoding="utf-8-sig") as file:
        names = {row[0]: clean(row[1]) for row in csv.reader(file) if len(row) > 1}
    classes = [line.strip() for line in read_text(trainable).splitlines() if line.strip()]
    nameless = [label for label in classes if not names.get(label)]
    if nameless:
        raise UserError(
            f"{descriptions} has no name for {len(nameless)} of the trainable classes, such as "
            f"{nameless[0]}. {get}."
        )
    bank = {label: names[label] for label in classes}
    found: dict[str, list[str]] = {}
    with open(labels, newline="", encoding="utf-8-sig") as file:
        for row in csv.DictReader(file):
            label, sure = row["LabelName"], float(row["Confidence"]) == 1
            of_image = found.setdefault(row["ImageID"], [])
            if sure and label in bank:
                of_image.append(bank[label])
    records = [(f"test/{image}.jpg", tuple(found[image])) for image in sorted(found)]
    files = listed([labels, descriptions, trainable])
    return labelled_plan(
        name,
        names=list(bank.values()),
        units={"test": slices(root, records)},
        files={"test": files},
        origin="Open Images V6",
        options=options,
    )
