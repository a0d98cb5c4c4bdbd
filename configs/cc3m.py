"""OTTER on Conceptual Captions 3M: ResNet-50 and DeCLUTR-Sci-base, both trained as a whole.

    otter-jax prepare "/data/cc3m/*.tar" --name cc3m
    otter-jax train --config cc3m --workdir runs/cc3m

Variants: cc3m:infonce, :ls, :kd, :otter (the default), as the paper means them; each also with
_released, such as :otter_released, as the released code computes it on 8 processes (README,
"Methods"). Not of the paper: :siglip, :softclip, :trust, :trust_otter (docs/configs.md). The tars
are those that img2dataset writes; what the authors' downloader leaves is read with --layout cc3m.
The authors had 2,911,810 readable pairs, some 57,000 steps. Weights come from the Hugging Face hub;
the image encoder's are those that timm 0.3.4, which the release asks for, calls resnet50.

Published FH@1/5/10, from the release's README:

              Open Images, 19,958 classes   multi-label ImageNet, 10,032 classes
    InfoNCE       26.8 / 55.1 / 66.4               10.9 / 29.4 / 40.5
    LS            26.3 / 55.9 / 67.5               10.1 / 29.6 / 39.8
    KD            26.7 / 55.3 / 67.1               10.0 / 27.5 / 38.5
    OTTER         29.1 / 59.6 / 70.9               12.0 / 31.8 / 42.1

This config has not been run to its end. By itself it evaluates on 5,000 pairs that are held out:
each of their images is searched among their captions, which shows how a run is going and does not
compare with the table. --config.data.split=train takes them back. For the table, prepare its sets
(README, "Public sets") and add them.

From the paper: the data and 8 V100. From the release: encoders, 64 pairs per GPU, epochs, SGD and
its rate, alpha, epsilon, EMA. It has no script for ls: whether the table's smoothing is 0.1 is not
known. Ours: a rate that changes every step, captions packed in rows rather than padded, and
bfloat16, for Ampere and later; the release has float32.
"""

from otter_jax.configs import common


def get_config(variant: str = "otter"):
    """Returns the config for CC3M by a method, or by "METHOD_released"."""
    method = variant.removesuffix("_released")
    config = common.get_config(method)
    config.model.dtype = "bfloat16"
    config.model.img.arch = "resnet50"
    config.model.img.weights = "timm/resnet50.ram_in1k"
    config.model.txt.weights = "johngiorgi/declutr-sci-base"
    config.data.name = "cc3m"
    config.data.split = "train[:-5000]"
    config.data.packed = True
    config.data.num_workers = 16  # as many as the release has per GPU
    config.train.batch_size = 512
    config.train.epochs = 10.0
    config.train.log_every = 100
    config.optim.learning_rate = 3e-3
    config.eval.every = 5000
    config.eval.best = "heldout/student/FH@10"  # published numbers are the student's, not the EMA's
    config.eval.sets = {
        "heldout": common.evaluation(
            config.data.get_ref("name"),  # follows what the command line says
            tars=config.data.get_ref("tars"),
            split="train[-5000:]",
            label="caption",
            templates=("{}",),
        )
    }
    return config if method == variant else common.as_released(config)
