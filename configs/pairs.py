"""OTTER on your own image-caption pairs.

    python -m otter_jax.prepare /data/pairs.csv --name mine
    python -m otter_jax.main --config configs/pairs.py --workdir runs/mine --config.data.name=mine

Variants: pairs.py:infonce, :ls, :kd, :otter (the default). Both encoders of the quickstart are
trained as a whole, at full resolution: for a GPU. One pair in twenty is held out; each of its
images is searched among its captions, and the checkpoint that does this best is kept beside the
latest. The optimiser is a starting point, not tuned. Classes of your own: README, "Your own data".
"""

from configs import quickstart
from configs.common import evaluation


def get_config(method: str = "otter"):
    """Training on own pairs by `method`."""
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
    config.checkpoint.every = 500
    config.eval.every = 500
    config.eval.best = "heldout/ema/FH@10"
    config.eval.sets = {
        "heldout": evaluation(
            config.data.get_ref("name"),  # follows what the command line says
            tars=config.data.get_ref("tars"),
            split="train[95%:]",
            label="caption",
            templates=("{}",),
        )
    }
    return config
