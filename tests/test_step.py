"""The training step: the same on any number of devices, and piece by piece as released."""

import collections
import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from flax import traverse_util

from benchmarks import hlo
from otter_jax import freezing, objective, optimizer, step
from otter_jax import mesh as meshes
from otter_jax.errors import UserError
from otter_jax.objective import METHODS, PUBLISHED, Objective
from otter_jax.training import compiling, profiling

B = tiny.B
# Whose whole step is compiled here: trust alone does part of what it does beside OTTER.
WHOLE = (*PUBLISHED, "trust_otter")
# One program to look at dropout, and at the diagonal of the release.
PER_PROCESS = Objective(alpha=0.5, teacher="transport", diagonal="per_process", num_processes=4)
IMITATED = {"objective": PER_PROCESS, "model": tiny.towers(dropout=0.5)}


def flat(tree):
    """NumPy arrays by their paths: comparing jax's would compile a program for every shape."""
    return traverse_util.flatten_dict(jax.device_get(tree), sep="/")


# Between two programs for the same in float64: 2e-16 of rounding, up to 100 times that in an
# exponent, and some 40 times for a sum over pixels. The largest seen is 1e-14.
LIMIT = 1e-12


def near(a, b):
    np.testing.assert_allclose(a, b, rtol=0, atol=LIMIT * max(1.0, np.abs(a).max()))


@pytest.mark.parametrize("method", WHOLE)
def test_eight_devices_do_what_one_does(method):
    """Loss, gradient (SGD: the update is the gradient) and the whole new state."""
    one, eight = (tiny.compiled(method, devices, double=True).first_step() for devices in (1, 8))
    jax.tree.map(near, one, eight)


