"""Published weights: found, read, and written for other programs.

Names of architectures, files, folders and hubs come in; flax modules with NumPy variables go out,
and exported folders. Imports models and errors alone.
"""

from otter_jax.weights.encoders import IMAGE_ENCODERS as IMAGE_ENCODERS
from otter_jax.weights.encoders import Encoder as Encoder
from otter_jax.weights.encoders import load_image as load_image
from otter_jax.weights.encoders import load_text as load_text
