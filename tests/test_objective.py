"""Targets and losses of the methods: identities, and the released code's numbers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from otter_jax import objective
from otter_jax.errors import UserError
from otter_jax.objective import METHODS, PUBLISHED, TRUSTS, Objective

KD_RELEASED = Objective(alpha=0.5, teacher="softmax", diagonal="keep")
VARIANTS = {  # names of the released code's runs
    "otter": METHODS["otter"],
    "otter_keepdiag": dataclasses.replace(METHODS["otter"], diagonal="keep"),
    "otter_l0.05_i20_vv0.5_tt2": dataclasses.replace(
        METHODS["otter"], epsilon=0.05, num_iters=20, image_weight=0.5, text_weight=2.0
    ),
    "kd": KD_RELEASED,
    "kd_T10_rd": dataclasses.replace(KD_RELEASED, teacher_scale=10.0, diagonal="remove"),
    "kd_vv0_tt0": METHODS["kd"],
}
CASES = [(v, "64c") for v in VARIANTS] + [("otter", "16"), ("kd", "16")]


def embeddings(seed=0, batch=16, dim=12):
    x = np.random.RandomState(seed).randn(2, batch, dim).astype(np.float32)
    return tuple(jnp.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True)))


def log_scale(value=3.9):
    return {"pairs": jnp.float32(value), "teacher": jnp.float32(value)}


@pytest.mark.parametrize(("variant", "tag"), CASES)
def test_targets_equal_the_released_code(golden, variant, tag):
    data = jax.tree.map(jnp.asarray, golden("unit_distill.npz"))
    targets = VARIANTS[variant].teacher_targets(data[f"t_img_{tag}"], data[f"t_txt_{tag}"])
    limit = 5e-5 if variant.startswith("kd") else 5e-6
    for side, key in (("img", "image"), ("txt", "text")):
        expected = data[f"{side}_target_{variant}_{tag}"]
        assert np.abs(targets[key] - expected).max() <= limit * expected.max()


@pytest.mark.parametrize(("variant", "tag"), CASES)
def test_losses_and_gradients_equal_the_released_code(golden, variant, tag):
    data, method = jax.tree.map(jnp.asarray, golden("unit_distill.npz")), VARIANTS[variant]
    img, txt = data[f"s_img_{tag}"], data[f"s_txt_{tag}"]
    targets = method.teacher_targets(data[f"t_img_{tag}"], data[f"t_txt_{tag}"])
    loss = functools.partial(method.loss, targets=targets)
    (total, terms), grads = jax.value_and_grad(
        lambda i, t, s: loss(i, t, log_scale=s), argnums=(0, 1, 2), has_aux=True
    )(img, txt, log_scale())
    # At D = 768 a float32 cosine errs by 1e-7, times 49 in the exponent: the released gradients
    # themselves are 1.9e-5 from the same computation in float64, ours 3.2e-5.
    name, limit = f"{variant}_{tag}", 5e-5 if variant.startswith("kd") else 2e-5
    for value, expected in (
        (total, data[f"total_{name}"]),
        (terms["pairs"], data[f"contrastive_{name}"]),
        (terms["teacher"], data[f"dist_{name}"]),
    ):
        np.testing.assert_allclose(value, expected, rtol=limit)
    limit = 5e-5 if tag == "16" else limit
    for value, expected in (
        (grads[0], data[f"dtotal_dimg_{name}"]),
        (grads[1], data[f"dtotal_dtxt_{name}"]),
        (grads[2]["pairs"], data[f"dtotal_dT_c_{name}"]),
        (grads[2]["teacher"], data[f"dtotal_dT_s_{name}"]),
    ):
        assert np.abs(value - expected).max() <= limit * np.abs(expected).max()


# theta = 0 is the lower bound of the scale itself; -1 and 4.7 lie outside the bounds. The rows of
# "16x64r1" are 16 to 31 of a batch of 64, as one of four devices holds them.
SQUARE = [
    (kind, "8", theta) for kind in ("hard", "smooth0.1", "kl") for theta in (3.9, 2, 0, -1, 4.7)
]
ROWS = [(kind, f"16x64r{r}", 3.9) for kind in ("hard", "smooth0.1", "smooth0.3") for r in (0, 1, 3)]


@pytest.mark.parametrize(("kind", "tag", "theta"), [*SQUARE, *ROWS, ("smooth0.3", "8", 3.9)])
def test_terms_equal_the_released_code(golden, kind, tag, theta):
    data, case = golden("unit_losses.npz"), f"{tag}_T{float(theta)}"
    if kind == "kl":
        f, cosines, target = objective.kl_divergence, data["kl_pred_8"], data["kl_target_8"]
        loss, slope, dtheta = (data[f"kl_{what}_{case}"] for what in ("loss", "dpred", "dT"))
    else:
        f, cosines = objective.cross_entropy, data[f"logits_{tag}"]
        first = 16 * int(tag.partition("r")[2] or 0)
        rows = first + jnp.arange(cosines.shape[0])
        smoothing = float(kind.removeprefix("smooth").replace("hard", "0"))
        target = Objective(smoothing=smoothing).pair_targets(rows, cosines.shape[1])
        loss, slope, dtheta = (data[f"{what}_{kind}_{case}"] for what in ("loss", "dlogits", "dT"))
    value, grads = jax.value_and_grad(f, argnums=(1, 2))(
        jnp.asarray(target), jnp.asarray(cosines), jnp.float32(theta)
    )
    np.testing.assert_allclose(value, loss, rtol=2e-5)
    np.testing.assert_allclose(grads[0], slope, atol=2e-5 * np.abs(slope).max())
    np.testing.assert_allclose(grads[1], dtheta, rtol=2e-5, atol=1e-6)


def test_smoothing_of_zero_is_infonce():
    img, txt = embeddings()
    smooth = dataclasses.replace(METHODS["ls"], smoothing=0.0)
    assert smooth == METHODS["infonce"]
    plain = METHODS["infonce"].loss(img, txt, None, log_scale())[0]
    expected = -jnp.diag(jax.nn.log_softmax(jnp.exp(3.9) * img @ txt.T)).mean()
    expected -= jnp.diag(jax.nn.log_softmax(jnp.exp(3.9) * txt @ img.T)).mean()
    np.testing.assert_allclose(plain, expected, rtol=1e-4)


def test_equal_embeddings_cost_chance():
    one = jnp.ones((16, 4)) / 2
    loss, _ = METHODS["infonce"].loss(one, one, None, log_scale())
    np.testing.assert_allclose(loss, 2 * np.log(16), rtol=1e-6)


def test_alpha_of_one_ignores_the_teacher():
    img, txt = embeddings()
    targets = METHODS["otter"].teacher_targets(*embeddings(1))
    loss, _ = dataclasses.replace(METHODS["otter"], alpha=1.0).loss(img, txt, targets, log_scale())
    np.testing.assert_allclose(loss, METHODS["infonce"].loss(img, txt, None, log_scale())[0])


@pytest.mark.parametrize("name", ["otter", "kd"])
def test_targets_are_distributions(name):
    for target in METHODS[name].teacher_targets(*embeddings()).values():
        np.testing.assert_allclose(target.sum(axis=1), 1, rtol=1e-5)
        assert float(target.min()) >= 0


def test_a_removed_diagonal_gets_nothing():
    targets = METHODS["otter"].teacher_targets(*embeddings())
    for target in targets.values():
        np.testing.assert_array_equal(np.diag(target), 0)


def test_per_process_removes_the_release_s_entries():
    """On process r the release takes out column i of its row i, not column r * b + i."""
    method = dataclasses.replace(METHODS["otter"], diagonal="per_process", num_processes=4)
    target = method.teacher_targets(*embeddings())["text"]
    removed = {(int(i), int(j)) for i, j in np.argwhere(np.asarray(target) == 0)}
    assert removed == {(4 * r + i, i) for r in range(4) for i in range(4)}


def test_per_process_with_one_process_is_the_true_diagonal():
    method = dataclasses.replace(METHODS["otter"], diagonal="per_process")
    ours, theirs = (
        METHODS["otter"].teacher_targets(*embeddings()),
        method.teacher_targets(*embeddings()),
    )
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_a_column_that_per_process_removes_altogether_is_not_nan():
    method = dataclasses.replace(METHODS["otter"], diagonal="per_process", num_processes=16)
    assert bool(jnp.isfinite(method.teacher_targets(*embeddings())["image"]).all())


def test_negatives_without_gradient_leave_the_loss_and_halve_its_paths():
    img, txt = embeddings()

    def loss(method, i):
        return method.loss(i, txt, None, log_scale())[0]

    detached = dataclasses.replace(METHODS["infonce"], negatives_gradient=False)
    np.testing.assert_allclose(loss(METHODS["infonce"], img), loss(detached, img))
    through_rows = jax.grad(
        lambda i: objective.cross_entropy(jnp.eye(16), i @ txt.T, log_scale()["pairs"])
    )(img)
    np.testing.assert_allclose(jax.grad(loss, argnums=1)(detached, img), through_rows, atol=1e-5)


def test_health_knows_the_extremes():
    B = 16
    identity = {k: jnp.eye(B) / B for k in ("image", "text")}
    blank = {k: jnp.ones((B, B)) / B**2 for k in ("image", "text")}
    assert {k: float(v) for k, v in objective.health(identity).items()} == {
        "row_error": 0.0,
        "target_entropy": 0.0,
        "own_mass": 1.0,
    }
    numbers = objective.health(blank)
    np.testing.assert_allclose(numbers["target_entropy"], np.log(B), rtol=1e-6)
    np.testing.assert_allclose(numbers["own_mass"], 1 / B, rtol=1e-6)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("teacher", "sinkhorn"),
        ("diagonal", "off"),
        ("epsilon", 0.0),
        ("alpha", 1.5),
        ("num_iters", 0),
        ("smoothing", -0.1),
        ("cross_weight", -1.0),
        ("trust", "mean"),
        ("trust_epsilon", 0.0),
        ("trust_limit", 0.5),
        ("trust_share", 1.5),
        ("match", "cosine"),
        ("temperatures", 3),
        ("log_scale", 5.0),
    ],
)
def test_a_value_outside_its_range_is_named(field, value):
    with pytest.raises(UserError, match=field):
        Objective(**{field: value})


def test_trust_in_a_teacher_needs_one():
    with pytest.raises(UserError, match="objective.alpha=0.5 leaves 0.5 of the loss"):
        Objective(alpha=0.5)


# Beyond the four published methods -----------------------------------------------------------

KINDS = [trust for trust in TRUSTS if trust]
EXCHANGED = (3, 7)  # pairs whose captions are


def test_the_published_methods_are_four_and_believe_every_pair():
    assert list(METHODS)[:4] == list(PUBLISHED) == ["infonce", "ls", "kd", "otter"]
    for method in PUBLISHED.values():
        assert (method.trust, method.match, method.temperatures) == ("", "softmax", 2)
        assert method.log_scale == 3.9
        assert method.cross_weight == 1


def exchanged():
    """A teacher that sees each caption where its image is, and two captions exchanged."""
    img, _ = embeddings()
    order = np.arange(16)
    order[list(EXCHANGED)] = order[list(EXCHANGED)[::-1]]
    return img, img[order]


@pytest.mark.parametrize("trust", KINDS)
def test_pairs_with_exchanged_captions_are_trusted_least(trust):
    method = Objective(trust=trust, trust_share=14 / 16)
    found = np.asarray(method.weights(method.teacher_targets(*exchanged())["trust"]))
    apart = np.delete(found, EXCHANGED)
    assert found[list(EXCHANGED)].max() < 0.05
    assert apart.min() > 0.8


def test_trust_of_transport_becomes_the_assignment():
    targets = Objective(trust="transport", trust_epsilon=1e-3).teacher_targets(*exchanged())
    assert targets.keys() == {"trust"}  # no teacher's term, no targets of it
    expected = np.ones(16)
    expected[list(EXCHANGED)] = 0
    np.testing.assert_allclose(targets["trust"], expected, atol=1e-6)


def test_trust_by_softmax_is_the_mean_probability_of_both_directions():
    img, txt = embeddings()
    found = Objective(trust="softmax", trust_epsilon=0.1).teacher_targets(img, txt)["trust"]
    both = [jnp.diag(jax.nn.softmax(10 * s, axis=1)) for s in (img @ txt.T, txt @ img.T)]
    np.testing.assert_allclose(found, (both[0] + both[1]) / 2, rtol=1e-4)


def test_trust_by_small_loss_orders_pairs_by_the_teacher_s_loss():
    img, txt = embeddings()
    found = Objective(trust="small_loss", trust_epsilon=0.1).teacher_targets(img, txt)["trust"]
    losses = [-jnp.diag(jax.nn.log_softmax(10 * s, axis=1)) for s in (img @ txt.T, txt @ img.T)]
    np.testing.assert_allclose(-2 * jnp.log(found), losses[0] + losses[1], rtol=1e-4)


@pytest.mark.parametrize("trust", KINDS)
def test_a_teacher_without_opinion_trusts_all_pairs_alike(trust):
    """Then the loss is InfoNCE's."""
    img, txt = embeddings()
    same = jnp.ones((16, 4)) / 2
    method = Objective(trust=trust, trust_share=1.0)
    targets = method.teacher_targets(same, same)
    found, _ = method.loss(img, txt, targets, log_scale())
    expected, _ = METHODS["infonce"].loss(img, txt, None, log_scale())
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_weights_have_a_mean_of_one_and_a_limit():
    trust = jnp.asarray([0.0, 0.1, 0.2, 0.3])
    free = Objective(trust="softmax", trust_limit=4.0).weights(trust)
    np.testing.assert_allclose(free, [0, 2 / 3, 4 / 3, 2], rtol=1e-5)
    limited = Objective(trust="softmax", trust_limit=1.5).weights(trust)
    np.testing.assert_allclose(limited, [0, 2 / 3, 4 / 3, 1.5], rtol=1e-5)
    chosen = Objective(trust="small_loss", trust_share=0.5).weights(trust)
    np.testing.assert_array_equal(chosen, [0, 0, 2, 2])


