"""ImageNet (Deng et al., 2009) three times: 1,000 classes, multi-label 10K, and 21K with 1K.

All pictures come from image-net.org, after one has agreed to its terms. Names of a class with
several are joined, "tench,or Tinca tinca", as the OTTER release does; classes of the same name are
one class, since nobody could tell them apart by name.

imagenet1k: ROOT/val/nXXXXXXXX/*.JPEG (50,000 pictures, 6.7 GB; the folders that torchvision's
ImageFolder reads) and, where it is there, ROOT/train likewise (1,281,167, 144 GB);
`LOC_synset_mapping.txt` ("n01440764 tench, Tinca tinca", 1,000 lines) from the Kaggle challenge
imagenet-object-localization-challenge.

imagenet10k, multi-label: ROOT/images/nXXXXXXXX_N.JPEG, 50,000 pictures of the Fall 2011 release
that Tencent ML-Images (github.com/Tencent/tencent-ml-images, CC BY 4.0) has for validation;
`val_image_id_from_imagenet.txt` ("nXXX/nXXX_N.JPEG" and class numbers, with or without ":1") and
`dictionary_and_semantic_hierarchy.txt` (number, WordNet id, number of the parent, names; a header),
both from there. A picture has all ancestors of its class as labels. The bank holds all 11,166
categories, and in imagenet10k_leaves only those without children.

imagenet22k: 21,843 classes of ROOT/images/nXXXXXXXX_N.JPEG, or ROOT/images/nXXXXXXXX/*.JPEG
(14 million pictures, 1.3 TB), and ImageNet-1k's validation as above in ROOT/val;
`imagenet21k_wordnet_ids.txt` and `imagenet21k_wordnet_lemmas.txt` (21,843 lines each) from
storage.googleapis.com/bit_models, and `LOC_synset_mapping.txt`. Together 22,843 names; those in
both lists count once here.
"""

import os
import pathlib
from collections.abc import Iterator, Mapping

from otter_jax.data.build.plan import Options, Plan, listed, need
from otter_jax.data.public.labels import Labelled, count, joined, labelled_plan, slices
from otter_jax.errors import UserError
from otter_jax.files import read_text

MAPPING = ("LOC_synset_mapping.txt",)
IDS, LEMMAS = ("imagenet21k_wordnet_ids.txt",), ("imagenet21k_wordnet_lemmas.txt",)
LIST = ("val_image_id_from_imagenet.txt", "tencent_val_image_id_from_imagenet.txt")
HIERARCHY = ("dictionary_and_semantic_hierarchy.txt", "tencent_classes.txt")
GET = "Get it as the docstring of otter_jax/data/public/imagenet.py says"
SUFFIXES = (".jpeg", ".jpg", ".png")


def plan_1k(name: str, root: pathlib.Path, options: Options) -> Plan:
    """Plans ImageNet-1k: validation, and train if it is there. Raises UserError without files."""
    mapping = need(root, MAPPING, f"the names of its classes. {GET}")
    names = read_mapping(mapping)
    need(root, ("val",), f"the folder of its pictures. {GET}")
    units, files = {}, {}
    for split, folder in (("validation", "val"), ("train", "train")):
        if (root / folder).is_dir():
            records = list(in_folders(root, folder, names))
            units[split] = slices(root, records)
            files[split] = [*listed([mapping]), {"name": folder, "size": count(records)}]
    return labelled_plan(
        name, names=list(names.values()), units=units, files=files, origin="ImageNet-1k",
        options=options,
    )  # fmt: skip


