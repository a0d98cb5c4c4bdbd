"""Convolutional encoders against timm's numbers, which golden/make_convnets.py computed."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
from golden.draw import tensor
from golden.recipe import recipe_images, recipe_variables
from gradients import PART, near

from otter_jax.weights import encoders, naming

CLASSES = 10  # of the classifier there


def assert_timms_names(arch, expected):
    """What `export` writes has the names and shapes of timm's tensors."""
    module = encoders.load_image("", arch=arch).module.clone(num_classes=1000)
    like = encoders.variable_shapes(module, jnp.zeros((1, 32, 32, 3)))
    like = jax.tree.map(lambda x: np.zeros(x.shape, bool), like)
    tensors = naming.export(like, naming.families(module)[0])
    content = repr(sorted((name, x.shape) for name, x in tensors.items()))
    assert hashlib.sha256(content.encode()).digest() == expected[f"{arch}|sha256"].tobytes()


def drawn(model, images, scales):
    """The model's variables by recipe, the statistics of each norm times its factor."""
    variables = recipe_variables(model, images[:1])
    (family, *_), stats = naming.families(model), {"batch_stats": variables["batch_stats"]}
    tensors = naming.export(stats, family)
    norms = sorted({name.rpartition(".")[0] for name in tensors})
    for norm, scale in zip(norms, scales, strict=True):
        tensors[f"{norm}.running_mean"] *= np.sqrt(scale)
        tensors[f"{norm}.running_var"] *= scale
    return variables | naming.convert(tensors, stats, (family,), source="recipe")


def assert_timms_features(arch, expected, *, jit=True):
    """The features of a whole encoder, with given statistics, are timm's."""
    model, images = encoders.load_image("", arch=arch).module, recipe_images(4, 64)
    variables = drawn(model, images, expected[f"{arch}|scales"])

    def features(variables):
        return model.apply(variables, images, train=False)

    near((jax.jit(features) if jit else features)(variables), expected[f"{arch}|features"], 1e-4)


def assert_timms_training(key, model, size, expected):
    """Features, logits, running statistics and all gradients of a small encoder are timm's."""
    images, family = recipe_images(4, size), naming.families(model)[0]
    features = model
    model = model.clone(num_classes=CLASSES)
    variables = drawn(model, images, expected[f"{key}|scales"])
    probe = tensor("probe", (4, CLASSES))

    def scalar(params, stats):
        variables = {"params": params, "batch_stats": stats}
        logits, updates = model.apply(variables, images, train=True, mutable="batch_stats")
        return (logits * probe).sum(), (logits, updates)

    @jax.jit
    def compute(params, batch_stats):
        body = {k: v for k, v in params.items() if k != model.classifier}
        stored = {"params": body, "batch_stats": batch_stats}
        return (
            features.apply(stored, images, train=False),
            jax.grad(scalar, has_aux=True)(params, batch_stats),
        )

    found, (gradients, (logits, updates)) = compute(**variables)
    near(found, expected[f"{key}|features"], 1e-4)
    near(logits, expected[f"{key}|logits"], 1e-4)
    assert_parts(naming.export(updates, family), expected, f"{key}|stats|", 1e-4)
    gradients = naming.export({"params": gradients}, family)
    norms = [np.linalg.norm(gradients[name]) for name in sorted(gradients)]
    # A bias that the next norm takes out has a gradient of zero but for rounding.
    limits = {"rtol": 1e-3, "atol": 1e-6 * np.max(norms)}
    np.testing.assert_allclose(norms, expected[f"{key}|norms"], **limits)
    assert_parts(gradients, expected, key + PART, 1e-3)


def assert_parts(tensors, expected, prefix, limit):
    """Some entries of some tensors are what `expected` has under `prefix` and the name."""
    parts = {key: part for key, part in expected.items() if key.startswith(prefix)}
    assert parts
    for key, part in parts.items():
        values = tensors[key.removeprefix(prefix)].ravel()
        near(values[:: max(1, values.size // 50)], part, limit)
