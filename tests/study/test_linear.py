"""Closed forms, against scikit-learn's."""

import numpy as np
import pytest
from sklearn.cross_decomposition import CCA
from sklearn.linear_model import Ridge

from otter_jax.study import linear


@pytest.fixture
def pairs():
    rng = np.random.default_rng(0)
    hidden = rng.standard_normal((200, 3))
    images = hidden @ rng.standard_normal((3, 7)) + 0.5 * rng.standard_normal((200, 7))
    texts = hidden @ rng.standard_normal((3, 5)) + 0.5 * rng.standard_normal((200, 5))
    return images, texts / np.linalg.norm(texts, axis=1, keepdims=True)


def test_ridge_is_scikit_learns(pairs):
    images, texts = pairs
    strength = 0.3
    maps = linear.fit("ridge", linear.moments(images, texts), strength)
    alpha = strength * images.var(axis=0).mean() * len(images)
    theirs = Ridge(alpha=alpha).fit(images, texts).predict(images)
    theirs /= np.linalg.norm(theirs, axis=1, keepdims=True)
    np.testing.assert_allclose(maps.embed_images(images), theirs, atol=1e-9)
    np.testing.assert_allclose(maps.embed_texts(texts), texts, atol=1e-9)


def test_the_components_of_cca_correlate_as_scikit_learns(pairs):
    images, texts = pairs
    maps = linear.fit("cca", linear.moments(images, texts), 1e-9)
    own = [(images - images.mean(0)) @ maps.image, (texts - texts.mean(0)) @ maps.text]
    found = [np.corrcoef(own[0][:, i], own[1][:, i])[0, 1] for i in range(3)]
    theirs = CCA(3, max_iter=5000, tol=1e-10).fit(images, texts).transform(images, texts)
    expected = [np.corrcoef(theirs[0][:, i], theirs[1][:, i])[0, 1] for i in range(3)]
    np.testing.assert_allclose(found, expected, atol=1e-3)
    spread = own[0].std(axis=0)[:3]
    np.testing.assert_allclose(spread, np.array(found) ** linear.POWER, rtol=1e-3)