def plan_10k(name: str, root: pathlib.Path, options: Options, *, leaves: bool = False) -> Plan:
    """Plans multi-label ImageNet 10K; with `leaves`, only the classes without children.

    Raises UserError for files that are not there, or do not belong together.
    """
    pictures = need(root, LIST, f"the list of its pictures. {GET}")
    hierarchy = need(root, HIERARCHY, f"the names of its classes. {GET}")
    need(root, ("images",), f"the folder of its pictures. {GET}")
    names, parents = {}, set()
    for line in filter(str.strip, read_text(hierarchy, errors="replace").splitlines()[1:]):
        number, _, parent = line.split(maxsplit=3)[:3]  # a line of it has blanks instead of tabs
        names[int(number)] = joined(line.split(maxsplit=3)[3])
        parents.add(int(parent))
    kept = {n: text for n, text in names.items() if not (leaves and n in parents)}
    records = []
    for line in filter(str.strip, read_text(pictures).splitlines()):
        path, *labels = line.split()
        numbers = [int(label.partition(":")[0]) for label in labels]
        if any(number not in names for number in numbers):
            raise UserError(f"{pictures} has a class that is not in {hierarchy}: {line[:80]}")
        of_image = tuple(kept[number] for number in numbers if number in kept)
        records.append((f"images/{path.rpartition('/')[2]}", of_image))
    return labelled_plan(
        name,
        names=list(kept.values()),
        units={"validation": slices(root, records)},
        files={"validation": listed([pictures, hierarchy])},
        origin=f"multi-label ImageNet 10K{', leaves' if leaves else ''}",
        options=options,
        details={"classes": "leaves" if leaves else "all"},
    )


def plan_10k_leaves(name: str, root: pathlib.Path, options: Options) -> Plan:
    """Plans ImageNet 10K with only the classes without children."""
    return plan_10k(name, root, options, leaves=True)


def plan_22k(name: str, root: pathlib.Path, options: Options) -> Plan:
    """Plans ImageNet 21k and 1k. Raises UserError for files that are missing or do not match."""
    ids = need(root, IDS, f"the WordNet ids of ImageNet 21k. {GET}")
    lemmas = need(root, LEMMAS, f"the names of ImageNet 21k. {GET}")
    mapping = need(root, MAPPING, f"the names of ImageNet 1k. {GET}")
    for folder in ("images", "val"):
        need(root, (folder,), f"a folder of its pictures. {GET}")
    keys, values = (read_text(path).splitlines() for path in (ids, lemmas))
    if len(keys) != len(values):
        raise UserError(f"{ids} has {len(keys)} lines and {lemmas} {len(values)}: not one set.")
    names = {key.strip(): joined(value) for key, value in zip(keys, values, strict=True)}
    known = read_mapping(mapping)
    records = [*in_folders(root, "images", names), *in_folders(root, "val", known)]
    files = [*listed([ids, lemmas, mapping]), {"name": root.name, "size": count(records)}]
    return labelled_plan(
        name,
        names=[*names.values(), *known.values()],
        units={"validation": slices(root, records)},
        files={"validation": files},
        origin="ImageNet 21k and 1k",
        options=options,
    )


def read_mapping(path: pathlib.Path) -> dict[str, str]:
    """Reads {WordNet id: name} from lines such as "n01440764 tench, Tinca tinca"."""
    lines = read_text(path).splitlines()
    pairs = (line.partition(" ") for line in lines if line.strip())
    return {key: joined(value) for key, _, value in pairs}


def in_folders(root: pathlib.Path, folder: str, names: Mapping[str, str]) -> Iterator[Labelled]:
    """Yields the pictures of the classes in `names`, {WordNet id: name}.

    A picture lies in a folder named by the id, or its own name begins with it, ID_N; one where
    neither is known has no class. Raises UserError if all are such, or there is none.
    """
    found = False
    for place, inner, files in os.walk(root / folder):
        inner.sort()
        for file in sorted(files):
            relative = os.path.relpath(os.path.join(place, file), root)
            key = next(
                (k for k in (os.path.basename(place), file.partition("_")[0]) if k in names), ""
            )
            if file.lower().endswith(SUFFIXES):
                found = found or bool(key)
                yield relative, (names[key],) if key else ()
    if not found:
        raise UserError(
            f"There is no picture in {root / folder} of a class that is known, in a folder called "
            f"by its WordNet id or as nXXXXXXXX_N.JPEG. {GET}."
        )
