"""Moments of q(z), in closed form from the rows' Gaussians."""

from __future__ import annotations

import torch
from torch import Tensor

from latentfit.model.rows import CodeRows
from latentfit.priors.normal_wishart import rows_without_correlation

#: rows in float64 at once
BLOCK_ROWS = 16_384


def moments(rows: CodeRows) -> tuple[Tensor, Tensor]:
    r"""Mean and variances of q(z), in float64 on the CPU, in blocks of rows: (D,), (D,)."""
    n, dim = rows.mean.shape
    centre, variance = torch.zeros(dim, dtype=torch.float64), torch.zeros(dim, dtype=torch.float64)
    for block in rows.mean.split(BLOCK_ROWS):
        centre += block.double().sum(0).cpu() / n
    for mean, std in zip(rows.mean.split(BLOCK_ROWS), rows.std.split(BLOCK_ROWS), strict=True):
        variance += ((mean.cpu().double() - centre).square().sum(0) + std.cpu().double().square().sum(0)) / n
    return centre, variance


def exact_moments(rows: CodeRows) -> tuple[Tensor, Tensor]:
    r"""Mean and covariance of q(z) in closed form, in float64 on the CPU: (D,), (D, D).

    E z = mean of means; Cov z = covariance of means + mean of covariances. The variances are exact. The correlations
    are shrunk by n / (n + s), as if s further rows without any had been seen, s by the evidence
    (`rows_without_correlation`): N < D stays well-posed, and units that nearly determine each other stay so.
    """
    n = len(rows)
    centre, variance = moments(rows)
    covariance = scatter(rows, centre) / n
    covariance.diagonal().copy_(variance)
    scale = variance.sqrt().clamp_min(torch.finfo(torch.float64).tiny)
    s = rows_without_correlation(covariance / scale / scale[:, None], n)
    covariance *= n / (n + s)
    covariance.diagonal().copy_(variance)
    return centre, covariance


def scatter(rows: CodeRows, centre: Tensor) -> Tensor:
    r"""Sum over rows of E (z - centre)(z - centre)^T, in float64 on the CPU; without the variances: (D, D).

    Its diagonal is that of the means alone (`moments` has the whole).
    """
    dim = rows.mean.shape[1]
    total = torch.zeros(dim, dim, dtype=torch.float64)
    for mean in rows.mean.split(BLOCK_ROWS):
        offset = mean.cpu().double() - centre
        total += offset.T @ offset
    if rows.factor is not None:
        for factor in rows.factor.split(max(1, BLOCK_ROWS // dim)):
            flat = factor.cpu().double().transpose(0, 1).flatten(1)  # (D, B R)
            total += flat @ flat.T
    return total
