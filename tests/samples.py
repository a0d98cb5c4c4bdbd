# ruff: noqa: E501
"""Small whole files of every kind that is read, and what reads them: for tests/fuzz.py to damage.

A sample is a folder of files. Its reader gets the folder, and returns whether anything was tallied.
"""

import base64
import bz2
import contextlib
import functools
import io
import json
import lzma
import os
import pathlib
import uuid

import numpy as np
import pickles
import pyarrow as pa
import pyarrow.parquet as pq
import rich.console
import safetensors.numpy
from ml_collections import ConfigDict
from mutations import checked_png, checked_tar, damaged, repacked
from pictures import noise
from PIL import Image
from tars import pairs, write_tar

from otter_jax.data import images
from otter_jax.data.build.parts import make_unit, tallies
from otter_jax.data.build.plan import Options
from otter_jax.data.captions import Tokenizer
from otter_jax.data.formats import class_folders, kinds
from otter_jax.data.formats.reading import Reading
from otter_jax.run import digests, directory
from otter_jax.training.meters import Scalars
from otter_jax.weights import encoders, image_config, tensors
from otter_jax.zeroshot import bank

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
QUIET = rich.console.Console(file=io.StringIO())


def picture(format: str, rng) -> bytes:
    """A picture of a format, of one of its kinds."""
    pixels = np.random.default_rng(rng.randrange(4)).integers(256, size=(24, 33, 4), dtype=np.uint8)
    mode = rng.choice({"JPEG": ("RGB", "L", "CMYK"), "BMP": ("RGB", "L", "P")}.get(format, ("RGB", "RGBA", "L", "P", "1")))  # fmt: skip
    if format in ("WEBP", "AVIF"):
        mode = rng.choice(("RGB", "RGBA"))
    img, file, options = (
        Image.fromarray(pixels, "RGBA").convert("RGB").convert(mode),
        io.BytesIO(),
        {},
    )
    if format in ("GIF", "TIFF", "WEBP", "PNG", "AVIF") and rng.random() < 0.3:
        options = {"save_all": True, "append_images": [img.rotate(90)]}
    if format == "JPEG":
        options = {"progressive": rng.random() < 0.5, "exif": _turned(rng.randrange(1, 9)), "icc_profile": b"icc" * 50}  # fmt: skip
    if format == "TIFF":
        options["compression"] = rng.choice((None, "tiff_lzw", "tiff_adobe_deflate", "packbits"))
    if format == "GIF":
        options["comment"] = b"a comment" * 40
    if format == "WEBP":
        options |= {"lossless": rng.random() < 0.5, "exif": _turned(rng.randrange(1, 9))}
    img.save(file, format, **options)
    return file.getvalue()


def _turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def rows(rng) -> list[dict]:
    """Rows of a table whose pictures are paths, base64 or URIs."""

    def image(number):
        text = base64.b64encode(noise(number)).decode()
        return rng.choice((f"{number}.jpg", text, f"data:image/jpeg;base64,{text}"))

    captions = ("a cat", "two, dogs", 'a "quoted" one', "line\nbreak", ["one", "two"], "é", 3, "")
    return [
        {"image": image(n), "caption": rng.choice(captions), "id": n, "more": {"a": [1, None, "x"]}}
        for n in range(rng.randrange(1, 6))
    ]


def text_table(kind: str, rng) -> bytes:
    """A table of a kind of text."""
    found = rows(rng)
    if kind == "jsonl":
        return "".join(json.dumps(row) + "\n" for row in found).encode()
    if kind == "json":
        coco = {"images": [{"id": 1, "file_name": "0.jpg"}], "annotations": [{"image_id": 1, "caption": "x"}]}  # fmt: skip
        return json.dumps(rng.choice((found, coco))).encode()
    cut = "\t" if kind == "tsv" else rng.choice(",;|")
    lines = [cut.join(("image", "caption", "id"))]
    for row in found:
        quoted = str(row["caption"]).replace('"', '""')
        caption = f'"{quoted}"' if kind == "csv" else str(row["caption"]).replace("\n", " ")
        lines.append(cut.join((row["image"], caption, str(row["id"]))))
    return ("\n".join(lines) + "\n").encode(rng.choice(("utf-8", "utf-8", "utf-8-sig", "utf-16")))


