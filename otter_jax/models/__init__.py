"""Image and text encoders as flax modules, and the towers that join one of each.

In come pixels and token ids, out go features; layers have the names of the published weights. May
import jax, flax and each other; knows no files and no config.
"""
