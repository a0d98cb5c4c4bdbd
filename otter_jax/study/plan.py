"""Reads a study file: sets, settings, methods, and what is chosen on validation."""

import dataclasses
import difflib
import hashlib
import itertools
import json
import math
import pathlib
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

from otter_jax import files
from otter_jax.errors import UserError
from otter_jax.objective import METHODS, Objective
from otter_jax.study.fields import refuse_unknown, section

HEADS = "heads"
COMMON = ("learning_rate", "log_scale")  # chosen for every method; not part of its objective


@dataclasses.dataclass(frozen=True)
class Image:
    """The image encoder, by the keys of a config's `model.img`."""

    arch: str
    weights: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Text:
    """The text encoder, by the keys of a config's `model.txt`."""

    weights: str
    pretrained: bool = True


@dataclasses.dataclass(frozen=True)
class Model:
    """Both encoders and the width of the common space."""

    dim: int
    img: Image
    txt: Text

    def section(self) -> dict[str, Any]:
        """Returns it as a config's section `model`, dropout off."""
        return dataclasses.asdict(self) | {
            "dtype": "float32",
            "txt": dataclasses.asdict(self.txt) | {"dropout": 0.0},
        }


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Concepts that are never trained on, and whose pictures are the validation set.

    Attributes:
      search: one of `data.search`, whose label says which concept a picture shows.
      sets: the training sets that have such labels.
      count: how many concepts.
      seed: they are drawn by.
    """

    search: str
    sets: tuple[str, ...]
    count: int
    seed: int = 1234


@dataclasses.dataclass(frozen=True)
class Names:
    """A question to pictures: which of some names do they show?

    Attributes:
      label: a field of the pairs' JSON.
      names: a file with one name per line; "": all labels of at least `least` pictures of the
        evaluation sets together.
      template: a prompt with {} where the name goes.
    """

    label: str
    names: str = ""
    least: int = 2
    template: str = "{}"


@dataclasses.dataclass(frozen=True)
class Data:
    """Sets of pairs as web-dataset tars, and how their pictures and texts are read.

    Attributes:
      train, eval: {name: tars}, relative to the folder on the command line.
      mixed: {name: names of sets in `train`} that are trained on together.
      image_size: pixels; pictures are resized and cropped in the middle as in evaluation.
      dtype: of the features on disk and in memory, "float32" or "float16".
    """

    train: Mapping[str, tuple[str, ...]]
    eval: Mapping[str, tuple[str, ...]]
    search: Mapping[str, Names]
    held_out: HeldOut
    image_size: int = 224
    max_tokens: int = 60
    mixed: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    dtype: str = "float32"

    def parts(self, name: str) -> tuple[str, ...]:
        """Returns the sets in `train` that a setting's set is made of."""
        return self.mixed.get(name, (name,))


@dataclasses.dataclass(frozen=True)
class Train:
    """How long a run is and how it is optimised, by the keys of a config where it has them.

    Attributes:
      pairs: that a run is shown in all, over all epochs; its steps are these / batch.
      trained: "heads", or the block that training begins with, such as "blocks_6_0".
    """

    pairs: int
    trained: str = HEADS
    name: str = "adamw"
    warmup_steps: int = 20
    momentum: float = 0.9
    weight_decay: float = 0.01
    clip_norm: float = 0.0
    ema_decay: float = 0.999


@dataclasses.dataclass(frozen=True)
class Choose:
    """What is chosen for each method in each setting, by the mean of `by` over `seeds` seeds.

    These seeds are no seeds of the main runs.

    Attributes:
      learning_rate, log_scale: the grid, beside each method's own; the largest rate, and where the
        logarithms of both scales start.
      by: measures of the validation set.
    """

    learning_rate: tuple[float, ...]
    log_scale: tuple[float, ...]
    seeds: int = 3
    by: tuple[str, ...] = ("val/name@5", "val/name@10")


@dataclasses.dataclass(frozen=True, order=True)
class Setting:
    """One kind of data and training that methods are compared in.

    Attributes:
      set: the pairs: a name in data.train or data.mixed.
      noise: part of the captions that are exchanged among themselves.
      share: part of the pairs that there are.
      batch: pairs in a batch.
    """

    set: str
    noise: float
    share: float
    batch: int

    def __str__(self) -> str:
        return f"{self.set}_noise{self.noise:g}_share{self.share:g}_batch{self.batch}"


