"""Precision, recall, density and coverage of a sample by nearest neighbours."""

from __future__ import annotations

from typing import NamedTuple

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from latentfit.divergences.samples import slices, two_samples
from latentfit.errors import InputError

#: distances held at once, 16 MB in float32
DISTANCES_AT_ONCE = 4_000_000


class PRDC(NamedTuple):
    """Shares in [0, 1]; a density may exceed 1.

    Attributes:
        precision: of the fake rows, those within the k-th neighbour's distance of some real row.
        recall: the same with the roles exchanged.
        density: how many such neighbourhoods a fake row lies in, over k.
        coverage: of the real rows, those with a fake row in their neighbourhood.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def precision_recall_density_coverage(real: ArrayLike | Tensor, fake: ArrayLike | Tensor, k: int = 5) -> PRDC:
    """Whether `fake` lies where `real` does (precision, density), and everywhere it does (recall, coverage).

    A row's neighbourhood is the ball up to its k-th nearest row of its own sample.

    Args:
        real: (n, D), n > k.
        fake: (m, D), m > k.
        k: neighbours.

    Raises:
        InputError: other shapes, too few rows, entries that are not finite.

    Source: Kynkaanniemi et al. (2019), arXiv:1904.06991; density and coverage: Naeem et al. (2020), arXiv:2002.09797.

    Example:
        >>> x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
        >>> precision_recall_density_coverage(x, x + 100)
        PRDC(precision=0.0, recall=0.0, density=0.0, coverage=0.0)
    """
    x, y = two_samples("precision_recall_density_coverage", real, fake)
    if not 1 <= k < min(len(x), len(y)):
        raise InputError(f"k must be at least 1 and below both samples' rows, got {k} for {len(x)} and {len(y)}.")
    centre = x.mean(0)
    x, y = (x - centre).float(), (y - centre).float()
    radius_x, radius_y = _radii(x, k), _radii(y, k)
    in_balls = torch.zeros(len(y), device=x.device)
    nearest = torch.full((len(x),), torch.inf, device=x.device)
    recalled = 0
    for rows in slices(len(x), max(1, DISTANCES_AT_ONCE // len(y))):
        distance = torch.cdist(x[rows], y)  # (B, m)
        in_balls += (distance < radius_x[rows, None]).sum(0)
        recalled += int((distance < radius_y).any(1).sum())
        nearest[rows] = distance.min(1).values
    return PRDC(
        precision=(in_balls > 0).double().mean().item(),
        recall=recalled / len(x),
        density=in_balls.double().mean().item() / k,
        coverage=(nearest < radius_x).double().mean().item(),
    )


def _radii(x: Tensor, k: int) -> Tensor:
    """Distance of each row to its k-th nearest other row: (n,)."""
    parts = []
    for rows in slices(len(x), max(1, DISTANCES_AT_ONCE // len(x))):
        distance = torch.cdist(x[rows], x)
        distance[torch.arange(len(distance)), torch.arange(rows.start, rows.stop)] = torch.inf  # not its own neighbour
        parts.append(distance.kthvalue(k, dim=1).values)
    return torch.cat(parts)
