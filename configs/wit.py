"""OTTER on WIT, the images of Wikipedia and their texts; all but the data as in cc3m.py.

    otter-jax prepare /data/wit --layout wit --name wit
    otter-jax train --config wit --workdir runs/wit

Variants: those of cc3m. The paper trains on WIT too, but the release has neither a script for it
nor its results: batch, rate and epochs here are CC3M's; for numbers, see the paper. Nor does it say
which of WIT's texts it takes for the caption; otter_jax/data/public/wit.py says which are taken
here.
"""

from otter_jax.configs import cc3m


def get_config(variant: str = "otter"):
    """Returns the config for WIT by a method, or by "METHOD_released"."""
    config = cc3m.get_config(variant)
    config.data.name = "wit"
    return config