@dataclasses.dataclass(frozen=True)
class Method:
    """A line of METHODS, with other values of the objective.

    Attributes:
      objective: what it is without the values that are chosen.
      choose: {field of the objective, or of `Choose`: values}, in place of those for all methods.
    """

    name: str
    objective: Objective
    choose: Mapping[str, tuple[Any, ...]]

    def grid(self, common: Choose) -> Iterator[dict[str, Any]]:
        """Yields each combination of the values that are chosen among."""
        lists = {"learning_rate": common.learning_rate, "log_scale": common.log_scale}
        lists |= self.choose
        for values in itertools.product(*lists.values()):
            yield dict(zip(lists, values, strict=True))

    def with_values(self, values: Mapping[str, Any]) -> Objective:
        """Returns the objective with chosen values; raises UserError for one out of its range."""
        own = {name: value for name, value in values.items() if name not in COMMON}
        return dataclasses.replace(self.objective, **own)


@dataclasses.dataclass(frozen=True)
class Study:
    """Holds a study file."""

    path: pathlib.Path
    model: Model
    data: Data
    train: Train
    settings: tuple[Setting, ...]
    methods: Mapping[str, Method]
    choose: Choose
    seeds: int = 10
    baseline: str = "infonce"
    weights: str = "ema"

    def about(self) -> dict[str, Any]:
        """Returns all that features depend on, as JSON has it."""
        return json.loads(
            json.dumps(
                {
                    "model": self.model.section(),
                    "data": dataclasses.asdict(self.data),
                    "trained": self.train.trained,
                }
            )
        )


def read(path: pathlib.Path) -> Study:
    """Reads a study file. Raises UserError, which names the key, for whatever is wrong in it."""
    try:
        table = tomllib.loads(files.read_text(path))
    except FileNotFoundError:
        raise UserError(f"There is no study file {path}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no TOML: {error}") from error
    where = str(path)
    sections = ("model", "data", "train", "settings", "methods", "choose")
    refuse_unknown(table, (*sections, "seeds", "baseline", "weights"), where)
    for name in sections:
        if name not in table:
            raise UserError(f"{where}: there is no [{name}].")
    model = section(Model, table["model"], f"{where}: model")
    data = section(Data, table["data"], f"{where}: data")
    _check_data(data, where)
    choose = section(Choose, table["choose"], f"{where}: choose")
    rest = {name: table[name] for name in ("seeds", "baseline", "weights") if name in table}
    study = Study(
        path, model, data,
        section(Train, table["train"], f"{where}: train"),
        _settings(table["settings"], data, where),
        _methods(table["methods"], choose, where),
        choose,
        **rest,
    )  # fmt: skip
    _check(study, where)
    return study


def _settings(tables: Any, data: Data, where: str) -> tuple[Setting, ...]:
    """Returns the products of the lists in each table of [[settings]], each setting once."""
    names = [field.name for field in dataclasses.fields(Setting)]
    if not isinstance(tables, list) or not tables:
        raise UserError(f"{where}: settings are tables, each under [[settings]].")
    found = []
    for table in tables:
        refuse_unknown(table, names, f"{where}: settings")
        default = {"noise": 0.0, "share": 1.0}
        lists = []
        for name in names:
            if name not in table and name not in default:
                raise UserError(f"{where}: settings.{name} is missing in a [[settings]].")
            value = table.get(name, default.get(name))
            lists.append(value if isinstance(value, list) else [value])
        for values in itertools.product(*lists):
            one = dict(zip(names, values, strict=True))
            found.append(section(Setting, one, f"{where}: settings"))
    known = (*data.train, *data.mixed)
    for setting in found:
        if setting.set not in known:
            raise UserError(
                f"{where}: settings.set={setting.set!r}{_meant(setting.set, known)} There are: "
                f"{', '.join(known)}."
            )
        if not 0 <= setting.noise <= 1 or not 0 < setting.share <= 1 or setting.batch < 2:
            raise UserError(
                f"{where}: settings: noise={setting.noise:g} must be from 0 to 1, "
                f"share={setting.share:g} more than 0 and at most 1, batch={setting.batch} at "
                "least 2."
            )
    return tuple(dict.fromkeys(found))