def test_a_weight_of_zero_takes_a_pair_out_of_the_pairs_term():
    """Its image and caption stay the others' negatives, and learn from the teacher's target."""
    img, txt = embeddings()
    targets = METHODS["trust_otter"].teacher_targets(*embeddings(1))
    targets["trust"] = jnp.ones(16).at[0].set(0)
    _, terms = METHODS["trust_otter"].loss(img, txt, targets, log_scale())
    weights = jnp.ones(16).at[0].set(0) * 16 / 15
    scale = jnp.exp(3.9)
    losses = [jnp.diag(jax.nn.log_softmax(scale * s, axis=1)) for s in (img @ txt.T, txt @ img.T)]
    np.testing.assert_allclose(terms["pairs"], -(weights * sum(losses)).mean(), rtol=1e-4)
    _, plain = METHODS["otter"].loss(img, txt, targets, log_scale())
    np.testing.assert_allclose(terms["teacher"], plain["teacher"])


def test_health_says_how_far_pairs_are_trusted():
    numbers = objective.health({"trust": jnp.asarray([0.1, 0.6, 0.8, 0.9])})
    np.testing.assert_allclose(numbers.pop("trust"), 0.6, rtol=1e-6)
    assert {k: float(v) for k, v in numbers.items()} == {"distrusted": 0.25}
    plans = METHODS["trust_otter"].teacher_plans(*embeddings())
    of_otter = objective.health(METHODS["otter"].teacher_plans(*embeddings()))
    both = objective.health(plans)
    assert both.keys() - of_otter.keys() == {"trust", "distrusted"}
    jax.tree.map(np.testing.assert_array_equal, {k: both[k] for k in of_otter}, of_otter)


