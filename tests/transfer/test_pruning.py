"""Pruning: what goes, and that a smaller network computes what a masked one does."""

import functools
import json
import math

import flax.linen as nn
import jax
import numpy as np
import pytest
import safetensors.numpy
from flax import traverse_util

from otter_jax import gates
from otter_jax.errors import UserError
from otter_jax.models.efficientnet import EfficientNet
from otter_jax.models.mobilenet import MobileNet
from otter_jax.models.norm import BatchNorm
from otter_jax.models.resnet import ResNet
from otter_jax.models.vit import ViT
from otter_jax.transfer import pruning
from otter_jax.weights import encoders, folders, naming

ROWS = ((1, 8, 1, 3, 1), (2, 16, 4, 3, 2))
NETWORKS = {
    "basic": ResNet(stage_sizes=(1, 2), block="basic", channels=(8, 12), num_classes=3),
    "bottleneck": ResNet(
        stage_sizes=(1, 1), block="bottleneck", channels=(8, 12), deep=True, num_classes=3
    ),
    "lite": EfficientNet(lite=True, tensorflow=True, stages=ROWS, num_classes=3),
    "efficientnet": EfficientNet(stages=ROWS, num_classes=3),
    "mobilenet": MobileNet(
        stages=(((1, 16, 1, 3, 2, True),), ((2, 24, 3, 5, 2, True),)),
        channels=(16, 48, 40),
        num_classes=3,
    ),
}
IMAGES = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))


@functools.cache
def trained(model):
    """Variables with nothing at 0 or 1, as after training; drawn by NumPy, nothing is compiled."""
    rng = np.random.RandomState(0)

    def draw(path, x):
        noise = rng.randn(*x.shape).astype(np.float32)
        if path[-1].key == "kernel":
            return noise * np.float32(np.sqrt(2 / math.prod(x.shape[:-1])))
        noise *= np.float32(0.2)
        return {"scale": 1 + noise, "var": 1 + np.abs(noise)}.get(path[-1].key, noise)

    return jax.tree_util.tree_map_with_path(draw, encoders.variable_shapes(model, IMAGES))


def attention(variables, seed=0):
    rng = np.random.RandomState(seed)
    made = gates.create(variables["params"], "filter")
    return {path[:-1]: rng.rand(gate.shape[-1]) for path, gate in gates.attention(made).items()}


@pytest.fixture(scope="module", params=NETWORKS)
def pruned(request):
    model = NETWORKS[request.param]
    variables = trained(model)
    keep = pruning.lowest(attention(variables), 0.4, model, variables["params"])
    return model, variables, keep


def size(variables):
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def test_every_norm_has_its_convolution(pruned):
    model, variables, _ = pruned
    behind = pruning.norms(model)
    norms = {path[1:-1] for path in traverse_util.flatten_dict(variables) if path[-1] == "mean"}
    assert set(behind.values()) == norms
    assert len(behind) == len(norms)


def test_the_share_asked_for_goes_and_every_convolution_keeps_one(pruned):
    _, _, keep = pruned
    gone = np.concatenate([~stays for stays in keep.values()])
    assert gone.mean() == pytest.approx(0.4, abs=0.05)
    assert all(stays.any() for stays in keep.values())


def test_a_masked_filter_gives_no_answer_to_a_picture(pruned):
    """Its norm makes a constant of it; 0 if that could not go with it."""
    model, variables, keep = pruned

    @jax.jit
    def answers(variables):
        _, seen = model.apply(
            variables, IMAGES, train=False, mutable=["intermediates"],
            capture_intermediates=lambda module, _: isinstance(module, BatchNorm),
        )  # fmt: skip
        return seen["intermediates"]

    masked = pruning.mask(variables, keep, model)
    seen = traverse_util.flatten_dict(jax.device_get(answers(masked)))
    for path, norm in pruning.norms(model).items():
        (answer,) = seen[*norm, "__call__"]
        gone, there = answer[..., ~keep[path]], answer[..., keep[path]]
        assert (gone == gone[:1, :1, :1]).all()
        assert (there != there[:1, :1, :1]).any()
    for channels in pruning.inner(model, variables["params"]):
        last = [path for path in channels.made_by if path in keep][-1]
        (answer,) = seen[*pruning.norms(model)[last], "__call__"]
        assert ((answer[..., ~keep[last]] != 0) == channels.moves).all()


