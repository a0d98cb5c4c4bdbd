"""Self-distillation (arXiv:2104.08945) on CC3M: soft labels from a teacher, no transport.

    otter-jax train --config self_distillation --workdir runs/self \
        --config.data.tars="('/data/cc3m/*.tar',)"

Variants: self_distillation:ema (the default), whose teacher is the model's own average, which is
cc3m:kd by its first name; and :fixed, whose teacher is another run with the same encoders, that
of runs/teacher unless --config.teacher.checkpoint=DIR:

    otter-jax train --config cc3m:infonce --workdir runs/teacher ...
    otter-jax train --config self_distillation:fixed --workdir runs/self ...

The target is softmax(100 * V T') of the teacher's embeddings, row by row, and half of the loss. Of
the paper we have its abstract: 3M pairs, ResNet-50 and DeCLUTR; 73 % better, relatively, than what
came before on ImageNet 21k+1k, and 10.5 % than CLIP on Open Images. All numbers here are those of
the OTTER release, an earlier revision of which has this very target. Evaluation: see cc3m.py.
"""

from otter_jax.configs import cc3m
from otter_jax.errors import UserError


def get_config(teacher: str = "ema"):
    """Returns the config for CC3M with an "ema" or a "fixed" teacher."""
    if teacher not in ("ema", "fixed"):
        raise UserError(f"There is no teacher {teacher!r}; there are: ema, fixed.")
    config = cc3m.get_config("kd")
    if teacher == "fixed":
        config.teacher.checkpoint = "runs/teacher"
    return config
