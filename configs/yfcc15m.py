"""OTTER on YFCC15M, the photographs of Flickr that CLIP's authors chose; else as in cc3m.py.

    otter-jax prepare /data/yfcc --layout yfcc15m --name yfcc15m
    otter-jax train --config yfcc15m --workdir runs/yfcc15m

Variants: those of cc3m. The release reads this set but has neither a script for it nor its
results: batch, rate and epochs here are CC3M's; for numbers, see the paper. Its caption is "TITLE.
DESCRIPTION" with URL escapes undone (+ is a space), then HTML tags removed, and so it is here.
Two of its habits are not followed: it resizes these images bilinearly, and never shuffles them.
"""

from otter_jax.configs import cc3m


def get_config(variant: str = "otter"):
    """Returns the config for YFCC15M by a method, or by "METHOD_released"."""
    config = cc3m.get_config(variant)
    config.data.name = "yfcc15m"
    return config
