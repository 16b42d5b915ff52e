"""The sliced Wasserstein distance."""

from __future__ import annotations

import torch
from numpy.typing import ArrayLike
from torch import Generator, Tensor

from latentfit.divergences.samples import slices, two_samples
from latentfit.errors import InputError

#: projected numbers sorted at once
NUMBERS_AT_ONCE = 2**20


def sliced_wasserstein(
    a: ArrayLike | Tensor, b: ArrayLike | Tensor, *, n_projections: int = 200, random_state: int = 0
) -> float:
    r"""sqrt(E_u W_2^2(u'a, u'b)), u uniform on the unit sphere: a Wasserstein distance that sorting finds.

    In one dimension W_2^2 is the integral of the squared difference of the quantile functions, exact for n != m too.

    Args:
        a: (n, D).
        b: (m, D).
        n_projections: directions u; the Monte Carlo error falls with their square root.
        random_state: of the directions.

    Returns:
        The distance in the units of the samples. It is biased upward at finite n: compare only at equal n.

    Raises:
        InputError: other shapes, entries that are not finite, no projections.

    Source: Rabin et al. (2012); Bonneel et al. (2015), Journal of Mathematical Imaging and Vision 51.

    Example:
        >>> x = torch.zeros(5, 1)
        >>> round(sliced_wasserstein(x, x[:3] + 2), 6)
        2.0
    """
    if n_projections < 1:
        raise InputError(f"sliced_wasserstein: n_projections must be at least 1, got {n_projections}.")
    x, y = two_samples("sliced_wasserstein", a, b)
    directions = unit_vectors(n_projections, x, Generator().manual_seed(random_state))
    size = max(1, NUMBERS_AT_ONCE // (len(x) + len(y)))
    total = sum(
        squared_differences(x, y, directions[part]).double().sum().item() for part in slices(n_projections, size)
    )
    return float((total / n_projections) ** 0.5)


def unit_vectors(n: int, like: Tensor, generator: Generator | None = None) -> Tensor:
    """n directions uniform on the sphere: (n, D), with the dtype and device of `like` (..., D)."""
    device = like.device if generator is None else generator.device
    noise = torch.randn(n, like.shape[-1], generator=generator, device=device, dtype=like.dtype)
    return torch.nn.functional.normalize(noise, dim=-1).to(like.device)


def squared_differences(x: Tensor, y: Tensor, directions: Tensor) -> Tensor:
    """W_2^2 along each direction, with a gradient: x (n, D), y (m, D), directions (L, D) -> (L,)."""
    u, v = ((directions @ sample.T).sort(dim=1).values for sample in (x, y))  # (L, n), (L, m)
    n, m = u.shape[1], v.shape[1]
    if n == m:
        return (u - v).square().mean(1)
    # both quantile functions are constant between these levels, counted in steps of 1 / (n m)
    levels = torch.cat([torch.arange(n, device=x.device) * m, torch.arange(m, device=x.device) * n]).unique()
    widths = torch.diff(levels, append=levels.new_tensor([n * m])).to(x.dtype) / (n * m)
    return ((u[:, levels // m] - v[:, levels // n]).square() * widths).sum(1)
