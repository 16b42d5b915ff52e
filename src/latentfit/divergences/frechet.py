"""The Frechet distance between Gaussians fitted to two samples."""

from __future__ import annotations

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from latentfit.divergences.samples import two_samples


def frechet_distance(a: ArrayLike | Tensor, b: ArrayLike | Tensor) -> float:
    r"""The squared Frechet (2-Wasserstein) distance of Gaussians fitted to two samples, what FID is made of.

    |m_a - m_b|^2 + tr C_a + tr C_b - 2 tr (C_a C_b)^{1/2}. With A = R_a^T R_a the scatter's QR form the last
    trace is the sum of the singular values of R_a R_b^T: no square root of a nearly singular product, exact
    for n < D as well.

    Args:
        a: (n, D), n >= 2.
        b: (m, D), m >= 2.

    Returns:
        The distance in the squared units of the samples. It is biased upward at finite n: compare only at
        equal n.

    Raises:
        InputError: other shapes, fewer than two rows, or entries that are not finite.

    Source: Dowson & Landau (1982); Heusel et al. (2017), arXiv:1706.08500.

    Example:
        >>> x = torch.tensor([[0.0], [2.0]])
        >>> round(frechet_distance(x, x + 3.0), 6)
        9.0
    """
    x, y = two_samples("frechet_distance", a, b)
    mean_a, factor_a = _moments(x)
    mean_b, factor_b = _moments(y)
    cross = torch.linalg.svdvals(factor_a @ factor_b.T).sum()
    spread = factor_a.square().sum() + factor_b.square().sum() - 2 * cross
    # the true value is never negative; rounding can make it -1e-16
    return max(0.0, ((mean_a - mean_b).square().sum() + spread).item())


def _moments(sample: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and R (min(n, D), D) with R^T R the unbiased covariance, in float64."""
    sample = sample.cpu().double()
    mean = sample.mean(0)
    return mean, torch.linalg.qr((sample - mean) / (len(sample) - 1) ** 0.5, mode="r").R
