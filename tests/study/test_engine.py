"""Runs on kept features: they are what training on pixels is, and stand side by side."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import traverse_util

from otter_jax import freezing, step
from otter_jax import mesh as meshes
from otter_jax.models.efficientnet import EfficientNet
from otter_jax.models.towers import Towers
from otter_jax.objective import METHODS
from otter_jax.optimizer import learning_rate, make_optimizer
from otter_jax.study import engine, frozen
from otter_jax.study.plan import Train
from otter_jax.study.towers import CachedTowers, Frozen

PAIRS, BATCH, STEPS = 20, 12, 4
RATE, SCALE = 0.1, 2.0
# Adam would divide by the gradient where it is rounding alone.
TRAIN = Train(pairs=1, name="sgd", warmup_steps=1)
TOWER = {"stages": ((1, 8, 1, 3, 2), (1, 16, 2, 3, 2)), "lite": True, "tensorflow": True}
FREEZE = {  # by the block that training begins with; "" trains the head
    "": "txt/|img/",
    "blocks_1_0": "txt/|img/(?!blocks_1_0|conv_head|bn2)",
}
ORDER = np.stack([np.random.default_rng(i).permutation(PAIRS)[:BATCH] for i in range(STEPS)])


@functools.cache
def on_pixels():
    """Towers, their variables, and the pairs that they are trained on."""
    model = Towers(
        img=EfficientNet(**TOWER), txt=tiny.towers().txt, dim=6, txt_width=16, mean=(127.0,) * 3,
        std=(128.0,) * 3,
    )  # fmt: skip
    pairs = tiny.batch(seed=3, size=PAIRS)
    init = jax.jit(functools.partial(model.init, train=False))
    variables = init(jax.random.key(0), pairs["image"], tiny.captions_of(pairs))
    return model, jax.device_get(variables), pairs


def trained_on_pixels(method, freeze):
    """The variables of student and teacher, and the losses, of the program's own steps."""
    model, variables, pairs = on_pixels()
    scales = {name: jnp.float32(SCALE) for name in ("pairs", "teacher")}
    params = variables["params"] | {"log_scale": scales}
    schedule = learning_rate(RATE, total_steps=STEPS, warmup_steps=TRAIN.warmup_steps)
    still = freezing.frozen_mask(params, freeze)
    tx = make_optimizer("sgd", schedule, weight_decay=TRAIN.weight_decay, frozen=still)
    state = step.create_state(params, variables["batch_stats"], tx)
    one = functools.partial(
        step.train_step, model=model, tx=tx, objective=METHODS[method], mesh=meshes.make_mesh(1),
        key=jax.random.key(0), freeze=freeze,
    )  # fmt: skip
    one, losses = jax.jit(one), []
    for rows in ORDER:
        state, metrics = one(state, {name: values[rows] for name, values in pairs.items()})
        losses.append(float(metrics["loss"]))
    student = {"params": state.params, "batch_stats": state.batch_stats}
    return {"student": student, "ema": state.teacher}, losses


@functools.cache
def kept(enter):
    """What enters the trained part for all pairs, the model of that part, and its first values."""
    model, variables, pairs = on_pixels()
    images = jax.jit(functools.partial(frozen.features_of_images, model, enter))
    texts = jax.jit(functools.partial(frozen.features_of_texts, model))
    img = EfficientNet(**TOWER, enter=enter) if enter else Frozen(model.img.width)
    own = CachedTowers(img=img, txt=Frozen(16), dim=6, txt_width=16)
    names = ("blocks_1_0", "conv_head", "bn2") if enter else ()
    given = {
        kind: {"img": {name: tree["img"][name] for name in names if name in tree["img"]}}
        for kind, tree in variables.items()
        if enter
    }
    features = images(variables, pairs["image"]), texts(variables, **tiny.captions_of(pairs))
    return own, given, *features


def runs(seeds, objective):
    """Stacked runs that differ in their seeds and one other number."""
    count = len(seeds)
    numbers = {
        name: np.full(count, getattr(objective, name), np.float32)
        for name in engine.traceable(objective)
    }
    order = np.broadcast_to(ORDER, (count, *ORDER.shape)).astype(np.int32)
    rates, scales = np.full(count, RATE, np.float32), np.full(count, SCALE, np.float32)
    wrong = order < PAIRS // 4
    return engine.Run(np.array(seeds, np.int32), rates, scales, numbers, order, order, wrong)


