"""Writes evaluation sets as CLIP_benchmark reads them: tars of pictures with class numbers.

    FOLDER/classnames.txt, zeroshot_classification_templates.txt
    FOLDER/test/nshards.txt, 0.tar, 1.tar, ...: KEY.png and KEY.cls of each picture

    clip_benchmark eval --dataset wds/NAME --dataset_root FOLDER --pretrained none --no_amp \\
        --task zeroshot_classification --model local-dir:exported/open_clip

Pictures are as the model sees them, resized and cropped, so that no other program's resizing comes
between.
"""

import contextlib
import io
import shlex
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import rich.console
from jaxtyping import UInt8
from ml_collections import ConfigDict
from PIL import Image

from otter_jax.errors import UserError
from otter_jax.run import batches
from otter_jax.run.console import progress_bar
from otter_jax.zeroshot.sets import EvalSet

PER_TAR = 10_000  # pictures


def command(name: str, root: Path, model: Path) -> str:
    """Returns the command that evaluates a folder of open_clip on the set in `root`."""
    words = ["eval", "--dataset", f"wds/{name}", "--dataset_root", str(root)]
    words += ["--task", "zeroshot_classification", "--model", f"local-dir:{model}"]
    return shlex.join(["clip_benchmark", *words, "--pretrained", "none", "--no_amp"])


def open_sets(config: ConfigDict, names: Sequence[str]) -> list[EvalSet]:
    """Opens sets of config.eval.sets whose pictures have one label each.

    Raises UserError for a set that is not there, whose pictures have several labels, or that is of
    pairs.
    """
    there, names = config.eval.sets.keys(), list(dict.fromkeys(names))
    for name in names:
        if name not in there:
            raise UserError(
                f"--eval {name}: the config has no such evaluation set; there are: "
                f"{', '.join(there) or 'none'}."
            )
    exif = config.data.exif
    found = [
        EvalSet.open(name, config.eval.sets[name], config.data.dir, exif=exif) for name in names
    ]
    for each in found:
        if each.pictures is not None:
            raise UserError(
                f"--eval {each.name}: it is a set of pairs, whose captions are its classes, and "
                "what is written here are pictures with one label of a class each. `otter-jax "
                "eval` evaluates such sets here."
            )
        several = int(((each.labels >= 0).sum(axis=1) > 1).sum())
        if several:
            raise UserError(
                f"--eval {each.name}: {several:,} of its {len(each.labels):,} pictures have "
                "several labels, and CLIP_benchmark's sets have one for each picture. "
                "`otter-jax eval` evaluates such sets here."
            )
    return found


def write(found: EvalSet, config: ConfigDict, folder: Path, console: rich.console.Console) -> int:
    """Writes a set into a new folder; returns the number of its pictures.

    Those without a label, and those that cannot be read, are left out; the latter are named.
    """
    (folder / "test").mkdir(parents=True)
    _write_lines(folder / "classnames.txt", found.names)
    templates = [_template(each) for each in found.templates]
    _write_lines(folder / "zeroshot_classification_templates.txt", templates)
    labels = found.labels.max(axis=1)  # the only one, or -1
    count, valid = 0, np.zeros(len(labels), bool)
    with (
        contextlib.ExitStack() as tar_of,
        contextlib.closing(batches.evaluation(config, found.source, shared=False)) as rows,
        progress_bar(console) as bar,
    ):
        task = bar.add_task(f"writing {found.name}", total=len(labels))
        for batch in rows:
            index = batch["index"][batch["valid"]]
            valid[index] = True
            for number, pixels in zip(index, batch["image"][batch["valid"]], strict=True):
                if labels[number] < 0:
                    continue
                if count % PER_TAR == 0:
                    tar_of.close()
                    path = folder / "test" / f"{count // PER_TAR}.tar"
                    tar = tar_of.enter_context(tarfile.open(path, "w"))
                _add(tar, f"{number:08d}.png", _png(pixels))
                _add(tar, f"{number:08d}.cls", str(labels[number]).encode())
                count += 1
            bar.advance(task, int((batch["index"] >= 0).sum()))
    batches.name_unreadable(found.source, valid, console)
    if not count:
        raise UserError(f"--eval {found.name}: no labelled picture of it is readable.")
    _write_lines(folder / "test" / "nshards.txt", [str(-(-count // PER_TAR))])
    return count


def _template(template: str) -> str:
    """Returns a template with {c} where the name goes, for Python's format."""
    return "{c}".join(part.replace("{", "{{").replace("}", "}}") for part in template.split("{}"))


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), "utf-8")


def _png(pixels: UInt8[np.ndarray, "H W 3"]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Adds a file whose entry has neither time nor owner, so that equal sets are equal files."""
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))
