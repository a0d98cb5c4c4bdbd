"""Turns checkpoints of the released PyTorch code into runs."""

import json
import pathlib

import rich.console
from ml_collections import ConfigDict

from otter_jax.data.captions import Tokenizer
from otter_jax.errors import UserError
from otter_jax.run import directory
from otter_jax.run.checkpoint import Checkpoints
from otter_jax.run.model import check_sizes, shapes
from otter_jax.weights.otter_release import load


def run(
    config: ConfigDict,
    checkpoint: pathlib.Path,
    workdir: pathlib.Path,
    *,
    console: rich.console.Console,
) -> None:
    """Writes `checkpoint` into `workdir`, for evaluation, export or as teacher.checkpoint.

    Optimiser and epoch are left out: the release itself cannot resume from them exactly.
    Raises UserError if the file is not such a checkpoint of the model that `config` describes, or
    if `workdir` has one already.
    """
    if config.gates.shape:
        raise UserError(f"gates.shape={config.gates.shape!r}, but a released model has no gates.")
    if not checkpoint.is_file():  # before a text encoder is fetched
        what = "a folder: give the checkpoint in it" if checkpoint.is_dir() else "not there"
        raise UserError(f"The checkpoint {checkpoint} is {what}.")
    if any((workdir / "checkpoints").glob("[0-9]*")):
        raise UserError(f"{workdir} already holds a run; give another --workdir.")
    model, like, folder = shapes(**config.model.to_dict())
    check_sizes(config, model, Tokenizer(folder, config.data.max_tokens))

    def tell(note: str) -> None:
        console.print(f"Note: {note}")

    state = load(checkpoint, model, like, tell=tell)
    checkpoints = Checkpoints(workdir)
    try:
        directory.describe(workdir, json.loads(config.to_json()))
        checkpoints.save(0, state)
    finally:
        checkpoints.close()
    teacher = "with its EMA teacher" if "teacher" in state else "without a teacher"
    console.print(f"{checkpoint} is in {workdir} now, {teacher}, as step 0.")
