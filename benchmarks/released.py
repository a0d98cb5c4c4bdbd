"""The released algorithm in PyTorch: what it computes between encoders and optimiser.

Written from its description (docs/fidelity.md and the golden data of the tests), in the order of
its operations: four similarities, two transports of whole matrices, two losses of either kind.
"""

import torch
import torch.nn.functional as F

REMOVED = 100.0  # taken off the diagonal of image-image and of text-text similarities


def sinkhorn(cost: torch.Tensor, epsilon: float, num_iters: int) -> torch.Tensor:
    """Scales exp(-cost / epsilon) to rows of 1/M, then columns of 1/N, so many times."""
    plan = torch.exp(-cost / epsilon)
    plan = plan / plan.sum()
    M, N = plan.shape
    for _ in range(num_iters):
        plan = plan / plan.sum(1, keepdim=True) / M
        plan = plan / plan.sum(0, keepdim=True) / N
    return plan


@torch.no_grad()
def teach(img: torch.Tensor, txt: torch.Tensor, epsilon: float = 0.15, num_iters: int = 5):
    """Returns the targets of images and of texts."""
    own = REMOVED * torch.eye(len(img), device=img.device, dtype=img.dtype)
    images, texts = img @ img.T - own, txt @ txt.T - own
    costs = -(images + texts + img @ txt.T), -(images + texts + txt @ img.T)
    plans = [sinkhorn(cost, epsilon, num_iters) for cost in costs]
    return [plan / plan.sum(1, keepdim=True) for plan in plans]


def loss(img, txt, targets, log_scales, alpha: float = 0.5) -> torch.Tensor:
    """Returns alpha * InfoNCE + (1 - alpha) * KL(targets, match), both directions summed."""
    of_pairs, of_teacher = (scale.exp().clamp(1, 100) for scale in log_scales)
    labels = torch.arange(len(img), device=img.device)
    pairs = teacher = 0.0
    for cosines, target in zip((img @ txt.T, txt @ img.T), targets, strict=True):
        pairs = pairs + F.cross_entropy(of_pairs * cosines, labels)
        match = F.log_softmax(of_teacher * cosines, dim=1)
        teacher = teacher + F.kl_div(match, target, reduction="sum") / len(img)
    return alpha * pairs + (1 - alpha) * teacher
