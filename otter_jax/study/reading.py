"""Reads a study file, and says which key is wrong."""

import dataclasses
import difflib
import functools
import itertools
import math
import pathlib
import re
import tomllib
from collections.abc import Callable, Iterator
from typing import Any

from otter_jax import files
from otter_jax.errors import UserError
from otter_jax.objective import METHODS, Objective
from otter_jax.study.cells import Cell, grid
from otter_jax.study.fields import WORDS, check_table, refuse_unknown, section
from otter_jax.study.linear import LINEAR
from otter_jax.study.plan import (
    COMMON,
    HEADS,
    STRENGTH,
    STRENGTHS,
    Choose,
    Data,
    FrozenStudy,
    Keys,
    Method,
    Model,
    Setting,
    Study,
    Train,
    WholeStudy,
)

SHARED = ("settings", "methods", "choose", "seeds", "baseline", "weights")
SET = ("method", "seed", "optim.learning_rate")  # of a config, by the study; so is `objective`
MOST_VIEWS = 1000  # crops of a picture; more are a mistake
LONGEST = 200  # bytes of a name in a path, which systems limit to 255


def read(path: pathlib.Path) -> Study:
    """Reads a study file. Raises UserError, which names the key, for whatever is wrong in it."""
    try:
        table = tomllib.loads(files.read_text(path))
    except FileNotFoundError:
        raise UserError(f"There is no study file {path}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no TOML: {error}") from error
    whole = "config" in table
    own = ("config",) if whole else ("model", "data", "train")
    refuse_unknown(table, (*own, *SHARED), str(path))
    for name in (*own, "settings", "methods", "choose"):
        if name not in table:
            raise UserError(f"{path}: there is no [{name}].")
    choose = section(Choose, table["choose"], f"{path}: choose")
    rest = {name: table[name] for name in ("seeds", "baseline", "weights") if name in table}
    for name, kind in (("seeds", int), ("baseline", str), ("weights", str)):
        if type(rest.get(name, kind())) is not kind:
            raise UserError(f"{path}: {name}={rest[name]!r}: {WORDS[kind]}.")
    common = {"path": path, "choose": choose, **rest}
    study = _whole(table, common) if whole else _frozen(table, common)
    _check(study, str(path))
    return study


def _whole(table: dict[str, Any], common: dict[str, Any]) -> WholeStudy:
    """Returns a study of whole runs."""
    where = str(common["path"])
    if not isinstance(table["config"], str):
        raise UserError(f"{where}: config={table['config']!r}: a name, or a path FOLDER/NAME.py.")
    settings = []
    for one in _tables(table["settings"], where):
        for keys in _combinations(flatten(one), f"{where}: settings"):
            _check_keys(keys, f"{where}: settings")
            settings.append(Keys(tuple(keys.items())))
    methods = _methods(table["methods"], common["choose"], _keys, where)
    settings = tuple(dict.fromkeys(settings))
    return WholeStudy(config=table["config"], settings=settings, methods=methods, **common)


def _keys(table: dict[str, Any], where: str) -> dict[str, Any]:
    """Returns the keys of a config that a method has its own values of."""
    flat = flatten(table)
    _check_keys(flat, where)
    return flat


def flatten(table: dict[str, Any], before: str = "") -> dict[str, Any]:
    """Returns the values of tables in tables by their keys, joined by dots."""
    found = {}
    for name, value in table.items():
        inner = isinstance(value, dict)
        found |= flatten(value, f"{before}{name}.") if inner else {f"{before}{name}": value}
    return found


def _check_keys(values: dict[str, Any], where: str) -> None:
    """Raises UserError for keys of a config that the study itself sets, and for other values."""
    for key, value in values.items():
        if key in SET or key.startswith("objective."):
            raise UserError(
                f"{where}: {key} is what the study sets: seeds by `seeds`, rates and starts of the "
                "scales by `choose`, all else by [methods]."
            )
        if not isinstance(value, (str, int, float, bool)):
            raise UserError(f"{where}: {key}={value!r}: a text, a number, or true or false.")