def trained_on_kept(objective, enter, stacked):
    own, given, images, texts = kept(enter)
    program = engine.Program(own, objective, TRAIN, kept=STEPS)
    return jax.device_get(engine.train(program, meshes.make_mesh(1), given, images, texts, stacked))


@pytest.mark.parametrize("enter", FREEZE)
@pytest.mark.parametrize("method", ["infonce", "otter"])
def test_a_run_on_kept_features_is_the_run_on_pixels(method, enter):
    variables, losses = trained_on_pixels(method, FREEZE[enter])
    found = trained_on_kept(METHODS[method], enter, runs([0], METHODS[method]))
    np.testing.assert_allclose(found.metrics["loss"][0], losses, rtol=2e-5)
    for weights, own in found.variables.items():
        theirs = traverse_util.flatten_dict(jax.device_get(variables[weights]), sep="/")
        for path, leaf in traverse_util.flatten_dict(own, sep="/").items():
            np.testing.assert_allclose(leaf[0], theirs[path], atol=2e-5, err_msg=path)
    before = on_pixels()[1]["params"]["img_head"]["kernel"]
    after = found.variables["student"]["params"]["img_head"]["kernel"][0]
    assert np.abs(after - before).max() > 0.01


def test_runs_side_by_side_do_not_touch_each_other():
    method = METHODS["otter"]
    both = trained_on_kept(method, "", runs([5, 7], method))
    one = trained_on_kept(method, "", runs([7], method))
    np.testing.assert_allclose(both.metrics["loss"][1], one.metrics["loss"][0], rtol=1e-5)
    assert abs(both.metrics["loss"][0, 0] - both.metrics["loss"][1, 0]) > 1e-3


def test_numbers_of_the_objective_are_each_runs_own():
    """One program for several regularisations: each gives what its own program would."""
    method = METHODS["otter"]
    stacked = runs([3, 3], method)
    assert "epsilon" in stacked.numbers
    stacked.numbers["epsilon"][1] = 0.5
    found = trained_on_kept(method, "", stacked).metrics["loss"]
    other = dataclasses.replace(method, epsilon=0.5)
    alone = trained_on_kept(other, "", runs([3], other)).metrics["loss"]
    np.testing.assert_allclose(found[1], alone[0], rtol=1e-5)
    assert abs(found[0, -1] - found[1, -1]) > 1e-4


def test_a_run_that_diverges_says_at_which_step():
    stacked = runs([0, 0], METHODS["infonce"])
    stacked.learning_rate[1] = np.inf
    assert trained_on_kept(METHODS["infonce"], "", stacked).broken.tolist() == [0, 2]


def test_trust_is_judged_by_the_captions_that_are_known_to_be_wrong():
    method = METHODS["trust"]
    stacked = runs([0], method)
    metrics = trained_on_kept(method, "", stacked).metrics
    assert metrics.keys() >= {"weight_right", "weight_wrong", "precision", "recall"}
    model, given, images, texts = kept("")
    program = engine.Program(model, method, TRAIN)
    run = jax.tree.map(lambda x: jnp.asarray(x[0]), stacked)
    like = {"image": images[:1], "pooled": texts[:1]}
    state, _ = engine.first_state(program, given, like, run, STEPS)
    img, txt = model.apply(state.teacher, images[ORDER[0]], {"pooled": texts[ORDER[0]]}, train=True)
    weights = method.weights(method.teacher_targets(img, txt)["trust"])
    wrong, low = np.asarray(run.wrong[0]), np.asarray(weights) < 0.5
    assert 0 < wrong.sum() < BATCH
    own = {name: values[0, 0] for name, values in metrics.items()}
    np.testing.assert_allclose(own["weight_wrong"], weights[wrong].mean(), rtol=1e-4)
    np.testing.assert_allclose(own["recall"], low[wrong].mean(), rtol=1e-4)
    np.testing.assert_allclose(own["precision"], wrong[low].sum() / max(low.sum(), 1), rtol=1e-4)
    above = np.greater(*np.meshgrid(weights[~wrong], weights[wrong]))
    np.testing.assert_allclose(own["auc"], above.mean(), atol=0.05)


def test_numbers_that_the_code_branches_on_are_not_traced():
    class Branching(type(METHODS["ls"])):
        def pair_targets(self, rows, batch_size):
            return super().pair_targets(rows, batch_size) if self.smoothing < 0.5 else None

    names = engine.traceable(Branching(smoothing=0.1))
    assert "alpha" in names
    assert "smoothing" not in names
