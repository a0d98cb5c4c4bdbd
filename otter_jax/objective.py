"""Targets and losses: where the student's match is pulled to, and how far it is from there.

The student *matches* image i with text j by the softmax of their scaled cosines. Every method of
the paper pulls the matches of a batch towards a [B, B] target; the methods differ in the target:

    loss = alpha * cross_entropy(pairs as given, match) + (1 - alpha) * KL(teacher's target, match)

A teacher can also say whom to believe: with `trust`, a given pair counts by how much of the
teacher's own match stays on it.

Everything here is written for the rows of one device. Without `axis_name` these are all rows;
inside `jax.shard_map` they are B / devices of them, and the embeddings (never a [B, B] matrix) are
gathered once.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from otter_jax import ot
from otter_jax.errors import UserError

TEACHERS = ("none", "softmax", "transport")
DIAGONALS = ("remove", "keep", "per_process")
MATCHES = ("softmax", "sigmoid")
TRUSTS = ("", "transport", "softmax", "small_loss")
# "image": images over texts; "text": the reverse; with trust, "trust": one number per given pair.
ByDirection = dict[str, Float[Array, "b B"] | Float[Array, " b"]]

# Taken off the affinity of a removed entry (the release: 100 in each of two similarities). Not
# infinity: diagonal="per_process" can remove a whole column, which must not become NaN.
REMOVED = 200.0
LIMITS = (1.0, 100.0)  # of an inverse temperature


@dataclasses.dataclass(frozen=True)
class Objective:
    """Defines the loss of one method. Raises UserError for a value outside its range."""

    alpha: float = 1.0  # weight of the pairs term; 1 - alpha is the teacher term's
    smoothing: float = 0.0  # part of a given pair's target that is spread over the other B - 1
    teacher: str = "none"  # one of TEACHERS
    teacher_scale: float = 100.0  # inverse temperature of the softmax teacher
    epsilon: float = 0.15  # entropic regularisation of the transport (lambda in the paper)
    num_iters: int = 5  # of Sinkhorn
    image_weight: float = 1.0  # of image-image similarity in the teacher's affinity
    text_weight: float = 1.0  # of text-text similarity
    cross_weight: float = 1.0  # of image-text similarity
    diagonal: str = "remove"  # one of DIAGONALS: whether the teacher may vote for the given pairs
    negatives_gradient: bool = True  # whether gradients also flow through the gathered embeddings
    num_processes: int = 1  # for diagonal="per_process": how many the release was run with
    trust: str = ""  # one of TRUSTS: by what the teacher weighs the given pairs; "": all alike
    trust_epsilon: float = 0.1  # temperature of the teacher's match, or regularisation, for trust
    trust_limit: float = 2.0  # largest weight of a pair; the mean is 1 before it is applied
    trust_share: float = 0.7  # for trust="small_loss": share of a batch's pairs that count
    match: str = "softmax"  # or "sigmoid": every image with every text by itself, as SigLIP
    temperatures: int = 2  # 1: the teacher term's scale is that of the pairs term
    log_scale: float = 3.9  # where the logarithm of both scales starts

    def __post_init__(self):
        for name, choices in (
            ("teacher", TEACHERS),
            ("diagonal", DIAGONALS),
            ("trust", TRUSTS),
            ("match", MATCHES),
            ("temperatures", (1, 2)),
        ):
            if getattr(self, name) not in choices:
                raise UserError(f"objective.{name}={getattr(self, name)!r}: one of {choices}.")
        for name, low, high in (
            ("alpha", 0.0, 1.0),
            ("smoothing", 0.0, 1.0),
            ("teacher_scale", 0.0, float("inf")),
            ("image_weight", 0.0, float("inf")),
            ("text_weight", 0.0, float("inf")),
            ("cross_weight", 0.0, float("inf")),
            ("trust_limit", 1.0, float("inf")),
            ("log_scale", 0.0, math.log(LIMITS[1])),
            ("num_iters", 1, 10_000),
            ("num_processes", 1, 1_000_000),
        ):
            if not low <= getattr(self, name) <= high:
                raise UserError(f"objective.{name}={getattr(self, name)}: from {low} to {high}.")
        for name, usual in (("epsilon", 0.15), ("trust_epsilon", 0.1), ("trust_share", 0.7)):
            if getattr(self, name) <= 0:
                value = getattr(self, name)
                raise UserError(f"objective.{name}={value}: must be positive, for example {usual}")
        if self.trust_share > 1:
            raise UserError(f"objective.trust_share={self.trust_share}: at most 1, which is all.")
        if self.alpha < 1 and self.teacher == "none":
            raise UserError(
                f"objective.alpha={self.alpha} leaves {1 - self.alpha:g} of the loss to a teacher, "
                'but objective.teacher="none". Set alpha=1 or choose a teacher.'
            )
        if self.match == "sigmoid" and self.teacher != "none":
            raise UserError(
                f'objective.match="sigmoid" has no rows that sum to 1, as the targets of '
                f'objective.teacher="{self.teacher}" have. Set objective.match="softmax".'
            )

    @property
    def has_teacher(self) -> bool:
        """Tells whether a teacher looks at each batch: to set targets, or to say whom to trust."""
        return self.teacher != "none" or self.trust != ""

    def pair_targets(self, rows: Int[Array, " b"], batch_size: int) -> Float[Array, "b B"]:
        """Returns the targets of the given pairs: 1 - smoothing on each, the rest spread evenly."""
        off = self.smoothing / max(batch_size - 1, 1)
        return jnp.where(_is_own(rows, batch_size), 1 - self.smoothing, off)

    def teacher_plans(
        self, img: Float[Array, "b D"], txt: Float[Array, "b D"], *, axis_name: str | None = None
    ) -> ByDirection:
        """Returns how the teacher spreads a mass of 1 over all B * B matches, per direction.

        With `trust` there is also "trust": which part of its share a given pair keeps, 0 to 1.
        """
        rows, all_img, all_txt = _gather(img, txt, axis_name)
        across = jnp.stack([_dot(img, all_txt), _dot(txt, all_img)])
        kept = {"trust": self._kept(across, rows, axis_name)} if self.trust else {}
        if self.teacher == "none":
            return kept
        within = self.image_weight * _dot(img, all_img) + self.text_weight * _dot(txt, all_txt)
        affinity = within + self.cross_weight * across
        if self.diagonal != "keep":
            B = affinity.shape[-1]
            # The release takes eye(b, B) out on each process; only on the first is it the diagonal.
            blocks = self.num_processes if self.diagonal == "per_process" else 1
            affinity -= REMOVED * _is_own(rows % (B // blocks), B)
        if self.teacher == "transport":
            plans = ot.sinkhorn(
                -affinity, epsilon=self.epsilon, num_iters=self.num_iters, axis_name=axis_name
            )
        else:
            plans = jax.nn.softmax(self.teacher_scale * affinity) / affinity.shape[-1]
        return {"image": plans[0], "text": plans[1]} | kept

    def teacher_targets(
        self, img: Float[Array, "b D"], txt: Float[Array, "b D"], *, axis_name: str | None = None
    ) -> ByDirection:
        """Returns the teacher's targets, per direction; every row sums to 1. Trust is as it was."""
        return targets_of(self.teacher_plans(img, txt, axis_name=axis_name))

    def weights(
        self, trust: Float[Array, " b"], *, axis_name: str | None = None
    ) -> Float[Array, " b"]:
        """Returns how much each given pair counts, from the teacher's trust in it.

        That is its trust, divided by the mean over the batch, at most `trust_limit`; of
        "small_loss" the same for the trusted share of the batch, and 0 for the others.
        """
        if self.trust != "small_loss":
            mean = lax.pmean(trust.mean(), axis_name) if axis_name else trust.mean()
            return jnp.minimum(trust / jnp.maximum(mean, 1e-9), self.trust_limit)
        every = lax.all_gather(trust, axis_name, tiled=True) if axis_name else trust
        kept = max(1, round(self.trust_share * every.shape[0]))
        return jnp.where(trust >= jnp.sort(every)[-kept], every.shape[0] / kept, 0.0)

    def _kept(self, cosines, rows, axis_name):
        """Returns which part of its share each given pair keeps when the teacher matches [b].

        "transport" moves images to texts, the diagonal kept. The others are means over both
        directions of the plain match: arithmetic, or of "small_loss" geometric, which is
        exp(-loss / 2) of the pair.
        """
        if self.trust == "transport":
            plan = ot.sinkhorn(
                -cosines[:1],
                epsilon=self.trust_epsilon,
                num_iters=self.num_iters,
                axis_name=axis_name,
            )
            match = plan / plan.sum(axis=-1, keepdims=True)
        else:
            match = jax.nn.softmax(cosines / self.trust_epsilon)
        own = (match * _is_own(rows, match.shape[-1])).sum(axis=-1)
        return jnp.sqrt(own[0] * own[1]) if self.trust == "small_loss" else own.mean(axis=0)

    def loss(
        self,
        img: Float[Array, "b D"],
        txt: Float[Array, "b D"],
        targets: ByDirection | None,
        log_scale: dict[str, Float[Array, ""]],
        *,
        axis_name: str | None = None,
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Returns the loss, and its terms before weighting.

        All are means over rows, the two directions summed. `log_scale` holds the logarithms of the
        inverse temperatures of "pairs" and "teacher". Of a sigmoid, whose teacher term is not
        there, the scale of "teacher" is minus the bias: SigLIP starts at 10 and -10.
        """
        rows, all_img, all_txt = _gather(img, txt, axis_name)
        if not self.negatives_gradient:
            all_img, all_txt = lax.stop_gradient((all_img, all_txt))
        cosines = {"image": _dot(img, all_txt), "text": _dot(txt, all_img)}

        pairs = self.pair_targets(rows, all_img.shape[0])
        trusted = pairs
        if self.trust:
            trusted *= self.weights(targets["trust"], axis_name=axis_name)[:, None]
        if self.match == "sigmoid":
            of_pairs = functools.partial(sigmoid_loss, trusted, 1 - pairs, log_scale=log_scale)
        else:
            of_pairs = functools.partial(cross_entropy, trusted, log_scale=log_scale["pairs"])
        terms = {"pairs": sum(map(of_pairs, cosines.values()))}
        loss = self.alpha * terms["pairs"]
        if self.teacher != "none":
            scale = log_scale["teacher" if self.temperatures == 2 else "pairs"]
            terms["teacher"] = sum(kl_divergence(targets[k], c, scale) for k, c in cosines.items())
            loss += (1 - self.alpha) * terms["teacher"]
        # All devices hold equally many rows, so the mean over them is the mean over the batch.
        return lax.pmean((loss, terms), axis_name) if axis_name else (loss, terms)


# Published: arXiv:2112.09445, section 4. "kd" matches V T' alone, as arXiv:2104.08945 defines it;
# the OTTER release adds V V' and T T' (image_weight = text_weight = 1), whose diagonal of 2 turns
# its targets into the identity to six digits.
PUBLISHED = {
    "infonce": Objective(),
    "ls": Objective(smoothing=0.1),
    "kd": Objective(
        alpha=0.5, teacher="softmax", image_weight=0.0, text_weight=0.0, diagonal="keep"
    ),
    "otter": Objective(alpha=0.5, teacher="transport"),
}
# Others, to compare with: the sigmoid loss of arXiv:2303.15343, and targets from similarities
# within each modality alone, in the spirit of arXiv:2303.17561. Ours: trust alone, and with OTTER;
# their scales start at 10, where captions are wrong the better start (docs/results.md).
METHODS = PUBLISHED | {
    "siglip": Objective(match="sigmoid", log_scale=math.log(10)),
    "softclip": Objective(alpha=0.5, teacher="softmax", teacher_scale=10.0, cross_weight=0.0),
    "trust": Objective(trust="softmax", log_scale=math.log(10)),
    "trust_otter": Objective(
        alpha=0.8, teacher="transport", trust="softmax", log_scale=math.log(10)
    ),
}


def scale_of(log_scale: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Returns the inverse temperature: exp(log_scale), kept in [1, 100].

    At a bound itself the whole gradient passes, as in PyTorch; jnp.clip would halve it.
    """
    scale = jnp.exp(log_scale)
    least, most = LIMITS
    return jnp.where(scale < least, least, jnp.where(scale > most, most, scale))


def clamp_log_scale(log_scale: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Moves log_scale to where `scale_of` has a gradient, if it is beyond.

    Outside [1, 100] the gradient of a scale is 0, and it could never come back by itself.
    """
    least, most = (math.log(limit) for limit in LIMITS)
    return jnp.clip(log_scale, least, most - 1e-6)  # whose exp, rounded, is not above the limit


def cross_entropy(
    target: Float[Array, "b B"], cosines: Float[Array, "b B"], log_scale: Float[Array, ""]
) -> Float[Array, ""]:
    """Computes -sum target * log softmax(scale * cosines), mean over rows, in nats."""
    log_match = jax.nn.log_softmax(scale_of(log_scale) * cosines)
    return -jnp.mean(jnp.sum(target * log_match, axis=-1))


def sigmoid_loss(
    pairs: Float[Array, "b B"],
    others: Float[Array, "b B"],
    cosines: Float[Array, "b B"],
    log_scale: dict[str, Float[Array, ""]],
) -> Float[Array, ""]:
    """Computes -sum pairs * log sigmoid(z) + others * log sigmoid(-z), mean over rows, in nats.

    z = scale * cosines + bias; the scale of "teacher" is minus the bias (arXiv:2303.15343).
    """
    z = scale_of(log_scale["pairs"]) * cosines - scale_of(log_scale["teacher"])
    log_match = pairs * jax.nn.log_sigmoid(z) + others * jax.nn.log_sigmoid(-z)
    return -jnp.mean(jnp.sum(log_match, axis=-1))


def kl_divergence(
    target: Float[Array, "b B"], cosines: Float[Array, "b B"], log_scale: Float[Array, ""]
) -> Float[Array, ""]:
    """Computes KL(target || softmax(scale * cosines)), mean over rows, in nats; 0 log 0 is 0."""
    return cross_entropy(target, cosines, log_scale) - jnp.mean(_entropy(target))


def targets_of(plans: ByDirection) -> ByDirection:
    """Divides each row of the plans by its sum, which makes it the target of a student's row."""
    return {
        k: plan if k == "trust" else plan / plan.sum(axis=-1, keepdims=True)
        for k, plan in plans.items()
    }


def health(plans: ByDirection) -> dict[str, Float[Array, ""]]:
    """Returns measures of what a teacher sees, the first three over both directions.

    row_error: largest |B * row sum - 1| of a plan: 0 when Sinkhorn has converged;
    target_entropy: mean entropy of a target row in nats: 0 is one match each, ln B is no opinion;
    own_mass: mean target on the given pair: 0 when the diagonal is removed;
    trust: mean part that a given pair keeps of its share: 1 / B is no opinion, 1 is full trust;
    distrusted: share of the given pairs that keep less than half of this mean.
    """
    found = {}
    if "trust" in plans:
        trust = plans["trust"]
        found |= {"trust": trust.mean(), "distrusted": (2 * trust < trust.mean()).mean()}
    if "image" not in plans:
        return found
    plan = jnp.stack([plans["image"], plans["text"]])
    rows = plan.sum(axis=-1, keepdims=True)
    target = plan / rows
    B = plan.shape[-1]
    return found | {
        "row_error": jnp.abs(B * rows - 1).max(),
        "target_entropy": _entropy(target).mean(),
        "own_mass": (target * _is_own(jnp.arange(B), B)).sum(axis=-1).mean(),
    }


def _entropy(target):
    return -jax.scipy.special.xlogy(target, target).sum(axis=-1)


def _is_own(rows, batch_size):
    return rows[:, None] == jnp.arange(batch_size)


def _dot(a, b):
    # TF32, the default of recent GPUs, errs by 1e-3 in a cosine: 1e-2 in the exponent here.
    return jnp.matmul(a, b.T, precision=lax.Precision.HIGHEST)


def _gather(img, txt, axis_name):
    """Returns the numbers of this device's rows, and the embeddings of the whole batch."""
    rows = jnp.arange(img.shape[0])
    if axis_name is None:
        return rows, img, txt
    together = lax.all_gather(jnp.concatenate([img, txt], axis=1), axis_name, tiled=True)
    all_img, all_txt = jnp.split(together, [img.shape[1]], axis=1)
    return rows + lax.axis_index(axis_name) * img.shape[0], all_img, all_txt
