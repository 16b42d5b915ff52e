"""Mixtures whose components are given: their density in blocks of rows, their draws."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Generator, Tensor

from latentfit.networks.products import dense
from latentfit.priors.components import LEAST_LOG, component_log_prob, diagonal_product
from latentfit.priors.foreign import generator_as_global
from latentfit.training.rng import standard_normal

#: numbers in one block of rows by components: 16 MB in float32, and 256 MB where kernels are launched
BLOCK, BLOCK_ON_DEVICE = 1 << 22, 1 << 26
#: rows and terms of a tile: 1 MB in float32
TILE = (256, 1_000)


def rows_at_once(z: Tensor, n_components: int) -> int:
    """Rows of a block for so many components, on the device of z."""
    return max(1, (BLOCK if z.device.type == "cpu" else BLOCK_ON_DEVICE) // n_components)


def log_sum_exp_of_product(left: Tensor, right: Tensor) -> Tensor:
    """log sum_m exp(left @ right): (R, D), (D, M) -> (R,).

    Where `right` needs no gradient, in tiles that stay in the cache, sums rescaled as larger terms come: twice as fast
    for 25,000 terms as passes over whole rows, and nothing of size R M is kept for a gradient to `left`.
    """
    if torch.is_grad_enabled() and right.requires_grad:
        blocks = left.split(rows_at_once(left, right.shape[1]))
        return torch.cat([(rows @ right).logsumexp(-1) for rows in blocks])
    if torch.is_grad_enabled() and left.requires_grad:
        return _LogSumExp.apply(left, right)
    return _tiled(left, right, False)[0]


class _LogSumExp(torch.autograd.Function):
    """The gradient by a row of `left` is the mean of the columns of `right`, weighted by their terms."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor) -> Tensor:
        value, mean = _tiled(left, right, True)
        ctx.save_for_backward(mean)
        return value

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (mean,) = ctx.saved_tensors
        return gradient.unsqueeze(-1) * mean, None


def _tiled(left: Tensor, right: Tensor, with_mean: bool) -> tuple[Tensor, Tensor]:
    """log sum_m exp(left @ right) (R,), and the mean of the columns by these terms (R, D) where it is asked for."""
    on_cpu = left.device.type == "cpu"
    n_rows, n_columns = TILE if on_cpu else (rows_at_once(left, right.shape[1]), right.shape[1])
    tiles, values, means = right.split(n_columns, 1), [], []
    for rows in left.split(n_rows):
        peak, total = rows.new_full((len(rows), 1), -math.inf), rows.new_zeros(len(rows), 1)
        mean = torch.zeros_like(rows)
        for tile in tiles:
            terms = dense(rows, tile.T)
            higher = torch.maximum(peak, terms.amax(1, keepdim=True))
            decay, terms = (peak - higher).exp(), terms.sub_(higher).clamp_min_(LEAST_LOG).exp_()
            total = total * decay + terms.sum(1, keepdim=True)
            if with_mean:
                mean = torch.addmm(mean * decay, terms, tile.T)
            peak = higher
        values.append((peak + total.log()).squeeze(1))
        means.append(mean / total)
    return torch.cat(values), torch.cat(means)


def log_mixture(z: Tensor, log_weight: Tensor, mean: Tensor, factor: Tensor) -> Tensor:
    """log sum_k w_k N(z; m_k, C_k): z (..., D) -> (...), the rest as of `pick` and `around`.

    In blocks, so that without gradients memory does not grow with rows times components. With diagonal C_k the terms
    are one product.
    """
    rows = z.reshape(-1, z.shape[-1])
    if factor.dim() == 2:
        left, right = diagonal_product(rows, mean, factor)
        right = torch.cat((right[:, :-1], right[:, -1:] + log_weight[:, None]), 1)
        return log_sum_exp_of_product(left, right.T).view(z.shape[:-1])
    blocks = rows.split(rows_at_once(rows, len(mean)))
    parts = [(component_log_prob(block, mean, factor) + log_weight).logsumexp(-1) for block in blocks]
    return torch.cat(parts).view(z.shape[:-1])


def stretches(freedom: Tensor, n: int, generator: Generator | None) -> Tensor:
    """sqrt(f / chi^2_f), which makes Gaussian noise a Student-t's: f scalar or (n,) -> (n,), float64 on the CPU."""
    half = 0.5 * freedom.detach().double().cpu().expand(n)
    with generator_as_global(generator):
        return (half / torch.distributions.Gamma(half, torch.ones_like(half)).sample()).sqrt()


def pick(log_weight: Tensor, n: int, generator: Generator | None) -> Tensor:
    """Components of n draws: log weights (K,) -> (n,) on the weights' device."""
    weight = log_weight.detach().exp()
    if generator is not None:
        weight = weight.to(generator.device)
    which = torch.multinomial(weight, max(n, 1), replacement=True, generator=generator)[:n]
    return which.to(log_weight.device)


def around(which: Tensor, mean: Tensor, factor: Tensor, noise: Tensor) -> Tensor:
    """m_k + W_k^{-1} noise for each draw's component k.

    Args:
        which: (n,).
        mean: (K, D).
        factor: W_k, lower triangular (K, D, D), or its diagonal (K, D).
        noise: (n, D).

    Returns:
        (n, D).
    """
    if factor.dim() == 2:
        return mean[which] + noise / factor[which]
    z = torch.empty_like(noise)
    for k in which.unique():  # a solve per component: gathering factors would be (n, D, D)
        rows = (which == k).nonzero().squeeze(-1)
        z[rows] = mean[k] + torch.linalg.solve_triangular(factor[k], noise[rows].T, upper=False).T
    return z


def draws(log_weight: Tensor, mean: Tensor, factor: Tensor, n: int, generator: Generator | None = None) -> Tensor:
    """n draws of a mixture of Gaussians, arguments as of `pick` and `around`: (n, D)."""
    noise = standard_normal((n, mean.shape[1]), mean, generator)
    return around(pick(log_weight, n, generator), mean, factor, noise)