def _frozen(table: dict[str, Any], common: dict[str, Any]) -> FrozenStudy:
    """Returns a study of runs on kept features."""
    where = str(common["path"])
    model = section(Model, table["model"], f"{where}: model")
    data = section(Data, table["data"], f"{where}: data")
    _check_data(data, where)
    train = _train(table["train"], f"{where}: train")
    replaced = functools.partial(_replaced, train)
    study = FrozenStudy(
        model=model,
        data=data,
        train=train,
        settings=_settings(table["settings"], data, where),
        methods=_methods(table["methods"], common["choose"], replaced, where),
        **common,
    )
    _check_frozen(study, where)
    return study


def _tables(tables: Any, where: str) -> list[dict[str, Any]]:
    """Returns the tables under [[settings]]."""
    alike = isinstance(tables, list) and all(isinstance(each, dict) for each in tables)
    if not alike or not tables:
        raise UserError(f"{where}: settings are tables, each under [[settings]].")
    return tables


def _combinations(table: dict[str, Any], where: str) -> Iterator[dict[str, Any]]:
    """Yields each combination of the values of a table, where a list is several values."""
    lists = [value if isinstance(value, list) else [value] for value in table.values()]
    for key, values in zip(table, lists, strict=True):
        if not values:
            raise UserError(f"{where}.{key}=[]: a value, or a list of them.")
    for values in itertools.product(*lists):
        yield dict(zip(table, values, strict=True))


def _settings(tables: Any, data: Data, where: str) -> tuple[Setting, ...]:
    """Returns the products of the lists in each table of [[settings]], each setting once."""
    names = [field.name for field in dataclasses.fields(Setting)]
    found = []
    for table in _tables(tables, where):
        refuse_unknown(table, names, f"{where}: settings")
        table = {"noise": 0.0, "share": 1.0} | table
        if missing := [name for name in names if name not in table]:
            raise UserError(f"{where}: settings.{missing[0]} is missing in a [[settings]].")
        for one in _combinations(table, f"{where}: settings"):
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


def _methods(
    tables: Any, common: Choose, trained: Callable[[Any, str], Any], where: str
) -> dict[str, Method]:
    """Returns the methods, each checked with all values that may be chosen for it."""
    fields = {field.name for field in dataclasses.fields(Objective)}
    found = {}
    check_table(tables, f"{where}: methods")
    for name, table in tables.items():
        here = f"{where}: methods.{name}"
        check_table(table, here)
        refuse_unknown(table, ("method", "objective", "choose", "train"), here)
        method = table.get("method", name)
        known = (*METHODS, *LINEAR)
        if method not in known:
            raise UserError(
                f"{here}.method={method!r}{_meant(method, known)} There are: {', '.join(known)}."
            )
        own, choose, training = (table.get(key, {}) for key in ("objective", "choose", "train"))
        for key, value in (("objective", own), ("choose", choose), ("train", training)):
            check_table(value, f"{here}.{key}")
        if method in LINEAR:
            choose = {STRENGTH: list(STRENGTHS)} | choose
            refuse_unknown(training, (), f"{here}.train")
        refuse_unknown(own, () if method in LINEAR else fields, f"{here}.objective")
        may = (STRENGTH,) if method in LINEAR else (*fields, *COMMON)
        refuse_unknown(choose, may, f"{here}.choose")
        usual = dataclasses.asdict(METHODS.get(method, Objective()))
        try:
            objective = section(Objective, usual | own, "objective")
            for key, values in choose.items():
                _check_grid(key, values, "choose")
            lists = {key: tuple(values) for key, values in choose.items()}
            found[name] = Method(name, method, objective, lists, trained(training, "train"))
            for values in found[name].grid(common):
                chosen = {k: v for k, v in values.items() if k in fields and k not in COMMON}
                section(Objective, dataclasses.asdict(objective) | chosen, "choose")
        except UserError as error:
            raise UserError(f"{here}: {error}") from error
    return found


def _check_grid(key: str, values: Any, where: str) -> None:
    """Raises UserError for values that are no list, stand twice, or that no run can have."""
    if not isinstance(values, (list, tuple)) or not values:
        raise UserError(f"{where}.{key}={values!r}: a list of values.")
    if any(value in values[:i] for i, value in enumerate(values)):
        raise UserError(f"{where}.{key}={list(values)}: a value stands twice.")
    if key in (*COMMON, STRENGTH):
        least = -math.inf if key == "log_scale" else 0
        if not all(_is_number(value) and least < value < math.inf for value in values):
            above = "" if key == "log_scale" else " above 0"
            raise UserError(f"{where}.{key}={list(values)}: numbers{above}.")