def parquet_table(rng) -> bytes:
    """A table of Parquet, plain or packed, with columns that nobody asked for."""
    number = rng.randrange(1, 30)
    structs = [{"bytes": noise(n), "path": f"{n}.jpg"} for n in range(number)]
    columns = {
        "image": rng.choice((structs, [noise(n) for n in range(number)], [f"{n}.jpg" for n in range(number)])),
        "caption": rng.choice((["a cat"] * number, [["a", "b"]] * number)),
        "when": pa.array(range(number), pa.timestamp("ns")),
        "far": pa.array(range(number), pa.date32()),
        "list": [[{"a": n}] for n in range(number)],
    }  # fmt: skip
    file = io.BytesIO()
    pq.write_table(
        pa.table(columns), file, compression=rng.choice(("none", "snappy", "zstd", "gzip")),
        use_dictionary=rng.random() < 0.5, row_group_size=rng.choice((5, 100)),
    )  # fmt: skip
    return file.getvalue()


def tar(folder: pathlib.Path, rng) -> bytes:
    """A web-dataset tar."""
    members = [
        *pairs(range(rng.randrange(1, 4))),
        ("j.jpg", noise(9)),
        ("j.json", '{"caption": "x"}'),
    ]
    members += [
        ("k.png", noise(8, "PNG")),
        ("k.cls", "3"),
        ("k.txt", "é\nsecond"),
        ("x" * 200 + ".jpg", noise(7)),
    ]
    rng.shuffle(members)
    write_tar(folder / "scratch", members)
    content = (folder / "scratch").read_bytes()
    (folder / "scratch").unlink()
    return content


def prepared(plan, folder: pathlib.Path) -> bool:
    """Makes the parts of all units of a plan; tells whether anything was tallied."""
    told = False
    for units in plan.units.values():
        for unit in units:
            stem = folder / f"part{uuid.uuid4().hex}"
            make_unit(unit, stem, options=Options(resize=16))
            told |= any(found["dropped"] or found["changed"] for found in tallies(stem))
    return told


def read_source(folder: pathlib.Path, name: str, **reading) -> bool:
    plan = kinds.plan_of([str(folder / name)], "mine", Options(), Reading(**reading))
    return prepared(plan, folder)


def damaged_packed(content: bytes, rng, mend=bytes) -> bytes:
    """Damages a content, or what it is packed in, or both."""
    pack = rng.choice(
        (bytes, bytes, functools.partial(repacked, rng=rng), bz2.compress, lzma.compress)
    )
    if rng.random() < 0.7:
        content = mend(damaged(content, rng))
    content = pack(content)
    return damaged(content, rng) if rng.random() < 0.4 else content


def table(folder: pathlib.Path, rng):
    kind = rng.choice(("csv", "tsv", "jsonl", "json"))
    for number in range(3):
        (folder / f"{number}.jpg").write_bytes(noise(number))
    pack = rng.random() < 0.3
    content = damaged(text_table(kind, rng), rng)
    (folder / f"t.{kind}").write_bytes(damaged(repacked(content, rng), rng) if pack else content)
    return functools.partial(read_source, name=f"t.{kind}", captions=rng.random() < 0.8)


def parquet(folder: pathlib.Path, rng):
    (folder / "t.parquet").write_bytes(damaged(parquet_table(rng), rng))
    return functools.partial(read_source, name="t.parquet")


def web_dataset(folder: pathlib.Path, rng):
    mend = rng.choice((checked_tar, bytes))
    (folder / "a.tar").write_bytes(damaged_packed(tar(folder, rng), rng, mend))
    return functools.partial(read_source, name="a.tar", key=rng.choice(("first-dot", "last-dot")))


