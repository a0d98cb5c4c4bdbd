"""The quickstart without 413 of its training concepts, among whose pictures values are chosen."""

from otter_jax.configs import quickstart


def get_config(method: str = "otter"):
    """Returns the config by `method`."""
    config = quickstart.get_config(method)
    config.data.split = "train[413:]"
    sets = config.eval.sets.to_dict()
    config.eval.sets = {"val": sets["seen"], "unseen": sets["unseen"]}
    return config
