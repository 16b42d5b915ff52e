"""k-means, the start of EM."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

#: rows on which the restarts compete; the winner's centres then move on all rows
COMPETITION = 5_000


def k_means(z: Tensor, n_clusters: int, generator: Generator, restarts: int = 3) -> Tensor:
    """Labels (R,) of the tightest of several runs: z (R, D).

    One run often leaves two clusters merged and another halved, which EM then cannot undo.
    """
    if n_clusters == 1:
        return torch.zeros(len(z), dtype=torch.long)
    some = z[torch.randperm(len(z), generator=generator)[:COMPETITION]]
    runs = [_lloyd(some, _spread(some, n_clusters, generator)) for _ in range(restarts)]
    centres = min(runs, key=lambda run: run[1])[0]
    if len(z) > len(some):
        centres = _lloyd(z, centres)[0]
    return torch.cdist(z, centres).argmin(1)


def _spread(z: Tensor, n_clusters: int, generator: Generator) -> Tensor:
    """Centres (K, D) among the rows, far from each other: of a few drawn at random, each time the one that helps most.

    Source: Arthur & Vassilvitskii (2007), k-means++, its greedy form.
    """
    tried = 2 + int(math.log(n_clusters))
    picked = torch.randint(len(z), (1,), generator=generator)
    nearest = torch.cdist(z, z[picked]).square_().squeeze(1)  # (R,)
    for _ in range(n_clusters - 1):
        weight = nearest if bool(nearest.sum() > 0) else torch.ones_like(nearest)
        drawn = torch.multinomial(weight, tried, replacement=True, generator=generator)
        each = torch.minimum(nearest[:, None], torch.cdist(z, z[drawn]).square_())  # (R, tried)
        best = each.sum(0).argmin()
        nearest = each[:, best]
        picked = torch.cat((picked, drawn[best][None]))
    return z[picked]


def _lloyd(z: Tensor, centres: Tensor, iterations: int = 15) -> tuple[Tensor, float]:
    """Centres (K, D) after Lloyd's iterations, and the sum of squared distances to them."""
    labels = None
    for _ in range(iterations):
        previous, (distance, labels) = labels, torch.cdist(z, centres).min(1)
        if previous is not None and bool((previous == labels).all()):
            break
        count = torch.bincount(labels, minlength=len(centres)).to(z.dtype)
        sums = torch.zeros_like(centres).index_add(0, labels, z)
        centres = torch.where(count[:, None] > 0, sums / count[:, None].clamp_min(1), centres)
    return centres, distance.square().sum().item()