def test_constants_move_behind_convolutions_of_one_pixel_alone():
    for name, which in (
        ("basic", {0}),
        ("bottleneck", {0, 1}),
        ("lite", {1}),
        ("efficientnet", {0}),
    ):
        params = trained(NETWORKS[name])["params"]
        found = {int(one.moves) for one in pruning.inner(NETWORKS[name], params)}
        assert found == which, name


def test_a_smaller_network_computes_what_the_masked_one_does(pruned):
    model, variables, keep = pruned
    masked = pruning.mask(variables, keep, model)
    fewer, small = pruning.smaller(model, variables, keep)
    whole, less = (
        jax.device_get(jax.jit(functools.partial(m.apply, train=False))(v, IMAGES))
        for m, v in ((model, masked), (fewer, small))
    )
    # Sums in another order: 2e-7 of the largest logit apart, for whatever processor compiled.
    np.testing.assert_allclose(less, whole, rtol=1e-5, atol=1e-6)
    assert size(small) < size(variables)
    like = encoders.variable_shapes(fewer, IMAGES)
    assert jax.tree.map(lambda x: x.shape, small) == jax.tree.map(lambda x: x.shape, like)


def test_pruning_nothing_changes_nothing(pruned):
    model, variables, _ = pruned
    keep = pruning.lowest(attention(variables), 0.0, model, variables["params"])
    jax.tree.map(np.testing.assert_array_equal, pruning.mask(variables, keep, model), variables)


def test_the_least_attended_go_first():
    model = NETWORKS["basic"]
    variables = trained(model)
    values = attention(variables)
    kept = [pruning.lowest(values, share, model, variables["params"]) for share in (0.2, 0.5)]
    for path, value in values.items():
        few, many = (~keep[path] for keep in kept)
        assert not (few & ~many).any()  # what goes at 20% is gone at 50%
        assert not many.any() or value[many].max() < value[~many].min()


def test_a_pruned_network_is_read_back_from_its_folder(tmp_path):
    model = encoders.load_image("", arch="resnet18").module
    variables = trained(model)
    keep = pruning.lowest(attention(variables), 0.3, model, variables["params"])
    fewer, small = pruning.smaller(model, variables, keep)
    tensors = naming.export(small, naming.families(fewer)[0])
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    about = {"architecture": "resnet18", "pruned": dict(folders.kept(fewer))}
    (tmp_path / "config.json").write_text(json.dumps(about))
    found = encoders.load_image(str(tmp_path), arch="resnet18")
    assert found.module == fewer
    jax.tree.map(np.testing.assert_array_equal, found.variables, small)


def test_the_magnitude_of_a_filter_is_the_norm_of_its_kernel(pruned):
    model, variables, _ = pruned
    found = pruning.magnitude(model, variables["params"])
    assert found.keys() == pruning.norms(model).keys()
    kernels = traverse_util.flatten_dict(variables["params"])
    for path, values in found.items():
        kernel = kernels[*path, "kernel"].astype(np.float64)
        expected = [np.sqrt((kernel[..., i] ** 2).sum()) for i in range(kernel.shape[-1])]
        # A float32 sum of n squares is off by n * 6e-8 of it at most, its root by half of that;
        # n is at most 576 here.
        np.testing.assert_allclose(values, expected, rtol=2e-5)


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_share_that_cannot_be_is_refused(share):
    with pytest.raises(UserError, match="share="):
        pruning.lowest({}, share, NETWORKS["basic"], {})


def test_a_vit_has_no_filters_to_prune():
    model = ViT(width=16, depth=1, heads=2, patch=16, image_size=64)
    with pytest.raises(UserError, match="no filter"):
        pruning.lowest({}, 0.2, model, {})
    with pytest.raises(UserError, match="smaller form"):
        pruning.smaller(model, {"params": {}}, {})


def test_speed_is_the_ratio_of_the_best_passes(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(pruning.time, "perf_counter", lambda: clock[0])

    def passes(seconds):
        left = iter(seconds)

        def run():
            clock[0] += next(left)

        return run

    # One slow pass, as on a busy machine, says nothing of the network.
    assert pruning.faster(passes([9, 4, 4, 4, 4]), passes([2, 2, 7, 2, 2])) == 2


def test_a_pass_is_compiled_and_through_once_it_is_made():
    model = NETWORKS["basic"]
    variables, calls = trained(model), []

    def watch(call, args, kwargs, context):
        calls.append(context.module.path)
        return call(*args, **kwargs)

    with nn.intercept_methods(watch):
        run = pruning.forward(model, variables, IMAGES)
        traced = len(calls)
        run()
    assert len(calls) == traced > 0
