"""Writes the log line of contrastive training."""

from otter_jax.objective import LIMITS
from otter_jax.run.console import duration
from otter_jax.training.meters import Metrics


def of(now: int, steps: int, m: Metrics) -> str:
    """Returns the line of step `now`: loss, terms, scales, what the teacher sees, speed."""
    terms, scales, seen = f"pairs {m['pairs']:.3f}", _scale(m["scale_pairs"]), ""
    if "teacher" in m:
        terms += f", teacher {m['teacher']:.3f}"
        scales += f", {_scale(m['scale_teacher'])}"
        seen = (
            f"target entropy {m['target_entropy']:.2f}, own mass {m['own_mass']:.2f},"
            f" row error {m['row_error']:.1e} | "
        )
    if "trust" in m:
        seen = seen and f"{seen.removesuffix(' | ')}\n    "  # the line would be too long
        seen += f"trust {m['trust']:.2f}, distrusted {m['distrusted']:.0%} | "
    return (
        f"step {now}/{steps} epoch {m['epoch']:.1f} | loss {m['loss']:.3f} ({terms}) |"
        f" scale {scales}\n    {seen}{m['pairs_per_second']:.0f} pairs/s, data wait"
        f" {m['data_wait']:.0%} | left {duration(m['seconds_left'])}"
    )


def _scale(value: float) -> str:
    """Returns an inverse temperature as text, and says so if it is at a limit."""
    least, most = LIMITS
    at = "" if least + 1e-4 < value < most - 1e-2 else " (at its limit)"
    return f"{value:.1f}{at}"
