"""Closed-form maps between frozen features, which all training must beat: ridge regression and CCA.

Both are fitted to the pairs of a run, wrong captions among them.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

LINEAR = ("ridge", "cca")
POWER = 4  # of the correlations that weigh components (Gong et al. 2014, arXiv:1212.4522)


class Maps(NamedTuple):
    """Holds two affine maps into a common space, rows of features as they come.

    Attributes:
      image, text: matrices.
      image_mean, text_mean: what is taken off before.
      image_bias: what is added after, of images.
    """

    image: Float[np.ndarray, "F D"]
    text: Float[np.ndarray, "W D"]
    image_mean: Float[np.ndarray, " F"]
    text_mean: Float[np.ndarray, " W"]
    image_bias: Float[np.ndarray, " D"]

    def embed_images(self, images: Float[np.ndarray, "N F"]) -> Float[np.ndarray, "N D"]:
        """Returns vectors of unit length."""
        return _unit((_double(images) - self.image_mean) @ self.image + self.image_bias)

    def embed_texts(self, texts: Float[np.ndarray, "N W"]) -> Float[np.ndarray, "N D"]:
        """Returns vectors of unit length."""
        return _unit((_unit(_double(texts)) - self.text_mean) @ self.text)


class Moments(NamedTuple):
    """Holds means and covariances of pairs: all that a closed form needs of them."""

    image_mean: Float[np.ndarray, " F"]
    text_mean: Float[np.ndarray, " W"]
    images: Float[np.ndarray, "F F"]
    texts: Float[np.ndarray, "W W"]
    across: Float[np.ndarray, "F W"]


def moments(images: Float[np.ndarray, "N F"], texts: Float[np.ndarray, "N W"]) -> Moments:
    """Computes the moments of images' features and of texts' features of unit length."""
    x, y = _double(images), _unit(_double(texts))
    x_mean, y_mean = x.mean(axis=0), y.mean(axis=0)
    x, y = x - x_mean, y - y_mean
    return Moments(x_mean, y_mean, x.T @ x / len(x), y.T @ y / len(y), x.T @ y / len(x))


def fit(kind: str, pairs: Moments, strength: float) -> Maps:
    """Fits "ridge" or "cca" to pairs; `strength` is that of the regularisation.

    It is relative: 1 adds to every variance the mean of all.
    """
    images = _regularised(pairs.images, strength)
    if kind == "ridge":  # to the texts' own space
        image, width = np.linalg.solve(images, pairs.across), len(pairs.text_mean)
        return Maps(image, np.eye(width), pairs.image_mean, np.zeros(width), pairs.text_mean)
    white_x = _inverse_root(images)
    white_y = _inverse_root(_regularised(pairs.texts, strength))
    left, correlations, right = np.linalg.svd(white_x @ pairs.across @ white_y, full_matrices=False)
    weights = correlations**POWER
    image, text = white_x @ left * weights, white_y @ right.T * weights
    return Maps(image, text, pairs.image_mean, pairs.text_mean, np.zeros(len(weights)))


def _regularised(covariance, strength):
    return covariance + strength * np.trace(covariance) / len(covariance) * np.eye(len(covariance))


def _inverse_root(covariance):
    values, vectors = np.linalg.eigh(covariance)
    return vectors / np.sqrt(np.maximum(values, 1e-12)) @ vectors.T


def _double(features):
    return np.asarray(features, np.float64)


def _unit(rows):
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
