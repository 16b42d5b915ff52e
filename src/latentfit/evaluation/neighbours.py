"""Nearest neighbours by exact distances, in blocks of constant memory."""

from __future__ import annotations

import torch
from torch import Tensor

from latentfit.evaluation.rows import blocks

#: distances held at once, 40 MB in float32
BLOCK_DISTANCES = 10_000_000


@torch.no_grad()
def nearest(queries: Tensor, points: Tensor, k: int = 1, *, itself: bool = True) -> tuple[Tensor, Tensor]:
    """The k nearest points of each query, Euclidean, nearest first.

    Neighbours are found by a matrix product, their distances then computed from differences: the product alone
    loses the digits of a small distance far from the origin.

    Args:
        queries: (M, D).
        points: (N, D), N at least k (k + 1 where `itself` is False).
        k: neighbours.
        itself: False where `queries` are the `points`, and no point is to be its own neighbour.

    Returns:
        Distances (M, k) and row numbers in `points` (M, k).
    """
    centre = points.mean(0)
    queries, points = queries - centre, points - centre
    norm = points.square().sum(-1)
    distances, indices = [], []
    for rows in blocks(len(queries), max(1, BLOCK_DISTANCES // len(points))):
        asked = queries[rows]
        # |a - b|^2 less what is the same for every point
        score = norm - 2 * asked @ points.T  # (B, N)
        if not itself:
            own = torch.arange(len(asked), device=score.device)
            score[own, own + rows.start] = torch.inf
        index = score.topk(k, largest=False).indices  # (B, k)
        distance = (points[index] - asked[:, None]).square().sum(-1).sqrt()
        distance, order = distance.sort(-1)
        distances.append(distance)
        indices.append(index.gather(-1, order))
    return torch.cat(distances), torch.cat(indices)
