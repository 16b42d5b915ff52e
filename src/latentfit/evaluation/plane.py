"""The plane in which the codes and a prior's draws are looked at: where they differ most, and the codes' own width."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from latentfit.errors import InputError
from latentfit.evaluation.rows import to_numpy

#: random directions tried beside the coordinates and the principal axes, and steps uphill from the best of all
DIRECTIONS, STEPS = 256, 100
#: rows that choose the plane
ROWS = 2_000


@dataclass(frozen=True)
class Plane:
    """Two orthonormal directions in the space of codes, flattened to D.

    Attributes:
        center: (D,) mean of the codes.
        axes: (D, 2): the worst direction, and the codes' first principal axis across it.
        distance: Wasserstein distance of codes and draws along the worst direction, in units of z.
    """

    center: Tensor
    axes: Tensor
    distance: float

    def of(self, z: Tensor) -> np.ndarray:
        """Coordinates in the plane: z (n, *event_shape) -> (n, 2)."""
        return to_numpy((z.flatten(1).to(self.center) - self.center) @ self.axes)


def worst_plane(codes: Tensor, draws: Tensor, *, random_state: int = 0) -> Plane:
    r"""The direction in which codes and draws of a prior differ most, and the codes' widest across it.

        v = argmax over |v| = 1 of W_2(v'z, z ~ q(z); v'z, z ~ p(z))

    The maximum is sought by gradient steps from the best of all coordinates, principal axes and random directions.

    Args:
        codes: (n, *event_shape) draws of q(z given x), one per row.
        draws: (m, *event_shape) of the prior; as many of either are used as both have.
        random_state: seed.

    Raises:
        InputError: fewer than 2 of either.

    Source: Deshpande et al. (2019), arXiv:1904.05877 (max-sliced Wasserstein distance).

    Example:
        >>> z = torch.randn(500, 3, generator=torch.Generator().manual_seed(0))
        >>> plane = worst_plane(z * torch.tensor([1.0, 1.0, 0.1]), z.flip(0))
        >>> plane.axes[:, 0].abs().argmax().item()
        2
    """
    a, b = (z.detach().flatten(1)[:ROWS].float() for z in (codes, draws))
    n = min(len(a), len(b))
    if n < 2:
        raise InputError(f"worst_plane: {len(codes)} codes and {len(draws)} draws; at least 2 of each are needed.")
    a, b = a[:n], b[:n].to(a)
    center = a.mean(0)
    a, b = a - center, b - center  # (n, D)
    worst = _climb(a, b, _best(a, b, random_state))
    across = a - (a @ worst).unsqueeze(-1) * worst
    second = _principal(across)[0] if a.shape[1] > 1 else torch.zeros_like(worst)
    axes = torch.stack([_pointed(worst), _pointed(second)], dim=-1)  # (D, 2)
    return Plane(center, axes, float(_squared(a, b, worst.unsqueeze(-1)).sqrt()))


def _best(a: Tensor, b: Tensor, random_state: int) -> Tensor:
    """The best of the directions that need no search: (D,)."""
    d = a.shape[1]
    random = torch.randn(DIRECTIONS, d, generator=torch.Generator().manual_seed(random_state)).to(a)
    tried = [torch.eye(d, device=a.device, dtype=a.dtype), _principal(a), random / random.norm(dim=1, keepdim=True)]
    far = [(_squared(a, b, part.T), part) for whole in tried for part in whole.split(512)]
    return torch.cat([part for _, part in far])[torch.cat([value for value, _ in far]).argmax()]


def _climb(a: Tensor, b: Tensor, start: Tensor) -> Tensor:
    """Gradient steps on the sphere; the best direction met, so never a worse one than the start."""
    best, found, v = float(_squared(a, b, start.unsqueeze(-1))), start, start
    rate = 0.3
    for _ in range(STEPS):
        order_a, order_b = (a @ v).argsort(), (b @ v).argsort()
        difference = a[order_a] - b[order_b]  # (n, D): which pairs belong together does not move at once
        gradient = 2 * difference.T @ (difference @ v) / len(a)
        tangent = gradient - (gradient @ v) * v
        v = v + rate * tangent / tangent.norm().clamp_min(1e-12)
        v = v / v.norm()
        value = float(_squared(a, b, v.unsqueeze(-1)))
        if value > best:
            best, found = value, v
        else:
            rate, v = 0.7 * rate, found
    return found


def _squared(a: Tensor, b: Tensor, directions: Tensor) -> Tensor:
    """W_2^2 of a and b (n, D) along directions (D, K): (K,)."""
    return ((a @ directions).sort(0).values - (b @ directions).sort(0).values).square().mean(0)


def _principal(a: Tensor) -> Tensor:
    """Principal axes (at most 64) of centred rows (n, D): (K, D)."""
    return torch.linalg.svd(a[:1_000], full_matrices=False).Vh[:64]


def _pointed(v: Tensor) -> Tensor:
    """One of v and -v, always the same: its largest entry is positive."""
    return v * v[v.abs().argmax()].sign() if bool(v.any()) else v
