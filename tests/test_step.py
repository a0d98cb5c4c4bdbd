"""The training step: the same on any number of devices, and piece by piece as released."""

import collections
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from flax import traverse_util

from benchmarks import hlo
from otter_jax import freezing, gates, optimizer, step
from otter_jax.errors import UserError
from otter_jax.objective import METHODS, Objective

B = tiny.B


def flat(tree):
    """NumPy arrays by their paths: comparing jax's would compile a program for every shape."""
    return traverse_util.flatten_dict(jax.device_get(tree), sep="/")


@functools.cache
def one_step(method, devices):
    train_step, put = tiny.compiled(method, devices)
    return jax.device_get(train_step(tiny.state(), put(tiny.batch())))


@pytest.mark.parametrize("method", METHODS)
def test_eight_devices_do_what_one_does(method):
    """Loss, gradient (SGD: the update is the gradient) and the whole new state."""

    # KD multiplies cosines, 1e-7 apart, by 100.
    limit = 2e-5 if method == "kd" else 1e-5

    def agree(a, b):
        assert np.abs(a - b).max() <= limit * max(1.0, np.abs(a).max())

    jax.tree.map(agree, one_step(method, 1), one_step(method, 8))


@pytest.mark.parametrize("method", METHODS)
def test_a_step_sends_embeddings_once_short_vectors_and_gradients(method):
    """That is all: teacher's and student's embeddings, the gradient of the student's, sums."""
    found = collections.defaultdict(list)
    for collective in hlo.collectives(tiny.compiled(method, 8)[0].as_text()):
        found[collective.kind] += collective.shapes * collective.times
    objective, dim = METHODS[method], tiny.towers().dim
    assert found.pop("all-gather") == [(B, 2 * dim)] * (1 + (objective.teacher != "none"))
    assert found.pop("reduce-scatter") == [(B // 8, 2 * dim)]
    summed = found.pop("all-reduce")
    assert not found
    vectors = objective.num_iters + 1 if objective.teacher == "transport" else 0
    assert summed.count((2, 1, B)) == vectors
    # The rest are gradients and sums of batch norm: no axis of the model is as long as B.
    assert {shape for shape in summed if B in shape} <= {(2, 1, B)}


@pytest.mark.parametrize("method", METHODS)
def test_no_device_makes_a_whole_similarity_matrix(method):
    text = tiny.compiled(method, 8)[0].as_text()
    shapes = {tuple(axes.split(",")) for axes in re.findall(r"\w\[([\d,]+)\]", text)}
    assert (str(B // 8), str(B)) in shapes
    assert not [axes for axes in shapes if axes.count(str(B)) > 1]


@pytest.mark.parametrize("method", METHODS)
def test_it_learns_one_batch_by_heart(method):
    train_step, put = tiny.compiled(method, 1)
    state, batch, losses = tiny.state(), put(tiny.batch()), []
    for _ in range(40):
        state, metrics = train_step(state, batch)
        losses.append(float(metrics["pairs"]))
    assert losses[-1] < 0.7 * losses[0]


def test_the_same_state_and_batch_give_the_same_step_and_the_next_step_other_dropout():
    train_step, put = tiny.jitted("otter", dropout=0.5)
    state, batch = tiny.state(), put(tiny.batch())
    first, again = train_step(state, batch)[1], train_step(state, batch)[1]
    later = train_step(state.replace(step=state.step + 1), batch)[1]
    assert float(first["loss"]) == float(again["loss"]) != float(later["loss"])


def test_a_frozen_part_stays_put_with_its_statistics():
    pattern = "txt/|img/(conv1|bn1|layer1)"
    mask = freezing.frozen_mask(tiny.variables()["params"], pattern)
    tx = tiny.tx(frozen=mask, weight_decay=0.1)
    train_step, put = tiny.jitted("otter", freeze=pattern, tx=tx)
    before = tiny.state(tx)
    after, _ = train_step(before, put(tiny.batch()))
    old, new = flat(before.params), flat(after.params)
    for path in old:
        stays = bool((old[path] == new[path]).all())
        # An InfoNCE gradient of exactly 0 is possible only for frozen parameters here.
        assert stays == freezing.frozen(path, pattern), path
    old, new = flat(before.batch_stats), flat(after.batch_stats)
    for path in old:
        frozen = freezing.frozen(path.rsplit("/", 1)[0] + "/scale", pattern)
        assert bool((old[path] == new[path]).all()) == frozen, path
    teacher = flat(after.teacher["batch_stats"])
    assert bool((teacher["img/bn1/mean"] == old["img/bn1/mean"]).all())


def test_a_frozen_batch_norm_normalises_by_its_stored_statistics():
    everything = "img/|txt/"
    train_step, put = tiny.jitted("infonce", freeze=everything)
    batch = put(tiny.batch())
    _, metrics = train_step(tiny.state(), batch)
    model, variables = tiny.towers(), tiny.variables()
    img, txt = model.apply(variables, batch["image"], tiny.captions_of(batch), train=False)
    loss, _ = METHODS["infonce"].loss(img, txt, None, variables["params"]["log_scale"])
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)


def test_what_is_frozen_is_computed_once_for_student_and_teacher():
    pattern = "img/|txt/"
    text = {
        name: tiny.jitted(name, freeze=pattern)[0]
        .lower(tiny.state(), tiny.jitted(name)[1](tiny.batch()))
        .compile()
        .as_text()
        for name in ("infonce", "otter")
    }
    convolutions = {name: len(re.findall(r" convolution\(", t)) for name, t in text.items()}
    assert convolutions["otter"] == convolutions["infonce"] > 0


@pytest.mark.parametrize("pattern", ["image/", ".*"])
def test_a_pattern_that_freezes_nothing_or_everything_is_an_error(pattern):
    with pytest.raises(UserError, match="img/conv1/"):
        freezing.frozen_mask(tiny.variables()["params"], pattern)


def test_the_teacher_follows_with_a_growing_delay():
    """Three steps; 0.25, then 4/13, ... of the way stays with the old teacher."""
    train_step, put = tiny.compiled("otter", 1)
    state = tiny.state()
    shadow = flat(state.params)
    for number in range(3):
        state, _ = train_step(state, put(tiny.batch(number)))
        decay = (3 + number) / (12 + number)
        student = flat(state.params)
        shadow = {k: decay * shadow[k] + (1 - decay) * student[k] for k in shadow}
    teacher = flat(state.teacher["params"])
    for path in shadow:
        np.testing.assert_allclose(teacher[path], shadow[path], rtol=1e-5, atol=1e-7)


def test_an_ema_without_a_teacher_averages_the_statistics_too():
    after = one_step("infonce", 1)[0]
    before = tiny.variables()["batch_stats"]["img"]["bn1"]["mean"]
    student = after.batch_stats["img"]["bn1"]["mean"]
    average = after.teacher["batch_stats"]["img"]["bn1"]["mean"]
    np.testing.assert_allclose(average, 0.25 * before + 0.75 * student, rtol=1e-5, atol=1e-7)


def test_a_teacher_that_looks_has_statistics_of_its_own():
    """In the first step student and teacher see the same, so their statistics agree."""
    after = one_step("otter", 1)[0]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
        after.batch_stats,
        after.teacher["batch_stats"],
    )


def test_a_fixed_teacher_is_fixed():
    train_step, put = tiny.jitted("kd", ema_decay=None)
    before = tiny.state()
    after, metrics = train_step(before, put(tiny.batch()))
    jax.tree.map(np.testing.assert_array_equal, before.teacher, after.teacher)
    assert float(metrics["teacher"]) > 0


def test_gradients_are_clipped_before_the_update():
    tx = tiny.tx(clip_norm=1e-3)
    train_step, put = tiny.jitted("infonce", tx=tx)
    before = tiny.state(tx)
    after, metrics = train_step(before, put(tiny.batch()))
    old, new = flat(before.params), flat(after.params)
    moved = np.sqrt(sum(np.square(new[path] - old[path]).sum() for path in old))
    assert float(metrics["grad_norm"]) > 1e-2  # as computed, not as applied
    np.testing.assert_allclose(moved, 0.05 * 1e-3, rtol=1e-2)


def test_bfloat16_encoders_leave_the_loss_in_float32():
    model = tiny.towers()
    model = model.clone(
        img=model.img.clone(dtype=jnp.bfloat16), txt=model.txt.clone(dtype=jnp.bfloat16)
    )
    train_step, put = tiny.jitted("otter", model=model)
    state, metrics = train_step(tiny.state(), put(tiny.batch()))
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    np.testing.assert_allclose(metrics["loss"], one_step("otter", 1)[1]["loss"], rtol=0.05)


# Equal to the released code ---------------------------------------------------------------------


@pytest.mark.parametrize("limit", [0.999, 0.3, 0.0])
def test_the_ema_is_the_released_sequence(golden, limit):
    """The release averages before step k = 1, 2, ...; ours after update k - 2 is the same."""
    data = golden("unit_ema.npz")
    shadow = [data[f"params_{i}"][0] for i in range(3)]
    decays, expected = data[f"decay_d{limit:g}"], [data[f"shadow_d{limit:g}_{i}"] for i in range(3)]
    for n in range(1, len(decays) + 1):
        decay = step.ema_decay_at(jnp.int32(n - 2), limit)
        np.testing.assert_allclose(decay, decays[n - 1], rtol=1e-6)
        student = [data[f"params_{i}"][n] for i in range(3)]
        shadow = optax.incremental_update(student, shadow, 1 - decay)
        for ours, theirs in zip(shadow, expected, strict=True):
            np.testing.assert_allclose(ours, theirs[n], rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("epochs", [1, 5, 10, 32])
@pytest.mark.parametrize("base", [0.003, 0.1])
def test_the_rate_by_epoch_is_the_released_one(golden, epochs, base):
    expected = golden("unit_optim.npz")[f"cosine_T{epochs}_lr{base:g}"]
    schedule = optimizer.learning_rate(base, total_steps=7 * epochs, steps_per_epoch=7.0)
    for now in range(7 * epochs):
        np.testing.assert_allclose(schedule(now), expected[now // 7], rtol=2e-5, atol=1e-9)
    np.testing.assert_allclose(schedule(7 * epochs), expected[-1], atol=1e-9)


def test_the_rate_changes_with_the_epoch_where_a_batch_belongs_to_two():
    """10 pairs in batches of 4: epochs begin at steps 0, 2.5, 5, 7.5."""
    schedule = optimizer.learning_rate(1.0, total_steps=10, steps_per_epoch=2.5)
    rates = [float(schedule(now)) for now in range(10)]
    assert len(set(rates)) == 4
    assert rates[2] == rates[0] > rates[3] == rates[4] > rates[5]


def test_warm_up_is_linear_and_the_cosine_ends_at_zero():
    schedule = optimizer.learning_rate(1.0, total_steps=100, warmup_steps=10)
    np.testing.assert_allclose([schedule(n) for n in range(10)], np.arange(1, 11) / 10, rtol=1e-6)
    np.testing.assert_allclose(schedule(10), 1.0)
    np.testing.assert_allclose(schedule(55), 0.5, rtol=1e-6)
    np.testing.assert_allclose(schedule(100), 0.0, atol=1e-7)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_the_optimiser_takes_the_released_steps(golden, name, weight_decay):
    """The release decays all but 1-d tensors, so also the scalar T; ours leaves that alone."""
    data = golden("unit_optim.npz")
    names = [k.removeprefix("grads_") for k in data if k.startswith("grads_")]
    params = {k: jnp.asarray(data[f"init_{k}"]) for k in names}
    tx = optimizer.make_optimizer(
        name,
        lambda _: 3e-3,
        weight_decay=weight_decay,
        decayed=lambda tree: jax.tree.map(lambda x: x.ndim != 1, tree),
    )
    state = tx.init(params)
    for k in range(10):
        grads = {n: jnp.asarray(data[f"grads_{n}"][k]) for n in names}
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        for n in names:
            expected = data[f"traj_{name}_wd{weight_decay}_{n}"][k + 1]
            np.testing.assert_allclose(params[n], expected, rtol=2e-5, atol=2e-6)


def test_biases_norms_and_temperatures_are_not_decayed():
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2), "log_scale": jnp.ones(())}
    assert optimizer.matrices(params) == {"kernel": True, "bias": False, "log_scale": False}


def test_an_unknown_optimiser_is_an_error():
    with pytest.raises(UserError, match="adamw"):
        optimizer.make_optimizer("adam", lambda _: 0.1)


def test_per_process_imitates_the_release_in_one_step():
    """The option reaches the step: off the first process the own pair keeps its mass."""
    method = Objective(alpha=0.5, teacher="transport", diagonal="per_process", num_processes=4)
    train_step, put = tiny.jitted(method)
    _, metrics = train_step(tiny.state(), put(tiny.batch()))
    assert float(metrics["own_mass"]) > 0.01
    assert float(one_step("otter", 1)[1]["own_mass"]) == 0


def gated(shape="filter"):
    state = tiny.state()
    params = state.params | {"gates": {"img": gates.create(state.params["img"], shape)}}
    return step.create_state(params, state.batch_stats, tiny.tx())


@pytest.mark.parametrize("method", ["infonce", "otter"])
def test_gates_of_one_change_no_step_of_what_they_gate(method):
    """The same embeddings, so the same loss and the same gradient of everything else."""
    train_step, put = tiny.jitted(method)
    state, metrics = train_step(gated(), put(tiny.batch()))
    plain, expected = one_step(method, 1)
    for name in expected.keys() - {"grad_norm", "param_norm"}:
        np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-5)
    for name, tree in plain.params.items():
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5),
            state.params[name],
            tree,
        )


