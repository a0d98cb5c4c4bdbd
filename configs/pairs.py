"""InfoNCE with trust on your own image-caption pairs.

    otter-jax prepare /data/pairs.csv --name mine
    otter-jax train --config pairs --workdir runs/mine --config.data.name=mine

Variants: pairs:infonce, :ls, :kd, :otter, :siglip, :softclip, :trust, :trust_otter. The default is
:trust, since one's own pairs usually contain wrong captions, and then :trust_cpu finds more names
than :infonce_cpu and :otter_cpu. If all captions are right, :infonce_cpu does; :trust_otter_cpu
finds more keywords; both start scales lower (docs/results.md). Both encoders of the quickstart are
trained as a whole, at full resolution, for a GPU. Each also with _cpu, or :cpu for short
(:trust_cpu), for a workstation without a GPU: as in the quickstart the text encoder and most of the
image encoder stay as they are, and pictures are 128 pixels wide: 2 GB of memory instead of 45.

One pair in twenty is held out. Each image of these is searched among their captions, and the
checkpoint that does this best is kept beside the latest. The optimiser is a starting point, not
tuned. Classes of your own: README, "Your own classes".
"""

from ml_collections import ConfigDict

from otter_jax.configs import quickstart
from otter_jax.configs.common import evaluation

DEFAULT = "trust"


def get_config(variant: str = DEFAULT):
    """Returns the config for your pairs by a method, or by "METHOD_cpu"; "cpu" is the default's."""
    method = variant.removesuffix("cpu").removesuffix("_") or DEFAULT
    config = quickstart.get_config(method)
    config.model.dtype = "bfloat16"
    config.optim.freeze = ""
    config.model.txt.dropout = 0.1
    config.data.name = "pairs"
    config.data.split = "train[:95%]"
    config.data.resize = 256
    config.data.image_size = 224
    config.data.max_tokens = 60
    config.data.packed = True
    config.train.batch_size = 512
    config.train.epochs = 10.0
    config.optim.learning_rate = 3e-4
    config.optim.warmup_steps = 100
    if method in ("infonce", "trust_otter"):  # by benchmarks/studies/pairs_cpu_starts.toml
        config.objective.log_scale = 1.6
    config.checkpoint.every = 500
    config.eval.every = 500
    config.eval.best = "heldout/ema/FH@1"  # which a handful of pairs has, too
    config.eval.sets = {
        "heldout": evaluation(
            config.data.get_ref("name"),  # follows what the command line says
            tars=config.data.get_ref("tars"),
            split="train[95%:]",
            label="caption",
            templates=("{}",),
        )
    }
    return for_cpu(config) if variant.endswith("cpu") else config


def for_cpu(config: ConfigDict) -> ConfigDict:
    """Returns `config` with frozen trunks, small pictures, and float32, which is fast on CPUs."""
    few = quickstart.get_config()
    config.model.dtype = few.model.dtype
    config.model.txt.dropout = few.model.txt.dropout
    config.optim.freeze = few.optim.freeze
    config.optim.learning_rate = few.optim.learning_rate
    config.data.resize = 144
    config.data.image_size = 128
    config.train.batch_size = 128
    return config
