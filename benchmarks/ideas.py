"""Ideas beyond trust + OTTER, each beside it: what they change in the names that are found.

    otter-jax study benchmarks/studies/heads.toml --data PICTURES --prepare heads.npz
    python -m benchmarks.ideas heads.npz [--only NAME ...] [--seeds 3] [--noise 0 0.5]

Heads on frozen encoders, on the pairs, batches and questions of heads.toml's set emoji; EMA
weights. AdamW 1e-3 and both scales from exp(2.3), in batches of 64 3e-4 and exp(1.6): what trust +
OTTER chose with half of the captions wrong. No idea is tuned, so this shows what may be worth a
study, not what is better; one that changes little is not worth a line of the objective.
"""

import argparse
import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks.results import short, table
from otter_jax import mesh as meshes
from otter_jax import objective, ot, step
from otter_jax.models.towers import unit
from otter_jax.objective import METHODS
from otter_jax.run import heap
from otter_jax.study import engine, linear, reading, scoring
from otter_jax.study.features import Features
from otter_jax.study.plan import Setting
from otter_jax.study.running import Runner, model_of

BATCH, RATE, LOG_SCALE = 512, 1e-3, 2.3
SMALL = {"batch": 64, "rate": 3e-4, "log_scale": 1.6}
OURS = METHODS["trust_otter"]
OF_FEATURES = 0.05  # regularisation of transport between what frozen encoders or ridge see
FOLDS, STRENGTH = 4, 0.3  # of the ridge regression
COLUMNS = ("val/name@5", "val/name@10", "seen/name@1", "seen/name@10", "unseen/name@10")


class Seen(NamedTuple):
    """What may be asked about a batch, rows of length 1: [B, D] each, and how far the run is."""

    img: Any  # the teacher's embeddings
    txt: Any
    pictures: Any  # the frozen encoders' features
    words: Any
    ridge: Any  # what a ridge regression that has not seen the pair makes of the picture
    done: Any  # part of all steps


class Asked(NamedTuple):
    """What the answer is: targets [B, B], weights [B], and the share of the pairs term."""

    image: Any
    text: Any
    image_weights: Any
    text_weights: Any
    teacher_weights: Any
    alpha: Any


@dataclasses.dataclass(frozen=True)
class Idea:
    """One idea: how a batch is asked about, and what else is done in a step."""

    ask: Callable[[Seen], Asked]
    mix: bool = False  # pairs are mixed with each other
    structure: float = 0.0  # weight of: pictures alike to the encoder stay alike
    batch: int = BATCH
    rate: float = RATE
    log_scale: float = LOG_SCALE
    memory: int = 0  # embeddings of earlier batches that are columns, too


# How a batch is asked about


def of(method: objective.Objective) -> Callable[[Seen], Asked]:
    """A method of the package."""

    def ask(seen):
        found = method.teacher_targets(seen.img, seen.txt) if method.has_teacher else {}
        B = len(seen.img)
        weights = method.weights(found["trust"]) if method.trust else jnp.ones(B)
        none = jnp.eye(B)
        return Asked(
            found.get("image", none), found.get("text", none), weights, weights, jnp.ones(B),
            method.alpha,
        )  # fmt: skip

    return ask


def changed(change: Callable[[Seen, Asked], dict[str, Any]]) -> Callable[[Seen], Asked]:
    """Trust + OTTER with some of its answer replaced."""

    def ask(seen):
        asked = of(OURS)(seen)
        return asked._replace(**change(seen, asked))

    return ask


def without_own(affinity):
    return affinity - objective.REMOVED * jnp.eye(affinity.shape[-1])


def transported(image, text, epsilon):
    """Targets by OTTER's transport of two affinities."""
    plans = ot.sinkhorn(-without_own(jnp.stack([image, text])), epsilon=epsilon, num_iters=5)
    return objective.targets_of({"image": plans[0], "text": plans[1]})


