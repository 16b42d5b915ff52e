"""How heavy the tail of importance weights is: the k of a generalised Pareto distribution."""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: above it the estimate converges too slowly to be used as it stands
RELIABLE_K = 0.7


def pareto_k(log_weights: Tensor, dim: int = 0) -> Tensor:
    r"""Shape k of the generalised Pareto distribution fitted to the largest importance weights.

    The tail holds min(S / 5, 3 sqrt(S)) weights. k < 0.5: finite variance; k > 0.7: the estimate is not to be
    trusted. k is nan where fewer than five weights make the tail (S < 25), and 0 where all tail weights are
    equal.

    Args:
        log_weights: log-weights along `dim` (S of them), any other dimensions.
        dim: which dimension holds the S draws.

    Returns:
        k with `dim` removed, float64.

    Source: Vehtari, Simpson, Gelman, Yao & Gabry 2024, arXiv 1507.02646; the fit is Zhang & Stephens 2009,
    with the weak prior of ten observations at k = 0.5.

    >>> generator = torch.Generator().manual_seed(0)
    >>> log_w = 0.5 * torch.empty(100_000).exponential_(generator=generator)  # Pareto weights, k = 0.5
    >>> abs(float(pareto_k(log_w)) - 0.5) < 0.05
    True
    """
    log_w = log_weights.double().movedim(dim, -1)  # (..., S)
    s = log_w.shape[-1]
    tail = min(s // 5, math.ceil(3 * math.sqrt(s)))
    if tail < 5:
        return torch.full(log_w.shape[:-1], math.nan, dtype=torch.float64, device=log_w.device)
    log_w = log_w - log_w.amax(-1, keepdim=True)
    top = log_w.topk(tail + 1, dim=-1).values.flip(-1)  # ascending: the cut-off, then the tail
    x = (top[..., 1:].exp() - top[..., :1].exp()).clamp_min(0)  # (..., M), exceedances
    return _zhang_stephens(x)


def _zhang_stephens(x: Tensor) -> Tensor:
    """k of ascending exceedances x (..., M): the mean of the profile posterior on a grid."""
    m = x.shape[-1]
    n_grid = 30 + int(math.sqrt(m))
    largest = x[..., -1:]
    quartile = x[..., int(m / 4 + 0.5) - 1].unsqueeze(-1)
    degenerate = (largest <= 0).squeeze(-1)
    tiny = torch.finfo(x.dtype).tiny
    largest, quartile = (
        largest.clamp_min(tiny),
        torch.where(quartile > 0, quartile, largest.clamp_min(tiny) * 1e-12),
    )
    grid = torch.arange(1, n_grid + 1, dtype=x.dtype, device=x.device)
    b = (1 - torch.sqrt(n_grid / (grid - 0.5))) / (3 * quartile) + 1 / largest  # (..., G)
    k = torch.log1p(-b.unsqueeze(-1) * x.unsqueeze(-2)).mean(-1)  # (..., G)
    profile = m * (torch.log(-b / k) - k - 1)
    profile = torch.where(profile.isnan(), -math.inf, profile)
    b_mean = (torch.softmax(profile, -1) * b).sum(-1, keepdim=True)  # (..., 1)
    k_hat = torch.log1p(-b_mean * x).mean(-1)
    k_hat = (k_hat * m + 10 * 0.5) / (m + 10)
    return torch.where(degenerate, 0.0, k_hat)
