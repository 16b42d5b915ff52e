"""Moments of q(z), in closed form from the rows' Gaussians."""

from __future__ import annotations

import torch
from torch import Tensor

from latentfit.model.rows import CodeRows

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

    E z = mean of means; Cov z = covariance of means + diag mean of variances. The correlations are shrunk as
    if D + 1 further rows with the same variances and no correlation had been seen, which keeps N < D
    well-posed.
    """
    n, dim = rows.mean.shape
    centre, variance = moments(rows)
    covariance = torch.zeros(dim, dim, dtype=torch.float64)
    for mean in rows.mean.split(BLOCK_ROWS):
        offset = mean.cpu().double() - centre
        covariance += offset.T @ offset / n
    diagonal = torch.diag(variance)
    share = n / (n + dim + 1)
    covariance.fill_diagonal_(0.0)
    return centre, share * covariance + diagonal