def _replaced(train: Train, own: Any, where: str) -> Train:
    """Returns how runs are trained with a method's own values; what is trained is one for all."""
    may = [field.name for field in dataclasses.fields(Train) if field.name != "trained"]
    refuse_unknown(own, may, where)
    return _train(dataclasses.asdict(train) | own, where)


def _train(table: Any, where: str) -> Train:
    """Returns how runs are trained. Raises UserError for a value out of its range."""
    found = section(Train, table, where)
    if found.name not in ("sgd", "adamw"):
        raise UserError(f'{where}.name={found.name!r}: "sgd" or "adamw".')
    for name, below in (
        ("warmup_steps", math.inf), ("weight_decay", math.inf), ("clip_norm", math.inf),
        ("momentum", 1), ("ema_decay", 1),
    ):  # fmt: skip
        value = dataclasses.asdict(found)[name]
        if not 0 <= value < below:
            most = f", less than {below}" if below < math.inf else ""
            raise UserError(f"{where}.{name}={value}: at least 0{most}.")
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
    if data.image_size < 1 or (data.resize and data.resize < data.image_size):
        raise UserError(
            f"{where}: data.resize={data.resize}: 0, or at least data.image_size="
            f"{data.image_size}, which is at least 1."
        )
    if not 0 <= data.views <= MOST_VIEWS:
        raise UserError(f"{where}: data.views={data.views}: from 0 to {MOST_VIEWS}.")
    if data.flip and not data.views:
        raise UserError(
            f"{where}: data.flip mirrors random crops, of which there are none: set data.views."
        )
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
        if value < 1:
            raise UserError(f"{where}: {key}={value}: a whole number of at least 1.")
    for key in COMMON:
        _check_grid(key, getattr(study.choose, key), f"{where}: choose")
    if not study.choose.by:
        raise UserError(f"{where}: choose.by=[]: a list of measures, such as val/name@10.")
    _check_names(study, where)
    if isinstance(study, WholeStudy):
        for name, method in study.methods.items():
            if method.is_linear:
                raise UserError(f"{where}: methods.{name} is a closed form for kept features.")


def _check_names(study: Study, where: str) -> None:
    """Raises UserError for cells that could not have files of their own."""
    found: dict[str, Cell] = {}
    for setting, name in itertools.product(study.settings, study.methods):
        if not re.fullmatch(r"(?!\.)[^/\0]+", name):
            raise UserError(f"{where}: methods.{name!r} names a folder: no slash, no dot first.")
        for cell in grid(study, setting, name):
            if longest := [part for part in cell.name.split("/") if len(part.encode()) > LONGEST]:
                raise UserError(
                    f"{where}: a cell would be named {longest[0][:60]}..., by more than {LONGEST} "
                    "bytes. Choose fewer values of a method at once, or set fewer keys."
                )
            other = found.setdefault(cell.name, cell)
            if other != cell:
                raise UserError(
                    f"{where}: two cells would be named {cell.name}: {other.setting.fields()} and "
                    f"{cell.setting.fields()}. Write what tells them apart into both."
                )


def _check_frozen(study: FrozenStudy, where: str) -> None:
    """Raises UserError for measures that are none, and for runs without a step."""
    measures = [f"val/{study.data.held_out.search}@{k}" for k in (1, 5, 10)]
    for name in study.choose.by:
        if name not in measures:
            raise UserError(
                f"{where}: choose.by={name!r}{_meant(name, measures)} There are: "
                f"{', '.join(measures)}."
            )
    linear = [name for name, method in study.methods.items() if method.is_linear]
    if linear and study.train.trained != HEADS:
        raise UserError(
            f"{where}: methods.{linear[0]} is a closed form for heads; train.trained="
            f'{study.train.trained!r}. Leave it out, or set train.trained = "heads".'
        )
    largest = max(setting.batch for setting in study.settings)
    for name, method in study.methods.items():
        if method.length < largest:
            raise UserError(
                f"{where}: methods.{name}: train.pairs={method.length} is less than a batch of "
                f"{largest}."
            )


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _meant(word: str, known: Any) -> str:
    near = difflib.get_close_matches(str(word), [*known], n=1, cutoff=0.5)
    return f" is not there; did you mean {near[0]!r}?" if near else " is not there."
