"""Matching by the energy distance."""

from __future__ import annotations

from torch import Tensor

from latentfit.divergences.kernels import Kernel
from latentfit.divergences.mmd import mmd2_with_gradient
from latentfit.model.contracts import Prior
from latentfit.penalties.matching import MatchingPenalty


class EnergyPenalty(MatchingPenalty):
    r"""weight (2 E|z - t| - E|z - z'| - E|t - t'|): no bandwidth, and in the units of z.

    Args:
        weight: at least 0, nats per unit of z.
        unbiased: without the pairs of a row with itself; the penalty may then be negative in a batch.
        target: by default the model's prior.

    Source: Szekely & Rizzo (2013), Journal of Statistical Planning and Inference 143.
    """

    def __init__(self, weight: float = 30.0, unbiased: bool = True, target: Prior | None = None) -> None:
        super().__init__(weight, target)
        self.unbiased = unbiased

    def divergence(self, z: Tensor, t: Tensor) -> Tensor:
        return mmd2_with_gradient(z, t, Kernel.of("energy", 1.0), self.unbiased)
