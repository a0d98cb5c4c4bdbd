"""Reads how a sentence-transformers folder is to be read, and writes such a folder's files.

modules.json lists what a text goes through: a transformer, a pooling, perhaps linear layers, and a
normalisation. A folder without it is a transformer alone, and its tokens are averaged.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from otter_jax.errors import UserError
from otter_jax.files import read_json
from otter_jax.models.bert import PROJECTED, Bert, Projection
from otter_jax.models.pooling import POOLINGS, Pooling
from otter_jax.weights import hub, tensors
from otter_jax.weights.tensors import Tell, Tensors, quiet

REMEDY = (
    "For its transformer alone, with the mean over tokens, give a copy of the folder without "
    "modules.json."
)
TRANSFORMERS = ("Transformer", "BERT", "RoBERTa")  # names in old folders and in new ones
PACKAGE = "sentence_transformers.models"  # of modules, by names that all versions know
SETTINGS = "sentence_bert_config.json"
FIELD = "pooling_mode"  # of 1_Pooling/config.json: a name, or a prefix of names that are true
SAME = {"cls_token": "cls", "mean_tokens": "mean", "max_tokens": "max"}


class Layout(NamedTuple):
    """Says how the texts of a folder become vectors.

    Attributes:
      transformer: the folder with config.json, weights and tokenizer.
      pooling: None if the folder does not say: then the encoder's own.
      projections, folders: the linear layers after the pooling, and where their weights are.
    """

    transformer: Path
    pooling: Pooling | None = None
    projections: tuple[Projection, ...] = ()
    folders: tuple[Path, ...] = ()


def read_layout(folder: Path, *, tell: Tell = quiet) -> Layout:
    """Reads modules.json of a folder and what it names; `tell` is told what is left aside.

    Raises UserError if the modules are not those of `Layout`, in its order.
    """
    file = folder / "modules.json"
    if not file.is_file():
        aside = sorted(path.parent.name for path in folder.glob("[0-9]_*/config.json"))
        if aside:
            tell(f"{folder} has no modules.json: {', '.join(aside)} in it are left aside.")
        return Layout(folder)
    try:
        listed = _read(file)
        if not isinstance(listed, list):
            raise ValueError("it is not a list of modules")
        modules = [(_kind(about), folder / about["path"]) for about in listed]
        layout = _layout(modules)
        prompts = folder / "config_sentence_transformers.json"
        prompt = _read(prompts).get("default_prompt_name") if prompts.is_file() else None
    except KeyError as error:
        raise UserError(f"{file} cannot be followed here: there is no {error}. {REMEDY}") from error
    except (ValueError, TypeError, AttributeError, OSError) as error:
        raise UserError(f"{file} cannot be followed here: {error}. {REMEDY}") from error
    if prompt:
        tell(f"{prompts} puts the prompt {prompt!r} before texts; captions go without it here.")
    return layout


def _kind(about: dict[str, Any]) -> str:
    """Returns the class of a module; raises ValueError for one that is not the library's."""
    whole = about["type"]
    package, _, kind = whole.rpartition(".")
    if package.split(".")[0] != "sentence_transformers":
        raise ValueError(f"it has a module {whole}, which is not sentence-transformers'")
    return kind


def _layout(modules: list[tuple[str, Path]]) -> Layout:
    """Returns the layout of modules in their order; raises ValueError for any other order."""
    kinds = [kind for kind, _ in modules]
    chain = " -> ".join(kinds)
    rest = modules[1:-1] if kinds[-1:] == ["Normalize"] else modules[1:]
    if kinds[:1] == ["CLIPModel"] and not rest:
        return Layout(modules[0][1])
    poolings, dense = rest[:1], rest[1:]
    if (
        kinds[:1] not in [[kind] for kind in TRANSFORMERS]
        or [kind for kind, _ in poolings] != ["Pooling"]
        or any(kind != "Dense" for kind, _ in dense)
    ):
        known = "Transformer -> Pooling -> Dense ... -> Normalize"
        raise ValueError(f"it is {chain}, and what is read is {known}, the last two or not")
    folders = tuple(path for _, path in dense)
    return Layout(
        modules[0][1],
        _pooling(_read(poolings[0][1] / "config.json")),
        tuple(_projection(path, _read(path / "config.json")) for path in folders),
        folders,
    )


def _pooling(about: dict[str, Any]) -> Pooling:
    """Returns the one way of pooling that a module's config gives."""
    given = about.get(FIELD)
    if not given:  # the library's default, beside any other that is true
        about = {f"{FIELD}_mean_tokens": True} | about
    modes = [given] if isinstance(given, str) else list(given or ())
    modes += [
        k.removeprefix(f"{FIELD}_") for k, on in about.items() if k.startswith(f"{FIELD}_") and on
    ]
    modes = list(dict.fromkeys(SAME.get(mode, mode) for mode in modes))
    if len(modes) != 1 or modes[0] not in POOLINGS:
        found = " and ".join(map(str, modes)) or "none"
        raise ValueError(f"it pools by {found}; what is read is one of {', '.join(POOLINGS)}")
    return modes[0]


def _projection(folder: Path, about: dict[str, Any]) -> Projection:
    """Returns the linear layer that a module's config gives."""
    activation = about.get("activation_function", "torch.nn.modules.activation.Tanh")
    name = str(activation).rpartition(".")[2]
    if name not in PROJECTED or not str(activation).startswith("torch.nn."):
        known = ", ".join(PROJECTED)
        raise ValueError(f"{folder.name} has the activation {activation}; what is read is {known}")
    of = about.get("module_input_name", "sentence_embedding")
    if of != "sentence_embedding":
        raise ValueError(f"{folder.name} is applied to {of}, not to the pooled vector")
    return Projection(int(about["out_features"]), name, bool(about.get("bias", True)))


