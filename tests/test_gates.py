"""Filter attention: what gates are, and that gates of 1 are not there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from otter_jax import gates
from otter_jax.errors import UserError
from otter_jax.weights import encoders

PUBLISHED = {  # of torchvision's ResNets, from the authors' logs
    "resnet34": {"filter": 8_512, "slice": 2_515_136},
    "resnet50": {"filter": 26_560, "slice": 13_385_920},
    "resnet101": {"filter": 52_672, "slice": 23_412_928},
}
CONVOLUTIONAL = ("resnet18", "resnet18d", "tf_efficientnet_lite0", "mobilenetv3_small_100")


def params_of(arch):
    module = encoders.load_image("", arch=arch).module
    return module, encoders.variable_shapes(module, jnp.zeros((1, 64, 64, 3)))["params"]


@pytest.mark.parametrize("arch", PUBLISHED)
@pytest.mark.parametrize("shape", gates.SHAPES)
def test_there_are_as_many_as_published(arch, shape):
    _, params = params_of(arch)
    made = jax.eval_shape(lambda p: gates.create(p, shape), params)
    assert sum(gate.size for gate in jax.tree.leaves(made)) == PUBLISHED[arch][shape]


@pytest.mark.parametrize("arch", CONVOLUTIONAL)
@pytest.mark.parametrize("shape", gates.SHAPES)
def test_gates_of_one_change_nothing_bit_for_bit(arch, shape):
    _, params = params_of(arch)
    rng = np.random.RandomState(0)
    params = jax.tree.map(lambda x: rng.randn(*x.shape).astype(np.float32), params)
    folded = gates.fold(params | {"gates": gates.create(params, shape)})
    jax.tree.map(np.testing.assert_array_equal, folded, params)  # the network sees these alone


def test_a_gate_scales_its_filter_or_its_slice():
    kernel = np.ones((3, 3, 2, 4), np.float32)
    params = {"conv": {"kernel": kernel}, "fc": {"kernel": np.ones((4, 4), np.float32)}}
    for shape, where in (("filter", np.s_[..., 1]), ("slice", np.s_[..., 0, 1])):
        made = jax.tree.map(np.array, gates.create(params, shape))
        made["conv"]["kernel"][where] = 5
        folded = gates.fold(params | {"gates": made})
        expected = kernel.copy()
        expected[where] = 5
        np.testing.assert_array_equal(folded["conv"]["kernel"], expected)
        np.testing.assert_array_equal(folded["fc"]["kernel"], params["fc"]["kernel"])
        assert "gates" not in folded


def test_the_gradient_of_a_gate_is_that_of_its_kernel_summed():
    """d loss / d A = sum of W * d loss / d (W A) over what A multiplies."""
    x, w = jax.random.normal(jax.random.key(0), (2, 8, 8, 3)), jnp.arange(27.0).reshape(3, 3, 3, 1)

    def loss(kernel):
        out = jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jnp.sin(out / 50).sum()

    def gated(made):
        return loss(gates.fold({"conv": {"kernel": w}, "gates": made})["conv"]["kernel"])

    made = gates.create({"conv": {"kernel": w}}, "slice")
    found = jax.grad(gated)(made)["conv"]["kernel"]
    np.testing.assert_allclose(found, (jax.grad(loss)(w) * w).sum((0, 1), keepdims=True), rtol=1e-4)


def test_penalties_are_those_of_the_paper():
    made = {
        "a": {"kernel": jnp.full((1, 1, 1, 4), 3.0)},
        "b": {"kernel": jnp.array([[[[1.0, -2]]]])},
    }
    assert gates.penalty(made, "l2") == -(4 + (0 + 9) / 2)  # a mean in each, then the sum
    assert gates.penalty(made, "l1") == (4 * 3 + 3) / 6  # one mean over all
    assert gates.penalty(made, "") == 0


def test_the_l2_penalty_rewards_leaving_one():
    made = {"a": {"kernel": jnp.array([[[[1.1, 0.9]]]])}}
    slope = jax.grad(lambda g: gates.penalty(g, "l2"))(made)["a"]["kernel"].ravel()
    assert slope[0] < 0 < slope[1]  # descent moves them further apart


def test_attention_to_a_filter_is_the_mean_over_its_slices():
    made = {"a": {"kernel": jnp.array([[[[1.0, -2], [3, 2]]]])}}  # [1, 1, 2, 2]
    np.testing.assert_array_equal(gates.attention(made)["a", "kernel"], [2, 2])


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"shape": "channel", "penalty": "", "strength": 0.0}, "gates.shape='channel'"),
        ({"shape": "filter", "penalty": "l3", "strength": 0.0}, "gates.penalty='l3'"),
        ({"shape": "", "penalty": "l2", "strength": 0.0}, "there are no gates"),
        ({"shape": "filter", "penalty": "l2", "strength": -1.0}, "gates.strength=-1.0"),
    ],
)
def test_a_section_that_means_nothing_is_refused(section, words):
    with pytest.raises(UserError, match=words):
        gates.check_gates(**section)


def test_a_network_without_convolutions_has_no_gates():
    with pytest.raises(UserError, match="no convolution"):
        gates.create({"dense": {"kernel": np.ones((3, 3))}}, "filter")


def test_only_convolutions_have_gates():
    _, params = params_of("mobilenetv3_small_100")
    made = traverse_util.flatten_dict(jax.eval_shape(lambda p: gates.create(p, "filter"), params))
    assert all(path[-1] == "kernel" for path in made)
    assert ("conv_head", "kernel") in made
    assert len(made) == sum(x.ndim == 4 for x in jax.tree.leaves(params))
