"""Writes the card of an exported model: what it is, what it was trained on, how well it does.

Every line comes from the run's config and results, from what `prepare` noted of its pairs, or from
the weights it began with. What none of these say is called unknown.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from otter_jax.data.source import parse_mixture, version_folder
from otter_jax.errors import UserError
from otter_jax.files import read_json, read_text
from otter_jax.weights import hub

UNKNOWN = "unknown"
METRICS = ("FH@1", "FH@5", "FH@10", "recall@1", "mAP", "text@1", "image@1")  # of many, the usual
HEAD = """---
library_name: sentence-transformers
pipeline_tag: zero-shot-image-classification
tags: [open_clip, timm, otter_jax]
---
"""  # what model hubs read


def text(
    config: ConfigDict, about: Mapping[str, Any], *, name: str, left_out: Mapping[str, str]
) -> str:
    """Returns the card as Markdown.

    Args:
      config: the run's.
      about: what otter_jax.json says of the export, with the results of its checkpoint.
      name: of the model.
      left_out: {folder: why it is not there}.
    """
    parts = [
        f"# {name}",
        "An image and a text encoder that embed into one space, trained on pairs of pictures and "
        "captions with otter_jax. A picture belongs to the text whose embedding has the largest "
        "cosine with its own.",
        "## What it is",
        _table(_model(config, about)),
        "## How to use it",
        _use(left_out),
        "## What it was trained on",
        *_data(config),
        "## How it was trained",
        _table(_method(config, about)),
        "## How well it does",
        _results(about),
        "## Licences",
        _table(_licences(config)),
        "These are what the files say of themselves. The licence of this model is for those to "
        "choose who publish it, and within these.",
    ]
    return HEAD + "\n" + "\n\n".join(parts) + "\n"


def _model(config: ConfigDict, about: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    image, size = config.model.img, about["image"]
    yield "image encoder", f"{image.arch}, began with {_named(image.weights) or 'random weights'}"
    began = _named(config.model.txt.weights)
    yield "text encoder", began if config.model.txt.pretrained else f"as {began}, random weights"
    yield "embeddings", f"{about['dim']} numbers, of length 1"
    cut = f"shorter side resized to {size['resize']} pixels, the middle {size['size']} x "
    yield "pictures", f"{cut}{size['size']} cut out, bicubic"
    yield "texts", f"at most {about['max_tokens']} tokens, special ones included"
    yield "scale of cosines before a softmax", f"{about['scale']['pairs']:.2f}"
    yield "weights", f"{about['weights']}, step {about['step']}"


def _use(left_out: Mapping[str, str]) -> str:
    lines = ["model = SentenceTransformer(FOLDER)  # sentence-transformers 5.4 or later"]
    lines += ['cosines = model.encode([picture]) @ model.encode(["an otter", "a dog"]).T', ""]
    if "open_clip" not in left_out:
        lines += ['name = "local-dir:FOLDER/open_clip"']
        lines += ["model, preprocess = open_clip.create_model_from_pretrained(name)"]
        lines += ["tokenizer = open_clip.get_tokenizer(name)", ""]
    lines += ['images = timm.create_model("local-dir:FOLDER/image", pretrained=True)']
    lines += ['texts = transformers.AutoModel.from_pretrained("FOLDER/text")']
    reasons = [f"`{folder}/` is not here: {reason}." for folder, reason in left_out.items()]
    if not reasons:
        reasons = [
            "open_clip resizes the shorter side to the size of the crop at once, and reads BERT's "
            "`config.json` at the path `hf_model_name` of `open_clip/open_clip_config.json`: "
            "change it if the folder moves."
        ]
    return "\n".join(["```python", *lines, "```", "", *reasons])


def _data(config: ConfigDict) -> Iterator[str]:
    data = config.data
    yield f"`{data.name}`, split `{data.split}`."
    for name, _ in parse_mixture(data.name):
        folder = _folder(data.dir, name)
        report = _read(folder / "report.json") if folder else {}
        if not report:
            yield f"What `{name}` was made of is {UNKNOWN}: its report is not at hand."
        for split in report.keys() & re.findall(r"\w+", data.split):
            yield f"`{name}`, `{split}`, as `prepare` reports it:\n\n{_table(_made(report[split]))}"


def _made(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "origin", str(found.get("origin", UNKNOWN))
    files = found.get("files", [])
    names = ", ".join(str(file.get("name")) for file in files[:5])
    yield "files", f"{names}{f' and {len(files) - 5} more' if len(files) > 5 else ''}"
    records = found.get("records", "records")
    counts = {f"{records} read": "read", f"{records} kept": "kept", "duplicates": "duplicates"}
    for what, key in counts.items():
        if key in found:
            yield what, f"{found[key]:,}"
    for reason, count in found.get("dropped", {}).items():
        yield f"dropped: {reason}", f"{count['count']:,}"


def _method(config: ConfigDict, about: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    train, optim, objective = config.train, config.optim, config.objective
    yield "method", str(config.method)
    given = {k: v for k, v in objective.to_dict().items() if v not in ("", None)}
    yield "objective", ", ".join(f"{name} {value}" for name, value in sorted(given.items()))
    yield "steps", f"{about['step']} of {train.batch_size} pairs"
    yield "optimiser", f"{optim.name}, learning rate {optim.learning_rate:g}"
    if optim.freeze:
        yield "frozen", f"`{optim.freeze}`"
    if config.teacher.checkpoint:
        yield "teacher", "a model trained before, fixed"
    yield "seed", str(config.seed)


def _results(about: Mapping[str, Any]) -> str:
    results = about.get("results")
    if not results:
        return "It was not evaluated at this step (`otter-jax eval` does)."
    names = [m for m in METRICS if any(m in each[about["weights"]] for each in results.values())]
    rows = [("set", "pictures", "classes", "what", *names)]
    for name, result in results.items():
        of = result["about"]
        first = (f"{name}: `{of['data']}`, `{of['split']}`",)
        first += (f"{result['images']:,}", f"{result['classes']:,}")
        for kind in (about["weights"], "frequency", "chance"):
            values = (result[kind].get(metric) for metric in names)
            shown = ("" if value is None else f"{value:.3f}" for value in values)
            rows.append((*first, kind, *shown))
            first = ("", "", "")
    return (
        f"{_rows(rows)}\n\nZero-shot: FH@K is the share of pictures with a label among their K "
        "best classes, recall@1 the mean over classes. Frequency always answers the commonest "
        "classes of the set; chance orders the classes at random."
    )


def _licences(config: ConfigDict) -> Iterator[tuple[str, str]]:
    for name, _ in parse_mixture(config.data.name):
        folder = _folder(config.data.dir, name)
        info = _read(folder / "dataset_info.json") if folder else {}
        yield f"pairs `{name}`", (info.get("redistributionInfo") or {}).get("license") or UNKNOWN
    weights = {"image": config.model.img.weights, "text": config.model.txt.weights}
    for tower, given in weights.items():
        if given:
            yield f"{tower} weights {_named(given)}", _licence_of(given)


def _licence_of(weights: str) -> str:
    """Returns what a package, or the README of a folder or hub name, says of its licence."""
    try:
        if weights in hub.PACKAGES:
            about = metadata.metadata(weights)
            found = about.get("License-Expression") or about.get("License") or ""
            return found if found.upper() != "UNKNOWN" and found else UNKNOWN
        readme = Path(weights).expanduser() / "README.md"
        lines = read_text(readme).split("\n") if readme.is_file() else []
    except (OSError, UnicodeDecodeError, metadata.PackageNotFoundError):
        lines = []
    end = lines.index("---", 1) if lines[:1] == ["---"] and "---" in lines[1:] else 0
    said = [line.partition(":")[2].strip() for line in lines[:end] if line.startswith("license:")]
    return said[0] if said else UNKNOWN


def _named(weights: str) -> str:
    """Returns the name of weights; of a path its last part, since it is of this machine."""
    path = Path(weights).expanduser()
    return f"`{path.name if path.is_absolute() or path.exists() else weights}`" if weights else ""


def _folder(data_dir: str, name: str) -> Path | None:
    try:
        return version_folder(Path(data_dir).expanduser(), name)
    except UserError:  # it was moved or removed since
        return None


def _read(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _table(pairs: Iterator[tuple[str, str]]) -> str:
    return _rows([("", ""), *pairs])


def _rows(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    cells = ([" ".join(cell.replace("|", "\\|").split()) for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)