def special(path: pathlib.Path, rng) -> None:
    """Puts what is no file in a file's place."""
    path.unlink(missing_ok=True)
    kind = rng.randrange(5)
    if kind == 0:
        os.mkfifo(path)
    elif kind == 1:
        path.mkdir()
    else:
        path.symlink_to(rng.choice(("/dev/zero", "/dev/null", path, "/", "..", "/proc/self/mem")))


def tree(folder: pathlib.Path, rng):
    """A folder of pictures with captions, or with a folder per class."""
    classes = rng.random() < 0.4
    for number in range(4):
        home = folder / "tree" / (("one", "other")[number % 2] if classes else "")
        home.mkdir(parents=True, exist_ok=True)
        files = {
            ".jpg": noise(number),
            ".txt": b"a caption",
            ".json": b'{"caption": "x"}',
            ".cls": b"3",
        }
        for suffix, content in files.items():
            path = home / f"{number}{suffix}"
            if rng.random() < 0.3:
                content = damaged(content, rng)
            path.write_bytes(content)
            if rng.random() < 0.1:
                special(path, rng)

    def read(folder):
        if classes:
            return prepared(class_folders.plan("mine", folder / "tree", Options()), folder)
        return read_source(folder, "tree", untrusted=rng.random() < 0.5)

    return read


def image(folder: pathlib.Path, rng):
    format = rng.choice(FORMATS)
    content = damaged(picture(format, rng), rng)
    if format == "PNG" and rng.random() < 0.7:
        content = checked_png(content)
    (folder / "picture").write_bytes(content)
    exif = rng.choice(images.EXIF)

    def read(folder):
        content = (folder / "picture").read_bytes()
        try:
            images.decode(content, exif=exif)
            images.shrink(content, 16, format="jpeg", quality=90, exif=exif)
            images.shrink(content, 0, format="jpeg", quality=90, exif=exif)
        except images.UnreadableImage:
            return True
        return False

    return read


def tokenizer(folder: pathlib.Path, rng):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "pair", "otter", "##s", "Éa"]
    files = {"vocab.txt": "\n".join(words).encode()}
    if rng.random() < 0.6:
        files["tokenizer_config.json"] = (
            b'{"do_lower_case": false, "tokenizer_class": "BertTokenizer", "model_max_length": 9}'
        )
    if rng.random() < 0.4:
        files["config.json"] = b'{"model_type": "bert", "architectures": ["BertModel"]}'
    if rng.random() < 0.4:
        files["special_tokens_map.json"] = b'{"unk_token": "[UNK]", "pad_token": "[PAD]"}'
    if rng.random() < 0.3:
        files["sentence_bert_config.json"] = b'{"do_lower_case": true, "max_seq_length": 20}'
    for name, content in files.items():
        (folder / name).write_bytes(damaged(content, rng) if rng.random() < 0.6 else content)
    if rng.random() < 0.05:
        special(folder / rng.choice([*files, "merges.txt", "tokenizer.json"]), rng)
    return lambda folder: bool(Tokenizer(folder, 8).encode(["otters pair"])[0].sum() < 0)


def weights(folder: pathlib.Path, rng):
    held = {
        "a.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
        "a.bias": np.ones(3, np.float32),
    }
    tree = {name: pickles.tensor(values) for name, values in held.items()}
    tree = rng.choice((tree, {"state_dict": tree, "epoch": 3}, {"model": {"x": tree}}))
    kind = rng.choice(("safetensors", "zip", "legacy", "npz", "index"))
    path = folder / "model.bin"
    if kind == "safetensors":
        path = folder / "model.safetensors"
        path.write_bytes(safetensors.numpy.save(held))
    elif kind == "npz":
        np.savez(path.open("wb"), **held)
    elif kind == "index":
        (folder / "one.safetensors").write_bytes(safetensors.numpy.save(held))
        path = folder / "model.safetensors.index.json"
        path.write_bytes(
            json.dumps({"weight_map": dict.fromkeys(held, "one.safetensors")}).encode()
        )
    else:
        (pickles.write_zip if kind == "zip" else pickles.write_legacy)(path, tree)
    path.write_bytes(damaged(path.read_bytes(), rng))
    part = rng.choice(("", "", "state_dict"))
    part = "" if kind in ("safetensors", "index") else part
    return lambda folder: not tensors.read(path, part=part)


