"""The null model: N(0, I)."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from latentfit.model.contracts import LOG_2PI, Prior, Shape, as_shape
from latentfit.training.rng import standard_normal


class StandardNormalPrior(Prior):
    r"""p(z) = N(0, I): log p(z) = -|z|^2 / 2 - D log(2 pi) / 2. Nothing is learned; a context is not used.

    Args:
        latent_dim: D, or a shape such as (C, H, W).

    Example:
        >>> round(StandardNormalPrior(2).log_prob(torch.zeros(2)).item(), 4)
        -1.8379
    """

    _like: Tensor

    def __init__(self, latent_dim: Shape) -> None:
        super().__init__(latent_dim)
        self.register_buffer("_like", torch.zeros(()), persistent=False)  # dtype and device of the draws

    def log_prob(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        energy = z.square().flatten(-len(self.event_shape)).sum(-1)
        return -0.5 * (energy + self.event_shape.numel() * LOG_2PI)

    def sample(self, n: Shape, context: Tensor | None = None, generator: Generator | None = None) -> Tensor:
        return standard_normal((*as_shape(n), *self.event_shape), self._like, generator)

    def analytic_kl(self, mean: Tensor, std: Tensor) -> Tensor:
        """sum (mean^2 + std^2 - 1 - log std^2) / 2: mean, std (..., *event) -> (...)."""
        return self.analytic_unit_kl(mean, std).flatten(-len(self.event_shape)).sum(-1)

    def analytic_unit_kl(self, mean: Tensor, std: Tensor) -> Tensor:
        return 0.5 * (mean.square() + std.square() - 1) - std.log()

    def unit_log_prob(self, z: Tensor) -> Tensor:
        return -0.5 * (z.square() + LOG_2PI)