def test_the_sigmoid_loss_is_siglip_s_in_both_directions():
    """arXiv:2303.15343: -1/B sum over i, j of log sigmoid(label * (scale * cosine + bias))."""
    img, txt = embeddings()
    scales = {"pairs": jnp.log(20.0), "teacher": jnp.log(5.0)}
    label = 2 * jnp.eye(16) - 1
    siglip = -jax.nn.log_sigmoid(label * (20 * img @ txt.T - 5)).sum() / 16
    found, terms = METHODS["siglip"].loss(img, txt, None, scales)
    np.testing.assert_allclose(found, 2 * siglip, rtol=1e-4)
    assert terms.keys() == {"pairs"}
    assert np.exp(METHODS["siglip"].log_scale) == pytest.approx(10)


def test_a_sigmoid_trusts_pairs_but_not_their_negatives():
    img, txt = embeddings()
    method = Objective(match="sigmoid", trust="softmax")
    found, _ = method.loss(img, txt, {"trust": jnp.ones(16).at[0].set(0)}, log_scale(2.0))
    scale = jnp.exp(2.0)
    log_match = jax.nn.log_sigmoid((2 * jnp.eye(16) - 1) * scale * (img @ txt.T - 1))
    weights = jnp.where(jnp.eye(16) > 0, (jnp.ones(16).at[0].set(0) * 16 / 15)[:, None], 1)
    np.testing.assert_allclose(found, -2 * (weights * log_match).sum() / 16, rtol=1e-4)