def test_of_a_frozen_tower_the_gates_alone_are_trained():
    freeze, before = "img/", gated("slice")
    frozen = freezing.frozen_mask(before.params, freeze)
    tx = tiny.tx(frozen=frozen)
    train_step, put = tiny.jitted(
        "otter", tx=tx, freeze=freeze, gate_penalty="l2", gate_strength=0.1
    )
    state = step.create_state(before.params, before.batch_stats, tx)
    for _ in range(2):  # at gates of 1 the penalty and its gradient are 0
        state, metrics = train_step(state, put(tiny.batch()))
    was, now = flat(before.params), flat(state.params)
    moved = {path for path in was if (was[path] != now[path]).any()}
    assert not {path for path in moved if path.startswith("img/")}
    assert {path for path in was if path.startswith("gates/")} <= moved
    assert metrics["gate_penalty"] < 0
    # The average of the gates is what the EMA teacher sees with.
    follows = flat(state.teacher["params"])["gates/img/conv1/kernel"]
    assert (follows != 1).any()
    assert np.abs(follows - 1).max() < np.abs(now["gates/img/conv1/kernel"] - 1).max()


def test_gates_do_not_decay():
    assert not any(jax.tree.leaves(optimizer.matrices(gated().params)["gates"]))
    assert optimizer.matrices(gated().params)["img"]["conv1"]["kernel"]
