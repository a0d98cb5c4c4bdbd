"""Language-supervised zero-shot recognition from few, noisy image-caption pairs, in JAX."""

__version__ = "0.1.0"
