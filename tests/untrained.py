"""A run that nobody trained: its weights are drawn."""

import json

import jax
import numpy as np

from otter_jax.run import directory
from otter_jax.run.checkpoint import Checkpoints
from otter_jax.run.model import shapes


def write(home, config, *, spread, scale=None):
    """Fills the directory of a run by a config, after step 3; its module, student and teacher.

    Weights are normal with a deviation of 1 / `spread`; `scale` is the student's for cosines.
    """
    module, like, _ = shapes(**config.model.to_dict() | {"dtype": "float32"})
    draw = np.random.default_rng(0).normal
    student, teacher = (
        jax.tree.map(lambda x: (draw(size=x.shape) / spread).astype(np.float32), like)
        for _ in range(2)
    )
    for variables in (student, teacher):
        variables["batch_stats"] = jax.tree.map(np.abs, variables["batch_stats"])
    if scale:
        student["params"]["log_scale"]["pairs"] = np.float32(np.log(scale))
    directory.describe(home, json.loads(config.to_json()))
    checkpoints = Checkpoints(home)
    checkpoints.save(3, student | {"teacher": teacher})
    checkpoints.close()
    return module, student, teacher
