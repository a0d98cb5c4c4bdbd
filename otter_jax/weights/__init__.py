"""Finds and reads published weights, and writes weights for other programs.

In come names of architectures, files, folders and hubs; out go flax modules with NumPy variables,
and exported folders. May import models and errors only.
"""

from otter_jax.weights.encoders import IMAGE_ENCODERS as IMAGE_ENCODERS
from otter_jax.weights.encoders import Encoder as Encoder
from otter_jax.weights.encoders import load_image as load_image
from otter_jax.weights.encoders import load_text as load_text
