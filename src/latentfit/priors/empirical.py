"""A distribution that is known only by its samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Generator, Tensor

from latentfit.errors import CapabilityError, InputError
from latentfit.model.contracts import Density, Prior, Shape, as_shape
from latentfit.priors.foreign import generator_as_global, takes_argument


class EmpiricalPrior(Prior):
    r"""p(z) given by a sampler; it has no density, so it serves as a target for matching penalties only.

    Args:
        latent_dim: D, or a shape.
        sampler: a function n -> (n, *event_shape); if it takes `generator`, it is given it.

    Example:
        >>> import torch
        >>> ring = lambda n: torch.nn.functional.normalize(torch.randn(n, 2), dim=-1)
        >>> EmpiricalPrior(2, ring).sample(5).shape
        torch.Size([5, 2])
    """

    density: Density = "none"

    def __init__(self, latent_dim: Shape, sampler: Callable[..., Any]) -> None:
        super().__init__(latent_dim)
        self.sampler = sampler
        self._takes_generator = takes_argument(sampler, "generator")

    def log_prob(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        raise CapabilityError(
            "This prior is known by samples only and has no density: use a matching penalty (mmd, "
            "sliced_wasserstein) at KL weight 0, or fit a prior with a density to its samples."
        )

    def sample(self, n: Shape, context: Tensor | None = None, generator: Generator | None = None) -> Tensor:
        shape = as_shape(n)
        if self._takes_generator:
            z = self.sampler(shape.numel(), generator=generator)
        else:
            with generator_as_global(generator):
                z = self.sampler(shape.numel())
        if z.shape != (shape.numel(), *self.event_shape):
            wanted = (shape.numel(), *self.event_shape)
            raise InputError(f"The sampler returned {tuple(z.shape)} for n = {shape.numel()}; expected {wanted}.")
        return z.reshape(*shape, *self.event_shape)
