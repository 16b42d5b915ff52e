"""Matching by the sliced Wasserstein distance."""

from __future__ import annotations

from torch import Tensor

from latentfit.divergences.wasserstein import squared_differences, unit_vectors
from latentfit.errors import InputError
from latentfit.model.contracts import Prior
from latentfit.penalties.matching import MatchingPenalty


class SlicedWassersteinPenalty(MatchingPenalty):
    r"""weight E_u W_2^2(u'z, u't), u uniform on the unit sphere, fresh in every step.

    Args:
        weight: at least 0, nats per squared unit of z.
        n_projections: directions per step.
        target: by default the model's prior.

    Source: Kolouri et al. (2019), arXiv:1804.01947.
    """

    def __init__(self, weight: float = 30.0, n_projections: int = 50, target: Prior | None = None) -> None:
        super().__init__(weight, target)
        if n_projections < 1:
            raise InputError(f"sliced_wasserstein: n_projections must be at least 1, got {n_projections}.")
        self.n_projections = n_projections

    def divergence(self, z: Tensor, t: Tensor) -> Tensor:
        return squared_differences(z, t, unit_vectors(self.n_projections, t)).mean()
