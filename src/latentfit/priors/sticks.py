r"""Stick-breaking weights: pi_k = v_k prod_{j<k} (1 - v_j), v_k ~ Beta(1, alpha), the last v being 1.

n_k rows in each of K components, in the order of the sticks, give v_k ~ Beta(1 + n_k, alpha + n_{k+1} + ... + n_K).
Everything is in float64. Source: Blei & Jordan (2006), Variational inference for Dirichlet process mixtures,
Bayesian Analysis 1, with Ishwaran & James (2001)'s truncation.
"""

from __future__ import annotations

import torch
from torch import Tensor


def log_mean_weights(n: Tensor, alpha: float) -> Tensor:
    """log E pi_k: counts (..., K) -> (..., K)."""
    a, b = _posterior(n, alpha)
    return _weights((a / (a + b)).log(), (b / (a + b)).log())


def mean_log_weights(n: Tensor, alpha: float) -> Tensor:
    """E log pi_k: counts (..., K) -> (..., K)."""
    a, b = _posterior(n, alpha)
    both = torch.digamma(a + b)
    return _weights(torch.digamma(a) - both, torch.digamma(b) - both)


def divergence(n: Tensor, alpha: float) -> Tensor:
    """KL of the sticks' posterior from their prior: counts (..., K) -> (...), nats."""
    a, b = _posterior(n, alpha)
    both = torch.digamma(a + b)
    one = torch.ones_like(a)
    pull = (a - 1) * (torch.digamma(a) - both) + (b - alpha) * (torch.digamma(b) - both)
    return (_log_beta(one, alpha * one) - _log_beta(a, b) + pull).sum(-1)


def _posterior(n: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Both parameters of the first K - 1 sticks: (..., K - 1)."""
    n = n.double()
    after = n.flip(-1).cumsum(-1).flip(-1) - n
    return 1 + n[..., :-1], alpha + after[..., :-1]


def _weights(log_taken: Tensor, log_left: Tensor) -> Tensor:
    """log of v_k prod (1 - v_j) from log v and log(1 - v) of the first K - 1: (..., K)."""
    zero = (
        torch.zeros_like(log_taken[..., :1]) if log_taken.shape[-1] else log_taken.new_zeros(*log_taken.shape[:-1], 1)
    )
    left = torch.cat((zero, log_left.cumsum(-1)), -1)
    return torch.cat((log_taken, zero), -1) + left


def _log_beta(a: Tensor, b: Tensor) -> Tensor:
    return a.lgamma() + b.lgamma() - (a + b).lgamma()