def _methods(tables: Any, common: Choose, where: str) -> dict[str, Method]:
    """Returns the methods, each checked with all values that may be chosen for it."""
    fields = {field.name for field in dataclasses.fields(Objective)}
    found = {}
    for name, table in tables.items():
        here = f"{where}: methods.{name}"
        refuse_unknown(table, ("method", "objective", "choose"), here)
        method = table.get("method", name)
        if method not in METHODS:
            raise UserError(
                f"{here}.method={method!r}{_meant(method, METHODS)} There are: "
                f"{', '.join(METHODS)}."
            )
        own, choose = table.get("objective", {}), table.get("choose", {})
        refuse_unknown(own, fields, f"{here}.objective")
        refuse_unknown(choose, {*fields, *COMMON}, f"{here}.choose")
        for key, values in choose.items():
            if not isinstance(values, list) or not values:
                raise UserError(f"{here}.choose.{key}={values!r}: a list of values.")
        lists = {key: tuple(values) for key, values in choose.items()}
        try:
            found[name] = Method(name, dataclasses.replace(METHODS[method], **own), lists)
            for values in found[name].grid(common):
                found[name].with_values(values)
        except (UserError, TypeError) as error:
            raise UserError(f"{here}: {error}") from error
    return found


def _check_data(data: Data, where: str) -> None:
    """Raises UserError where names in [data] do not fit together."""
    for name, parts in data.mixed.items():
        for part in parts:
            if part not in data.train:
                raise UserError(
                    f"{where}: data.mixed.{name} has {part!r}{_meant(part, data.train)} There are: "
                    f"{', '.join(data.train)}."
                )
    held = data.held_out
    if held.search not in data.search or not set(held.sets) <= set(data.train):
        raise UserError(
            f"{where}: data.held_out.search is one of {', '.join(data.search)}, and its sets are "
            f"some of {', '.join(data.train)}."
        )
    twice = sorted({*data.train} & {*data.eval} | {*data.train} & {*data.mixed})
    if twice or "val" in data.eval:
        raise UserError(f"{where}: data has two sets called {[*twice, 'val'][0]!r}.")
    if data.dtype not in ("float32", "float16"):
        raise UserError(f'{where}: data.dtype={data.dtype!r}: "float32" or "float16".')


def _check(study: Study, where: str) -> None:
    """Raises UserError for numbers out of range, and for names that nothing has."""
    if not study.methods:
        raise UserError(f"{where}: there is no method under [methods].")
    if study.baseline not in study.methods:
        raise UserError(
            f"{where}: baseline={study.baseline!r}{_meant(study.baseline, study.methods)} There "
            f"are: {', '.join(study.methods)}."
        )
    if study.weights not in ("ema", "student"):
        raise UserError(f'{where}: weights={study.weights!r}: "ema" or "student".')
    for key, value in (("seeds", study.seeds), ("choose.seeds", study.choose.seeds)):
        if not isinstance(value, int) or value < 1:
            raise UserError(f"{where}: {key}={value}: a whole number of at least 1.")
    rates = study.choose.learning_rate
    if not rates or not all(0 < rate < math.inf for rate in rates):
        raise UserError(f"{where}: choose.learning_rate={list(rates)}: numbers above 0.")
    measures = [f"val/{study.data.held_out.search}@{k}" for k in (1, 5, 10)]
    for name in study.choose.by:
        if name not in measures:
            raise UserError(
                f"{where}: choose.by={name!r}{_meant(name, measures)} There are: "
                f"{', '.join(measures)}."
            )
    for setting in study.settings:
        if study.train.pairs < setting.batch:
            raise UserError(
                f"{where}: train.pairs={study.train.pairs} is less than a batch of {setting.batch}."
            )


def _meant(word: str, known: Any) -> str:
    near = difflib.get_close_matches(str(word), [*known], n=1, cutoff=0.5)
    return f" is not there; did you mean {near[0]!r}?" if near else " is not there."


def digest(value: Any) -> str:
    """Returns a short digest of what JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