@pytest.mark.parametrize("method", WHOLE)
def test_a_step_sends_embeddings_once_short_vectors_and_gradients(method):
    """That is all: teacher's and student's embeddings, the gradient of the student's, sums."""
    found = collections.defaultdict(list)
    for collective in hlo.collectives(tiny.compiled(method, 8).step.as_text()):
        found[collective.kind] += collective.shapes * collective.times
    method, dim = METHODS[method], tiny.towers().dim
    assert found.pop("all-gather") == [(B, 2 * dim)] * (1 + method.has_teacher)
    assert found.pop("reduce-scatter") == [(B // 8, 2 * dim)]
    summed = found.pop("all-reduce")
    assert not found
    vectors = method.num_iters + 1 if method.teacher == "transport" else 0
    assert summed.count((2, 1, B)) == vectors
    # The rest are gradients and sums of batch norm: no axis of the model is as long as B.
    assert {shape for shape in summed if B in shape} <= {(2, 1, B)}


def test_every_part_of_a_step_is_known_by_its_name():
    parts = profiling.parts_of(tiny.compiled("otter", 8).step.as_text())
    assert {*parts.values()} == {*profiling.ROWS} - {"input wait"}
    named = collections.Counter(parts.values())
    assert named["rest"] < sum(named.values()) / 2  # parameters, the insides of sums


@pytest.mark.parametrize("method", WHOLE)
def test_no_device_makes_a_whole_similarity_matrix(method):
    text = tiny.compiled(method, 8).step.as_text()
    shapes = {tuple(axes.split(",")) for axes in re.findall(r"\w\[([\d,]+)\]", text)}
    assert (str(B // 8), str(B)) in shapes
    assert not [axes for axes in shapes if axes.count(str(B)) > 1]


@pytest.mark.parametrize("method", WHOLE)
def test_it_learns_one_batch_by_heart(method):
    """From a small scale: from that of 49 where training starts, a tiny model ends at chance."""
    program = tiny.compiled(method, double=True)
    log_scale = {name: np.float64(0.5) for name in ("pairs", "teacher")}
    state = program.state.replace(params=program.state.params | {"log_scale": log_scale})
    for _ in range(30):
        state, metrics = program(state, tiny.batch())
    chance = 2 * np.log(B)
    # KD learns from a teacher that knows as little: seen are 0.86, of the others 0.1 to 0.4.
    assert float(metrics["pairs"]) < (0.93 if method == "kd" else 0.7) * chance


HALVES = [(name, {}) for name in METHODS]
HALVES += [("trust", {"trust": trust}) for trust in ("transport", "small_loss")]
HALVES += [("siglip", {"trust": "transport"}), ("otter", {"temperatures": 1})]
HALVES += [(name, {"diagonal": "per_process", "num_processes": 4}) for name in ("kd", "otter")]


@pytest.mark.parametrize(("name", "options"), HALVES)
def test_its_halves_over_eight_devices_are_the_objective_on_one(name, options):
    """Targets and their health; loss, terms and the gradients of embeddings and temperatures."""
    method, mesh = dataclasses.replace(METHODS[name], **options), meshes.make_mesh(8)

    def one(teacher, student, log_scale):
        targets = method.teacher_targets(*teacher)
        numbers = objective.health(method.teacher_plans(*teacher))

        def loss(student, log_scale):
            return method.loss(*student, targets, log_scale)

        gradient = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
        return targets, numbers, gradient(student, log_scale)

    def eight(teacher, student, log_scale):
        targets, numbers = step.teach(method, *teacher, mesh=mesh)

        def loss(student, log_scale):
            return step.matching_loss(method, *student, targets, log_scale, mesh=mesh)

        gradient = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
        return targets, numbers, gradient(student, log_scale)

    x = np.random.RandomState(0).randn(2, 2, 16, 12)
    embeddings = x / np.linalg.norm(x, axis=-1, keepdims=True)
    log_scale = {name: np.float64(3.9) for name in ("pairs", "teacher")}
    inputs = *map(tuple, embeddings), log_scale
    with jax.enable_x64(True):
        found = [jax.device_get(jax.jit(f)(*inputs)) for f in (one, eight)]
    jax.tree.map(near, *found)


@pytest.mark.parametrize(("name", "arrays"), [("sgd", 3), ("adamw", 4)])
def test_an_update_writes_each_array_of_the_state_once_and_in_place(name, arrays):
    """Parameters, EMA, and the optimiser's one or two: a loop for each, no copies beside."""
    tx = optimizer.make_optimizer(name, lambda _: 0.1, weight_decay=0.01)

    def update(state, grads):
        grads |= {"log_scale": state.params["log_scale"]}
        params, opt_state = step.moved(state, grads, tx, clamp_scales=True)
        student = {"params": params, "batch_stats": {}}
        teacher = step.follow(state.teacher, student, None, step.ema_decay_at(state.step, 0.999))
        return state.replace(params=params, opt_state=opt_state, teacher=teacher), {}

    shape = jax.ShapeDtypeStruct((512, 512), np.float32)
    params = {"kernel": shape, "log_scale": {"pairs": jax.ShapeDtypeStruct((), np.float32)}}
    state = jax.eval_shape(lambda params: step.create_state(params, {}, tx), params)
    jitted = compiling.jit_step(update, meshes.make_mesh(1))
    program = jitted.lower(state, {"kernel": shape}).compile()
    memory, size = program.memory_analysis(), 4 * 512 * 512
    assert memory.alias_size_in_bytes >= arrays * size
    assert memory.temp_size_in_bytes < size
    entry = program.as_text().partition("\nENTRY")[2]
    assert len(re.findall(r"= f32\[512,512\]\S* (?!parameter)", entry)) == arrays


def test_a_teacher_follows_but_keeps_statistics_of_its_own():
    teacher = {"params": {"w": np.float32(1)}, "batch_stats": {"mean": np.float32(5)}}
    student = {"params": {"w": np.float32(3)}, "batch_stats": {"mean": np.float32(9)}}
    decay = jnp.float32(0.75)
    looked = step.follow(teacher, student, {"mean": np.float32(7)}, decay)
    assert looked == {"params": {"w": 1.5}, "batch_stats": {"mean": 7}}
    blind = step.follow(teacher, student, None, decay)
    assert blind == {"params": {"w": 1.5}, "batch_stats": {"mean": 6}}


def test_the_same_state_and_batch_give_the_same_step_and_the_next_step_other_dropout():
    program = tiny.compiled(**IMITATED)
    state = program.state
    first, again = (program.first_step()[1] for _ in range(2))
    later = program(state.replace(step=state.step + 1), tiny.batch())[1]
    assert float(first["loss"]) == float(again["loss"]) != float(later["loss"])


def test_a_frozen_part_stays_put_with_its_statistics():
    pattern = "txt/|img/(conv1|bn1)"
    before = tiny.variables()
    after, _ = tiny.compiled("otter", freeze=pattern, weight_decay=0.1).first_step()
    old, new = flat(before["params"]), flat(after.params)
    for path in old:
        stays = bool((old[path] == new[path]).all())
        # An InfoNCE gradient of exactly 0 is possible only for frozen parameters here.
        assert stays == freezing.frozen(path, pattern), path
    old, new = flat(before["batch_stats"]), flat(after.batch_stats)
    for path in old:
        frozen = freezing.frozen(path.rsplit("/", 1)[0] + "/scale", pattern)
        assert bool((old[path] == new[path]).all()) == frozen, path
    assert bool((flat(after.teacher["batch_stats"])["img/bn1/mean"] == old["img/bn1/mean"]).all())


def test_an_average_leaves_what_is_frozen_alone():
    """It is not computed: decay * x + (1 - decay) * x would move it by rounding, and cost time."""
    pattern = "txt/|img/(conv1|bn1)"
    program = tiny.compiled("otter", freeze=pattern, weight_decay=0.1)
    state, _ = program.first_step()  # by 3/12 and 9/12, which rounds nothing
    state, _ = program(state, tiny.batch())
    before, teacher = flat(tiny.variables()["params"]), flat(state.teacher["params"])
    stays = {path for path in before if (before[path] == teacher[path]).all()}
    assert stays == {path for path in before if freezing.frozen(path, pattern)}


EVERYTHING = "img/|txt/"  # but heads and temperatures


def test_a_frozen_batch_norm_normalises_by_its_stored_statistics():
    program = tiny.compiled("infonce", freeze=EVERYTHING, double=True)
    _, metrics = program.first_step()
    model = tiny.towers(dtype=np.float64)

    @jax.jit
    def expected(variables, batch):
        img, txt = model.apply(variables, batch["image"], tiny.captions_of(batch), train=False)
        return METHODS["infonce"].loss(img, txt, None, variables["params"]["log_scale"])[0]

    with jax.enable_x64(True):
        loss = expected(jax.tree.map(np.float64, tiny.variables()), tiny.batch())
        loss = jax.device_get(loss)
    near(metrics["loss"], loss)


def test_what_is_frozen_is_computed_once_for_student_and_teacher():
    convolutions = {
        name: len(re.findall(r" convolution\(", program.step.as_text()))
        for name in ("infonce", "otter")
        for program in [tiny.compiled(name, freeze=EVERYTHING, double=True)]
    }
    kernels = flat(tiny.variables()["params"]["img"]).values()
    # No gradient goes through them; those of 1x1 are matrix products on CPUs.
    forward = sum(kernel.ndim == 4 and kernel.shape[0] > 1 for kernel in kernels)
    assert convolutions == {"infonce": forward, "otter": forward}


@pytest.mark.parametrize("pattern", ["image/", ".*"])
def test_a_pattern_that_freezes_nothing_or_everything_is_an_error(pattern):
    with pytest.raises(UserError, match="img/conv1/"):
        freezing.frozen_mask(tiny.variables()["params"], pattern)


def test_the_teacher_follows_with_a_growing_delay():
    """Three steps; 0.25, then 4/13, ... of the way stays with the old teacher."""
    program = tiny.compiled("otter", double=True)
    state, shadow = program.state, flat(program.state.params)
    for number in range(3):
        state, _ = program(state, tiny.batch(number))
        decay = (3 + number) / (12 + number)
        student = flat(state.params)
        shadow = {k: decay * shadow[k] + (1 - decay) * student[k] for k in shadow}
    teacher = flat(state.teacher["params"])
    for path in shadow:
        np.testing.assert_allclose(teacher[path], shadow[path], rtol=1e-5, atol=1e-7)


def test_an_ema_without_a_teacher_averages_the_statistics_too():
    after = tiny.compiled("infonce", double=True).first_step()[0]
    before = tiny.variables()["batch_stats"]["img"]["bn1"]["mean"]
    student = after.batch_stats["img"]["bn1"]["mean"]
    average = after.teacher["batch_stats"]["img"]["bn1"]["mean"]
    np.testing.assert_allclose(average, 0.25 * before + 0.75 * student, rtol=1e-5, atol=1e-7)


def test_a_teacher_that_looks_has_statistics_of_its_own():
    """In the first step student and teacher see the same, so their statistics agree."""
    after = tiny.compiled("otter", double=True).first_step()[0]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
        after.batch_stats,
        after.teacher["batch_stats"],
    )


# One program for a teacher that is fixed and for gradients that are clipped.
FIXED = {"objective": "kd", "ema_decay": None, "clip_norm": 1e-3, "double": True}


def test_a_fixed_teacher_is_fixed():
    program = tiny.compiled(**FIXED)
    after, metrics = program.first_step()
    jax.tree.map(np.testing.assert_array_equal, program.state.teacher, after.teacher)
    assert float(metrics["teacher"]) > 0


def test_gradients_are_clipped_before_the_update():
    program = tiny.compiled(**FIXED)
    after, metrics = program.first_step()
    old, new = flat(program.state.params), flat(after.params)
    moved = np.sqrt(sum(np.square(new[path] - old[path]).sum() for path in old))
    assert float(metrics["grad_norm"]) > 1e-2  # as computed, not as applied
    np.testing.assert_allclose(moved, 0.01 * 1e-3, rtol=1e-9)


@pytest.mark.parametrize("beyond", [9.0, -1.0])
def test_a_temperature_beyond_its_limits_comes_back_to_where_it_has_a_gradient(beyond):
    program = tiny.compiled("otter", double=True)
    far = jax.tree.map(lambda x: np.full_like(x, beyond), program.state.params["log_scale"])
    state = program.state.replace(params=program.state.params | {"log_scale": far})
    after, metrics = program(state, tiny.batch())
    assert float(metrics["scale_pairs"]) in objective.LIMITS
    for dtype in (np.float32, np.float64):
        for scale in jax.tree.leaves(after.params["log_scale"]):
            assert jax.grad(lambda x: objective.scale_of(x).sum())(dtype(scale)) > 0
    same = objective.clamp_log_scale(jnp.float32(3.9))
    assert float(same) == np.float32(3.9)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_clipping_can_be_switched_on_in_the_middle_of_a_run(name):
    params = {"kernel": jnp.ones((2, 3))}
    plain, clipped = (
        optimizer.make_optimizer(name, lambda _: 0.1, clip_norm=norm) for norm in (0.0, 1e-3)
    )
    state, other = plain.init(params), clipped.init(params)
    assert jax.tree.structure(state) == jax.tree.structure(other)
    large = {"kernel": 1e6 * jnp.ones((2, 3))}
    moved, _ = clipped.update(large, state, params)
    if name == "sgd":
        np.testing.assert_allclose(optax.tree.norm(moved), 0.1 * 1e-3, rtol=1e-5)


def test_bfloat16_encoders_leave_state_similarities_and_loss_in_float32():
    """Parameters, optimiser, EMA and statistics; no B x B matrix is made of bfloat16."""
    model = tiny.towers()
    model = model.clone(
        img=model.img.clone(dtype=jnp.bfloat16), txt=model.txt.clone(dtype=jnp.bfloat16)
    )
    program = tiny.compiled("otter", model=model)
    state, metrics = program.first_step()
    assert {x.dtype.name for x in jax.tree.leaves((state, metrics))} == {"float32", "int32"}
    text = program.step.as_text()
    assert "bf16[" in text
    assert f"bf16[{B},{B}]" not in text
    _, exact = tiny.compiled("otter", double=True).first_step()
    np.testing.assert_allclose(metrics["loss"], exact["loss"], rtol=0.05)


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
    _, metrics = tiny.compiled(**IMITATED).first_step()
    assert float(metrics["own_mass"]) > 0.01
    assert float(tiny.compiled("otter", double=True).first_step()[1]["own_mass"]) == 0


@pytest.mark.parametrize("method", ["infonce", "otter"])
def test_gates_of_one_change_no_step_of_what_they_gate(method):
    """The same embeddings, so the same loss and the same gradient of everything else."""
    state, metrics = tiny.compiled(method, gated="filter", double=True).first_step()
    plain, expected = tiny.compiled(method, double=True).first_step()
    for name in expected.keys() - {"grad_norm", "param_norm"}:
        near(metrics[name], expected[name])
    for name, tree in plain.params.items():
        jax.tree.map(near, state.params[name], tree)


def test_of_a_frozen_tower_the_gates_alone_are_trained():
    program = tiny.compiled(
        "otter", freeze="img/", gated="slice", gate_penalty="l2", gate_strength=0.1
    )
    state = before = program.state
    for _ in range(2):  # at gates of 1 the penalty and its gradient are 0
        state, metrics = program(state, tiny.batch())
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
    decays = optimizer.matrices(tiny.state(gated="filter").params)
    assert not any(jax.tree.leaves(decays["gates"]))
    assert decays["img"]["conv1"]["kernel"]