def names(folder: pathlib.Path, rng):
    (folder / "names.txt").write_bytes(damaged("cat\ndog\n\nmaison é\ncat\n".encode(), rng))
    (folder / "templates.txt").write_bytes(damaged(b"a photo of {}.\na {c}\n", rng))
    if rng.random() < 0.1:
        special(folder / "names.txt", rng)

    def read(folder):
        bank.templates_of(str(folder / "templates.txt"), "eval.templates")
        with contextlib.redirect_stdout(io.StringIO()):
            return not bank.read_names(str(folder / "names.txt"))

    return read


def encoder(folder: pathlib.Path, rng):
    """The configs of a folder of weights."""
    kind = rng.choice(("bert", "clip", "timm"))
    about = {
        "bert": {"model_type": "bert", "vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 10, "type_vocab_size": 1, "hidden_act": "gelu"},
        "clip": {"model_type": "clip", "text_config": {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 20}, "vision_config": {"hidden_act": "gelu"}},
        "timm": {"architecture": "resnet18", "num_classes": 3, "global_pool": "avg", "pretrained_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}, "pruned": {"layer1.0": 3}},
    }[kind]  # fmt: skip
    modules = [
        {"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    (folder / "config.json").write_bytes(damaged(json.dumps(about).encode(), rng))
    (folder / "preprocessor_config.json").write_bytes(
        damaged(b'{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.3, 0.3, 0.3]}', rng)
    )
    if kind == "bert" and rng.random() < 0.5:
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_bytes(
            damaged(b'{"pooling_mode_mean_tokens": true, "word_embedding_dimension": 8}', rng)
        )
        (folder / "modules.json").write_bytes(damaged(json.dumps(modules).encode(), rng))

    def read(folder):
        if kind == "timm":
            made = encoders.load_image(str(folder), arch="resnet18", pretrained=False)
            image_config.pixels_of(folder)
            image_config.check_arguments(folder, "resnet18", made.module)
        else:
            encoders.load_text(str(folder), pretrained=False)
        return False

    return read


def run(folder: pathlib.Path, rng):
    """The files that a run keeps about itself."""
    config = {
        "method": "otter",
        "objective": {"alpha": 0.5},
        "train": {"batch_size": 8},
        "data": {"name": "x"},
    }
    line = b'{"step": 3, "loss": 0.5}\n'
    files = {
        "config.json": json.dumps(config).encode(),
        "run.json": b'[{"command": ["train"], "git": null}]',
        "metrics.jsonl": line * 3,
        "results/step_00000003.json": b'{"step": 3, "top-1": 0.5}',
        "checkpoints/3/digests.json": b'{"state/a": "0123abcd"}',
        "checkpoints/3/state/a": b"content",
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(damaged(content, rng) if rng.random() < 0.4 else content)
    if rng.random() < 0.1:
        special(folder / rng.choice(list(files)[:3]), rng)

    def read(folder):
        told = bool(digests.damaged(folder / "checkpoints" / "3", "state"))
        with contextlib.closing(Scalars(folder, start=3)) as scalars:
            scalars.write(4, {"loss": 0.5})
        before = directory.read_config(folder)
        now = ConfigDict(config)
        directory.check_run(folder, now, anyway=False, console=QUIET)
        directory.describe(folder, json.loads(before.to_json()))
        return told

    return read


# What is damaged, and how often one of so many inputs is such.
SAMPLES = {
    table: 25, parquet: 12, web_dataset: 20, tree: 8, image: 25, tokenizer: 3, weights: 14, names: 4,
    encoder: 5, run: 4,
}  # fmt: skip
