"""Data sets: made once on disk with TFDS, and read in batches with Grain.

In come people's files and public sets (`ensure` makes a set of them); out go records (`source`) and
batches (`pipeline`) of NumPy arrays. May import errors and other packages; no TensorFlow, no jax.
"""