def per_device(seen):
    """OTTER, but an eighth of the batch is matched at a time, as 8 devices would by themselves."""
    asked, B = of(METHODS["otter"])(seen), len(seen.img)
    img, txt = (each.reshape(8, B // 8, -1) for each in (seen.img, seen.txt))
    within = img @ img.swapaxes(1, 2) + txt @ txt.swapaxes(1, 2)
    across = img @ txt.swapaxes(1, 2)
    parts = transported(within + across, within + across.swapaxes(1, 2), OURS.epsilon)
    return asked._replace(**{k: jax.scipy.linalg.block_diag(*v) for k, v in parts.items()})


def by_features(seen, asked):
    within = seen.pictures @ seen.pictures.T + seen.words @ seen.words.T
    return transported(within, within, OF_FEATURES)


def by_ridge(seen, asked):
    within = seen.ridge @ seen.ridge.T + seen.words @ seen.words.T
    across = seen.ridge @ seen.words.T
    return transported(within + across, within + across.T, OF_FEATURES)


def trusted_by_ridge(seen, asked):
    method = dataclasses.replace(METHODS["trust"], trust_epsilon=0.05)
    weights = method.weights(method.teacher_plans(seen.ridge, seen.words)["trust"])
    return {"image_weights": weights, "text_weights": weights}


def trusted_later(seen, asked):
    early = seen.done < 0.1
    weights = jnp.where(early, 1.0, asked.image_weights)
    return {"image_weights": weights, "text_weights": weights}


def trusted_by_direction(seen, asked):
    cosines = seen.img @ seen.txt.T / OURS.trust_epsilon
    both = (jnp.diag(jax.nn.softmax(each)) for each in (cosines, cosines.T))
    image, text = (jnp.minimum(each / each.mean(), OURS.trust_limit) for each in both)
    return {"image_weights": image, "text_weights": text}


def trusted_teacher(seen, asked):
    return {"teacher_weights": asked.image_weights}


def affinities(seen):
    within = seen.img @ seen.img.T + seen.txt @ seen.txt.T
    across = seen.img @ seen.txt.T
    return jnp.stack([without_own(within + across), without_own(within + across.T)])


def unbalanced(seen, asked):
    """Marginals may be missed, at a price of 0.5 a nat (arXiv:1607.05816)."""
    logits, part = affinities(seen) / OURS.epsilon, 0.5 / (0.5 + OURS.epsilon)
    columns = jnp.zeros((2, 1, logits.shape[-1]))
    for _ in range(5):
        rows = -part * jax.nn.logsumexp(logits + columns, axis=-1, keepdims=True)
        columns = -part * jax.nn.logsumexp(logits + rows, axis=-2, keepdims=True)
    targets = jax.nn.softmax(logits + columns)
    return {"image": targets[0], "text": targets[1]}


def with_bin(seen, asked):
    """A third of the mass may go into a bin, whose affinity is the mean of the three similarities'.

    A row's teacher term counts by what it has left outside (arXiv:1911.11763 has such a bin).
    """
    logits = affinities(seen) / OURS.epsilon
    B = logits.shape[-1]
    inside = jnp.where(jnp.eye(B), jnp.nan, logits)
    level = jnp.full((2, 1, 1), jnp.nanmean(inside))
    logits = jnp.concatenate([logits, jnp.broadcast_to(level, (2, B, 1))], -1)
    logits = jnp.concatenate([logits, jnp.broadcast_to(level, (2, 1, B + 1))], -2)
    mass = jnp.log(jnp.append(jnp.ones(B), B / 3))
    columns = jnp.zeros((2, 1, B + 1))
    for _ in range(5):
        rows = mass[:, None] - jax.nn.logsumexp(logits + columns, axis=-1, keepdims=True)
        columns = mass - jax.nn.logsumexp(logits + rows, axis=-2, keepdims=True)
    plan = jnp.exp(logits + rows + columns)[:, :B, :B]
    left = plan.sum(-1, keepdims=True)
    targets = plan / left
    return {"image": targets[0], "text": targets[1], "teacher_weights": left.mean((0, 2))}


IDEAS = {
    "InfoNCE": Idea(of(METHODS["infonce"])),
    "OTTER": Idea(of(METHODS["otter"])),
    "OTTER, each of 8 devices by itself": Idea(per_device),
    "trust": Idea(of(METHODS["trust"])),
    "trust + OTTER": Idea(of(OURS)),
    "plans of the encoders' own features": Idea(changed(by_features)),
    "plans of a ridge regression": Idea(changed(by_ridge)),
    "trust of a ridge regression": Idea(changed(trusted_by_ridge)),
    "trust after a tenth of the steps": Idea(changed(trusted_later)),
    "trust per direction": Idea(changed(trusted_by_direction)),
    "trust on the teacher's term, too": Idea(changed(trusted_teacher)),
    "unbalanced transport": Idea(changed(unbalanced)),
    "transport with a bin": Idea(changed(with_bin)),
    "structure term, weight 1": Idea(of(OURS), structure=1.0),
    "structure term, weight 10": Idea(of(OURS), structure=10.0),
    "pairs mixed (FuseMix)": Idea(of(OURS), mix=True),
    "trust + OTTER, batch 64": Idea(of(OURS), **SMALL),
    "the same, 448 earlier as columns": Idea(of(OURS), memory=448, **SMALL),
}


# A run


def structure(features, img):
    """Jensen-Shannon divergence between similarities to the encoder, and those learned."""
    seen, learned = (jax.nn.softmax(each @ each.T / 0.07) for each in (features, img))
    middle = (seen + learned) / 2
    return sum(
        jnp.where(each > 0, each * jnp.log(each / middle), 0).sum(-1).mean() / 2
        for each in (seen, learned)
    )


@functools.partial(jax.jit, static_argnames=("idea", "model", "train"))
def trained(idea, model, train, pictures, words, ridge, run):
    """Returns the EMA's variables after a run on all features."""
    steps, B = run.images.shape
    program = engine.Program(model, OURS, train)
    like = {"image": pictures[:1], "pooled": words[:1]}
    state, tx = engine.first_state(program, {}, like, run, steps)

    def embed(variables, picture, word):
        return model.apply(variables, picture, {"pooled": word}, train=False)

    def advance(carry, row):
        state, kept = carry
        image, text, number = row
        picture, word = pictures[image].astype(jnp.float32), words[text].astype(jnp.float32)
        if idea.mix:
            key = jax.random.fold_in(jax.random.key(run.seed), number)
            other = jax.random.permutation(key, B)
            part = jax.random.beta(jax.random.fold_in(key, 1), 1.0, 1.0, (B, 1))
            picture = part * picture + (1 - part) * picture[other]
            word = unit(part * unit(word) + (1 - part) * unit(word)[other])
        img, txt = embed(state.teacher, picture, word)
        columns = {"img": img, "txt": txt}
        if idea.memory:  # rows of earlier batches are asked about as well, and then left out
            columns = {k: jnp.concatenate([v, kept[k]]) for k, v in columns.items()}
        seen = Seen(*columns.values(), unit(picture), unit(word), ridge[image], number / steps)
        asked = idea.ask(seen)
        asked = asked._replace(
            image=asked.image[:B], text=asked.text[:B], image_weights=asked.image_weights[:B],
            text_weights=asked.text_weights[:B], teacher_weights=asked.teacher_weights[:B],
        )  # fmt: skip

        def loss(params):
            student = {"params": params, "batch_stats": state.batch_stats}
            v, t = embed(student, picture, word)
            img = jnp.concatenate([v, columns["img"][B:]])
            txt = jnp.concatenate([t, columns["txt"][B:]])
            both, own = (v @ txt.T, t @ img.T), jnp.eye(B, len(img))
            scales = params["log_scale"]
            weights = asked.image_weights, asked.text_weights
            pairs = (
                objective.cross_entropy(w[:, None] * own, c, scales["pairs"])
                for c, w in zip(both, weights, strict=True)
            )
            trusted = (asked.teacher_weights[:, None] * each for each in (asked.image, asked.text))
            teacher = (
                objective.cross_entropy(target, c, scales["teacher"])  # as KL, but for a constant
                for target, c in zip(trusted, both, strict=True)
            )
            found = asked.alpha * sum(pairs) + (1 - asked.alpha) * sum(teacher)
            if idea.structure:
                found += idea.structure * structure(unit(picture), v)
            return found

        params, opt_state = step.moved(state, jax.grad(loss)(state.params), tx, clamp_scales=True)
        student = {"params": params, "batch_stats": state.batch_stats}
        decay = step.ema_decay_at(state.step, 0.999)
        teacher = step.follow(state.teacher, student, None, decay)
        state = step.TrainState(state.step + 1, params, state.batch_stats, opt_state, teacher)
        kept = {k: v[: idea.memory] for k, v in columns.items()}
        return (state, kept), None

    blank = jax.random.normal(jax.random.key(run.seed), (idea.memory, model.dim))
    first = state, {"img": unit(blank), "txt": unit(blank)}
    numbers = jnp.arange(steps)
    (state, _), _ = lax.scan(advance, first, (run.images, run.texts, numbers))
    return state.teacher


def out_of_fold(pictures, words, rows, seed):
    """What a ridge regression on the other folds' pairs makes of each picture, of length 1."""
    images, texts = rows
    fold = np.random.default_rng(seed).permutation(len(images)) % FOLDS
    found = np.zeros((len(pictures), words.shape[1]), np.float32)
    for each in range(FOLDS):
        moments = linear.moments(pictures[images[fold != each]], words[texts[fold != each]])
        maps = linear.fit("ridge", moments, STRENGTH)
        own = images[fold == each]
        found[own] = maps.embed_images(pictures[own])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("features", type=pathlib.Path, help="of --prepare")
    parser.add_argument("--only", nargs="+", choices=list(IDEAS), default=list(IDEAS))
    parser.add_argument("--seeds", type=int, default=3, metavar="N")
    parser.add_argument("--noise", type=float, nargs="+", default=[0.0, 0.5], metavar="PART")
    options = parser.parse_args()
    heap.share_and_keep()
    study = reading.read(pathlib.Path(__file__).parent / "studies" / "heads.toml")
    features = Features.load(options.features)
    runner, model = Runner(study, features), model_of(study, features)
    pictures = np.concatenate([features.parts[name].images for name in study.data.train])
    words = np.concatenate([features.parts[name].texts for name in study.data.train])
    on_device = jax.device_put((pictures, words))
    rows = []
    for noise in options.noise:
        for name in options.only:
            idea, found = IDEAS[name], []
            for seed in range(options.seeds):
                images, texts, _ = seen = runner.seen(
                    Setting("emoji", noise, 1.0, idea.batch), study.train.pairs, seed
                )
                run = engine.Run(
                    jnp.int32(seed), jnp.float32(idea.rate), jnp.float32(idea.log_scale), {}, *seen
                )
                pairs = np.unique(np.stack([images.ravel(), texts.ravel()]), axis=1)
                ridge = jnp.asarray(out_of_fold(pictures, words, pairs, seed))
                with jax.default_matmul_precision("highest"):
                    variables = trained(idea, model, study.train, *on_device, ridge, run)
                stacked = jax.tree.map(lambda leaf: leaf[None], variables)
                found += scoring.scores(model, stacked, runner.searches)
            cells = []
            for column in COLUMNS:
                values = np.array([each[column] for each in found])
                cells.append(f"{short(values.mean())} ± {short(values.std(ddof=1))}")
            rows.append([name, f"{noise:.0%}", *cells])
            print(" | ".join(rows[-1]), flush=True)
    print(table(["", "wrong", *(c.replace("/name", "") for c in COLUMNS)], rows))
    print(f"{options.seeds} seeds, mean ± their standard deviation; {meshes.make_mesh(1).devices}")


if __name__ == "__main__":
    main()