def test_a_sigmoid_has_no_rows_for_a_teacher_s_targets():
    with pytest.raises(UserError, match='match="sigmoid" has no rows that sum to 1'):
        Objective(match="sigmoid", teacher="transport", alpha=0.5)


def test_without_cross_weight_images_never_meet_texts():
    """Turning all texts together changes OTTER's targets, not these."""
    img, txt = embeddings()
    turn, _ = np.linalg.qr(np.random.RandomState(5).randn(12, 12))
    turned = txt @ jnp.asarray(turn, jnp.float32)
    before, after = (METHODS["softclip"].teacher_targets(img, t) for t in (txt, turned))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), before, after)
    others = (METHODS["otter"].teacher_targets(img, t)["image"] for t in (txt, turned))
    assert float(jnp.abs(next(others) - next(others)).max()) > 0.05


def test_one_temperature_is_that_of_the_pairs():
    img, txt = embeddings()
    targets = METHODS["otter"].teacher_targets(*embeddings(1))
    one = dataclasses.replace(METHODS["otter"], temperatures=1)

    def loss(method, scales):
        return method.loss(img, txt, targets, scales)[0]

    np.testing.assert_allclose(loss(one, log_scale()), loss(METHODS["otter"], log_scale()))
    slopes = jax.grad(loss, argnums=1)(one, log_scale())
    of_two = jax.grad(loss, argnums=1)(METHODS["otter"], log_scale())
    assert float(slopes["teacher"]) == 0
    np.testing.assert_allclose(slopes["pairs"], of_two["pairs"] + of_two["teacher"], rtol=1e-4)
