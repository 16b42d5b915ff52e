"""Gaussian components by matrix products."""

from __future__ import annotations

import torch
from torch import Tensor

from latentfit.model.contracts import LOG_2PI
from latentfit.networks.products import dense

#: numbers in one block of whitened rows (R, K D): 2 MB in float32; what leaves the cache takes three times as long
BLOCK = 1 << 19
#: terms of a sum this far below the largest are cut: exponentials of smaller ones are denormal numbers, which are slow
LEAST_LOG = -60.0


def component_log_prob(z: Tensor, mean: Tensor, factor: Tensor) -> Tensor:
    r"""log N(z; m_k, C_k) for every row and component, with C_k^{-1} = W_k^T W_k.

    |W_k (z - m_k)|^2 for all k is one product (R, D) x (D, K D) and a sum of squares, in blocks of rows, so
    memory does not grow with R K D. With diagonal W_k see `diagonal_product`.

    Args:
        z: (R, D).
        mean: m_k (K, D).
        factor: W_k, lower triangular (K, D, D), or its diagonal (K, D).

    Returns:
        (R, K), in nats.
    """
    n_components, dim = mean.shape
    if factor.dim() == 2:
        return dense(*diagonal_product(z, mean, factor))
    log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    weight = factor.reshape(n_components * dim, dim)
    bias = -(factor @ mean.unsqueeze(-1)).reshape(-1)
    block = max(1, BLOCK // (n_components * dim))
    energies = [
        dense(rows, weight, bias).unflatten(-1, (n_components, dim)).square().sum(-1) for rows in z.split(block)
    ]
    energy = energies[0] if len(energies) == 1 else torch.cat(energies)
    return log_det - 0.5 * (energy + dim * LOG_2PI)


def diagonal_product(z: Tensor, mean: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    """Rows whose inner products are log N(z; m_k, C_k), W_k diagonal: (R, 2 D + 1) of z, (K, 2 D + 1) of components.

    (z^2, z, 1) and their coefficients, with z centred first against cancellation; the constants are the last column.
    """
    centre = mean.detach().mean(0)
    z, offset, precision = z - centre, mean - centre, factor.square()
    constant = factor.log().sum(-1) - 0.5 * ((precision * offset.square()).sum(-1) + mean.shape[1] * LOG_2PI)
    left = torch.cat((z.square(), z, torch.ones_like(z[:, :1])), 1)
    return left, torch.cat((-0.5 * precision, precision * offset, constant[:, None]), 1)


def first_means(n_components: int, dim: int) -> Tensor:
    """Means (K, D) 0.1 from the origin, so that components can part, the same in every process; one is at it."""
    generator = torch.Generator().manual_seed(0)
    return 0.1 * torch.randn(n_components, dim, generator=generator) if n_components > 1 else torch.zeros(1, dim)


def have_parted(mean: Tensor) -> bool:
    """Whether components moved from `first_means`; one component has nothing to part from."""
    return len(mean) == 1 or not torch.equal(mean.detach(), first_means(*mean.shape).to(mean))
