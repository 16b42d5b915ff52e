"""Matching by maximum mean discrepancy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from latentfit.divergences.kernels import Kernel
from latentfit.divergences.mmd import mmd2_with_gradient
from latentfit.errors import InputError
from latentfit.model.contracts import Prior
from latentfit.penalties.matching import MatchingPenalty

#: C of the inverse multiquadratic, in the target's mean squared distances (Tolstikhin et al. 2018)
SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class MMDPenalty(MatchingPenalty):
    r"""weight MMD^2(q(z), target), averaged over several bandwidths.

    The two published forms are `ELBO(kl_weight, penalties=[mmd(weight)])` with

        WAE-MMD:  kl_weight = 0,          weight = lambda
        InfoVAE:  kl_weight = 1 - alpha,  weight = alpha + lambda - 1

    Args:
        weight: at least 0: it presses q(z) toward the target. MMD^2 is below 2, so it is nats at the most.
        kernel: "imq", the inverse multiquadratic, whose tails reach codes far away; "rbf"; "energy".
        bandwidths: as in `latentfit.evaluation.mmd2`; by default seven, from 0.3 to 3 times the root of half the
            target's mean squared distance, found from its draws in every batch.
        unbiased: without the pairs of a row with itself; the penalty may then be negative in a batch.
        target: by default the model's prior.

    Source: Tolstikhin et al. (2018), arXiv:1711.01558; Zhao et al. (2019), arXiv:1706.02262.

    Example:
        >>> import torch
        >>> z = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
        >>> penalty = MMDPenalty(weight=10.0)
        >>> bool(penalty.divergence(z[:50] + 1, z[50:]) > penalty.divergence(z[:50], z[50:]))
        True
    """

    def __init__(
        self,
        weight: float = 300.0,
        kernel: Literal["imq", "rbf", "energy"] = "imq",
        bandwidths: float | Sequence[float] | None = None,
        unbiased: bool = True,
        target: Prior | None = None,
    ) -> None:
        super().__init__(weight, target)
        if kernel == "energy" and bandwidths is not None:
            raise InputError("mmd: the energy kernel has no bandwidth.")
        self.kernel, self.bandwidths, self.unbiased = kernel, bandwidths, unbiased
        self._fixed = Kernel.of(kernel, bandwidths) if bandwidths is not None else None
        if kernel == "energy":
            self._fixed = Kernel.of(kernel, 1.0)

    def divergence(self, z: Tensor, t: Tensor) -> Tensor:
        kernel = self._fixed
        if kernel is None:
            # E|t - t'|^2 / 2 is the sum of the variances, D for N(0, I)
            scale = max(t.var(0, correction=0).sum().item(), 1e-12)
            kernel = Kernel.of(self.kernel, [math.sqrt(factor * scale) for factor in SCALES])
        return mmd2_with_gradient(z, t, kernel, self.unbiased)