def projection_tensors(layout: Layout, *, tell: Tell = quiet) -> Tensors:
    """Reads the weights of a layout's linear layers, by their names in `Bert`."""
    found: Tensors = {}
    for number, folder in enumerate(layout.folders):
        for name, values in tensors.read(hub.weights_file(folder), tell=tell).items():
            found[f"dense.{number}.{name.removeprefix('linear.')}"] = values
    return found


def most_tokens(folder: Path) -> int | None:
    """Returns to how many tokens sentence-transformers cuts the texts of a transformer's folder."""
    found = _settings(folder).get("max_seq_length")
    return found if isinstance(found, int) else None


def lower_case(folder: Path) -> bool:
    """Tells whether sentence-transformers lower-cases texts before a transformer's tokenizer."""
    return bool(_settings(folder).get("do_lower_case"))


def _settings(folder: Path) -> dict[str, Any]:
    """Returns what sentence-transformers notes beside a transformer; {} if it notes nothing."""
    for file in sorted(folder.glob("sentence_*_config.json")):
        try:
            found = _read(file)
        except (ValueError, OSError):
            continue  # it is for sentence-transformers alone
        if isinstance(found, dict):
            return found
    return {}


def write_projections(
    folder: Path, layers: Sequence[Projection], weights: Tensors, *, first: int = 2
) -> None:
    """Writes linear layers as modules `first`, `first` + 1, ... of a transformer's folder.

    `weights` has their tensors under the names of `projection_tensors`.
    """
    for number, (width, activation, bias) in enumerate(layers):
        own = f"dense.{number}."
        linear = {
            f"linear.{name.removeprefix(own)}": np.ascontiguousarray(values)
            for name, values in weights.items()
            if name.startswith(own)
        }
        inputs = linear["linear.weight"].shape[1]
        group = "linear" if activation == "Identity" else "activation"
        about = {"in_features": inputs, "out_features": width, "bias": bias}
        about["activation_function"] = f"torch.nn.modules.{group}.{activation}"
        path = folder / f"{number + first}_Dense"
        path.mkdir()
        tensors.write(path / "model.safetensors", linear)
        _write(path / "config.json", about)


def write_modules(
    folder: Path, module: Bert, projections: int, *, max_tokens: int, lower_case: bool
) -> None:
    """Writes the files that make a transformer's folder readable by sentence-transformers.

    The folder has so many `projections`, from `write_projections`.
    """
    steps = [("", "Transformer"), ("1_Pooling", "Pooling")]
    steps += [(f"{number + 2}_Dense", "Dense") for number in range(projections)]
    steps.append((f"{len(steps)}_Normalize", "Normalize"))
    _write(folder / "modules.json", _modules(steps))
    names = {mode: name for name, mode in SAME.items()}
    pooling: dict[str, Any] = {"word_embedding_dimension": module.config.hidden_size}
    pooling[f"{FIELD}_mean_tokens"] = False  # true if it is left out
    pooling[f"{FIELD}_{names.get(module.pooling, module.pooling)}"] = True
    (folder / "1_Pooling").mkdir()
    _write(folder / "1_Pooling" / "config.json", pooling)
    length = {"max_seq_length": max_tokens, "do_lower_case": lower_case}
    _write(folder / SETTINGS, length)


def write_towers(
    folder: Path, head: Tensors, *, projections: int, pools: bool, max_tokens: int
) -> None:
    """Makes one model of the folders of two towers in `folder`, image/ and text/.

    sentence-transformers (5.4 and later) then embeds pictures and texts by `folder` itself, from
    the weights that lie in the two. image/ is timm's, whose classifier it leaves out: it becomes a
    linear layer of its own, `head`, with the names of `projection_tensors`. text/ has so many
    `projections`, from `write_projections`, and a pooling if it `pools`; a text encoder that does
    not gives its own vector of a text.
    """
    image, text = folder / "image", folder / "text"
    write_projections(image, [Projection(len(head["dense.0.bias"]))], head, first=1)
    _write(image / SETTINGS, _whole("image"))
    chains = {"text": [("text", "Transformer")], "image": [("image", "Transformer")]}
    if pools:
        chains["text"].append(("text/1_Pooling", "Pooling"))
    else:
        _write(text / SETTINGS, _whole("text") | {"max_seq_length": max_tokens})
    chains["text"] += [(f"text/{number + 2}_Dense", "Dense") for number in range(projections)]
    chains["image"].append(("image/1_Dense", "Dense"))
    router = {
        "types": {path: f"{PACKAGE}.{kind}" for chain in chains.values() for path, kind in chain},
        "structure": {tower: [path for path, _ in chain] for tower, chain in chains.items()},
        "parameters": {"default_route": "text", "allow_empty_key": True},
    }
    _write(folder / "router_config.json", router)
    _write(folder / "modules.json", _modules([("", "Router"), ("1_Normalize", "Normalize")]))


def _whole(tower: str) -> dict[str, Any]:
    """Returns the settings of a transformer whose own pooled vector is taken."""
    taken = {tower: {"method": "forward", "method_output_name": "pooler_output"}}
    return {"modality_config": taken, "module_output_name": "sentence_embedding"}


def _modules(steps: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """Returns what modules.json says of steps: (their folder, the class of the module)."""
    return [
        {"idx": i, "name": str(i), "path": path, "type": f"{PACKAGE}.{kind}"}
        for i, (path, kind) in enumerate(steps)
    ]


def _read(path: Path) -> Any:
    """Reads JSON."""
    return read_json(path)


def _write(path: Path, value: Any) -> None:
    """Writes JSON without the rename trick, since the folder is new."""
    path.write_text(json.dumps(value, indent=2), "utf-8")
