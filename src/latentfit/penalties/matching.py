"""What all penalties that match q(z) to a target share: the weight, the target, its draws."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from latentfit.data.batch import Batch
from latentfit.errors import CapabilityError, InputError
from latentfit.model.contracts import LatentDistribution, Penalty, Prior


class MatchingPenalty(Penalty):
    """weight times a divergence between the batch's draws of q(z) and as many draws of the target.

    The target is the model's prior, so what is trained toward is what is sampled from; a learned prior's draws are
    detached, for it learns by its own term. Implement `divergence`.
    """

    def __init__(self, weight: float, target: Prior | None = None) -> None:
        super().__init__()
        check_weight(self, weight)
        if target is not None and not isinstance(target, Prior):
            raise InputError(
                f"{self.name}: target must be a prior, got {type(target).__name__}. Of your own samples (N, D): "
                "latentfit.priors.EmpiricalPrior(D, samples=...); of a distribution: latentfit.priors.as_prior(...)."
            )
        self.weight, self.target = weight, target

    @abstractmethod
    def divergence(self, z: Tensor, t: Tensor) -> Tensor:
        """z, t (n, D), draws of q(z) and of the target -> a scalar whose gradient reaches z."""

    def forward(self, z: Tensor, q: LatentDistribution, model: Any, batch: Batch, step: int) -> Tensor:
        if batch.weight is not None:
            raise CapabilityError(
                f"The {self.name} penalty compares samples and takes no row weights: resample the rows."
            )
        target = model.prior if self.target is None else self.target
        with torch.no_grad():
            t = target.sample(tuple(z.shape[:2]), batch.context)  # (S, N, *E)
        return self.weight * self.divergence(z.flatten(0, 1).flatten(1), t.to(z).flatten(0, 1).flatten(1))


def check_weight(penalty: Penalty, weight: float) -> None:
    """Raise `InputError` for a weight that would push the wrong way."""
    if not weight >= 0:
        raise InputError(
            f"{penalty.name}: the weight must be at least 0, got {weight}; a negative one presses q(z) away."
        )
