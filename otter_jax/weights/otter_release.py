"""Reads checkpoints of the released PyTorch code (facebookresearch/OTTER).

`otter-jax convert CHECKPOINT --config NAME --workdir DIR` turns one into a run. That code saves a
student and its EMA teacher under the prefixes below; without a teacher, or with a fixed one, it
saves the student alone, without a prefix.
"""

import pathlib
import re
from typing import Any

import numpy as np

from otter_jax.errors import UserError
from otter_jax.models.bert import Bert
from otter_jax.models.towers import Towers
from otter_jax.weights import naming, tensors
from otter_jax.weights.tensors import Tell, Tensors, quiet

ALIASES = (
    (r"^module\.", ""),
    (r"^student\.", ""),
    (r"contrastive_loss\.T$", "contrastive_loss.loss.T"),  # before losses were wrapped
)
START = 3.9  # of both log scales; without a teacher term the second keeps it


def load(
    checkpoint: pathlib.Path, model: Towers, like: dict[str, Any], *, tell: Tell = quiet
) -> dict[str, Any]:
    """Returns the student's variables, and under "teacher" the EMA teacher's if there is one.

    `like` gives the shapes of the variables; `tell` is told which part of the file was taken where
    there are several. Raises UserError, which lists the differences, if the
    file is not a checkpoint of that code and this model.
    """
    found = tensors.read(checkpoint, tell=tell)
    saved = {naming.substitute(name, ALIASES): tensor for name, tensor in found.items()}
    if len(saved) < len(found):
        raise UserError(f"{checkpoint} has some tensors twice, with and without a prefix.")
    saved.setdefault("dist_loss.T_s", np.float32(START))
    family = family_of(model)

    def convert(state: Tensors) -> dict[str, Any]:
        variables = naming.convert(state, like, (family,), source=checkpoint)
        return {"batch_stats": {}} | variables

    teacher = {
        name.removeprefix("teacher."): t for name, t in saved.items() if name.startswith("teacher.")
    }
    student = {name: t for name, t in saved.items() if not name.startswith("teacher.")}
    state = convert(student)
    if teacher:
        state["teacher"] = convert(teacher | {"dist_loss.T_s": saved["dist_loss.T_s"]})
    return state


def family_of(model: Towers) -> naming.Family:
    """Returns that code's names for the tensors of two towers.

    Its image head is the classifier of the image encoder, in timm's names. Raises UserError for a
    text encoder that the code does not have.
    """
    if not isinstance(model.txt, Bert):
        raise UserError(
            "The released code has BERT and RoBERTa as text encoders; model.txt.weights is another."
        )
    if model.txt.pooling != "mean" or model.txt.projections:
        raise UserError(
            "The released code averages a text's tokens, but the folder model.txt.weights has a "
            "modules.json that says otherwise; give a copy of it without that file."
        )
    image, text = (naming.families(encoder)[0] for encoder in (model.img, model.txt))
    return naming.Family(
        rename=(
            *_under("img", image.rename),
            *_under("txt", text.rename),
            (r"^img_head$", f"image_encoder.model.{model.img.classifier}"),
            (r"^txt_head$", "text_encoder.fc"),
            (r"^img\.", "image_encoder.model."),
            (r"^txt\.", "text_encoder.model."),
            (r"^log_scale\.pairs$", "contrastive_loss.loss.T"),
            (r"^log_scale\.teacher$", "dist_loss.T_s"),
        ),
        ignore=(r".*\.num_batches_tracked", r"text_encoder\.model\.(pooler\..*|.*position_ids)"),
        parts=image.parts + text.parts,
    )


def _under(tower: str, rules: naming.Rules) -> list[tuple[str, str]]:
    """Turns rules for an encoder's layers into rules for layers that begin with its tower."""
    return [(re.sub(r"^\^", rf"(?<=^{tower}\\.)", pattern), new) for pattern, new in rules]
