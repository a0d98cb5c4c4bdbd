"""Makes the features of a study: reads its sets, computes what is frozen, or takes what is kept."""

import collections
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from otter_jax.data.ensure import ensure
from otter_jax.data.source import Source, open_dataset
from otter_jax.errors import UserError
from otter_jax.study import frozen
from otter_jax.study.features import Bank, Features, Part
from otter_jax.study.plan import HEADS, FrozenStudy, Names
from otter_jax.zeroshot.bank import read_names
from otter_jax.zeroshot.labels import read_labels

Tell = Callable[[str], None]


def features(
    study: FrozenStudy, tars: pathlib.Path, data_dir: pathlib.Path, tell: Tell
) -> Features:
    """Returns the features of all sets of a study.

    Args:
      study: the study.
      tars: the folder that tars and lists of names in the file are relative to.
      data_dir: the folder of all data sets; features are kept in a folder of it.
      tell: is told what is done.

    Raises UserError for sets, lists and encoders that are not there, and as `Encoders` does.
    """
    sources = _sources(study, tars, data_dir)
    encoders = frozen.Encoders(
        study.model.section(),
        image_size=study.data.image_size,
        resize=study.data.resize or study.data.image_size,
        max_tokens=study.data.max_tokens,
        enter="" if study.train.trained == HEADS else study.train.trained,
        tell=tell,
    )
    folder, dtype = data_dir / "features", study.data.dtype
    parts = {}
    for name, source in sources.items():
        tell(f"{name}: features of {len(source):,} pairs")
        captions = [source[i]["caption"] for i in range(len(source))]
        views = None
        if study.data.views and name in study.data.train:
            count, flip = study.data.views, study.data.flip
            views = frozen.kept_views(encoders, source, count, flip, folder, dtype, tell)
        parts[name] = Part(
            frozen.kept_images(encoders, source, folder, dtype),
            frozen.kept_texts(encoders, captions, folder, dtype),
            {spec.label: _labels(source, spec.label) for spec in study.data.search.values()},
            views,
        )
    banks = {}
    for name, spec in study.data.search.items():
        names = _names(study, name, spec, parts, tars)
        prompts = [spec.template.replace("{}", each) for each in names]
        banks[name] = Bank(names, frozen.kept_texts(encoders, prompts, folder, dtype))
    pruned = encoders.model.img.pruned if encoders.enter else ()
    return Features(about(study, encoders.model.img.width, pruned), parts, banks, encoders.given())


def about(study: FrozenStudy, width: int, pruned: Sequence[tuple[str, int]] = ()) -> dict[str, Any]:
    """Returns what features of an image encoder with so many features were made of."""
    return study.about() | {"width": width, "pruned": [list(each) for each in pruned]}


def _sources(study: FrozenStudy, tars: pathlib.Path, data_dir: pathlib.Path) -> dict[str, Source]:
    """Opens all sets of a study, made of their tars if they are not there."""
    found = {}
    for name, own in (study.data.train | study.data.eval).items():
        ensure(name, str(data_dir), tuple(str(tars / tar) for tar in own))
        found[name] = open_dataset(str(data_dir), name, "train")
    return found


def _labels(source: Source, field: str) -> list[list[str]]:
    """Returns the labels of each record in a field of its JSON; none where it has no such field."""
    records = (source[i].get("json") or "{}" for i in range(len(source)))
    if not any(field in json.loads(record) for record in records):
        return [[] for _ in range(len(source))]
    return read_labels(source, f"json.{field}", f"data.search: {source.name}")


def _names(
    study: FrozenStudy, name: str, spec: Names, parts: Mapping[str, Part], tars: pathlib.Path
) -> list[str]:
    """Returns the names to search in: those of a file, or the labels of the evaluation sets."""
    if spec.names:
        names = read_names(str(tars / spec.names))
    else:
        rows: Sequence[Any] = [
            r for each in study.data.eval for r in parts[each].labels[spec.label]
        ]
        counts = collections.Counter(label for row in rows for label in set(row))
        names = sorted(label for label, count in counts.items() if count >= spec.least)
    if len(names) < 2:
        raise UserError(
            f"data.search.{name}: {len(names)} names to search in, by label={spec.label!r}."
        )
    return names
