"""Encoders of images and of texts as flax modules, and the two towers that join a pair of them.

Pixels and token numbers come in, features go out; names of layers are those of the published
weights. Knows no files and no config; imports jax, flax and its own files alone.
"""
