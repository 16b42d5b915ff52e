"""What every bijection is."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class Bijection(nn.Module, ABC):
    r"""An invertible map u = f(z), written in the direction in which a density is computed.

    A density over z follows from a base density over u by log p(z) = log p_u(f(z)) + log |det df/dz|.

    Implement `forward` and `inverse`. The defaults that may be overridden are `max_log_scale`, `initialise`
    and `reset_parameters`.
    """

    #: the most by which this layer alone multiplies a coordinate's scale, in nats; 0 where it cannot, or
    #: where the scale is set from data's moments and not learned
    max_log_scale: float = 0.0

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features

    @abstractmethod
    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """z (..., D), context (..., C) -> u (..., D), log |det df/dz| (...)."""

    @abstractmethod
    def inverse(self, u: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """u (..., D), context (..., C) -> z (..., D), log |det df/dz| of the forward map at that z (...)."""

    def initialise(self, z: Tensor, context: Tensor | None = None) -> None:
        """Set what is taken from data, given z (N, D); nothing by default, and nothing the second time."""

    def reset_parameters(self) -> None:
        """Draw the starting values anew from the global generator; nothing by default."""


def soft_bound(x: Tensor, bound: float | Tensor) -> Tensor:
    """bound tanh(x / bound): x bent smoothly into (-bound, bound), with slope 1 at 0 and finite gradients."""
    return bound * torch.tanh(x / bound)


#: the bound of a hidden layer's weights and biases over torch's own
BENT = 3.0


@torch.no_grad()
def draw_bent(weight: Tensor | None, bias: Tensor, n_seen: Tensor | None = None) -> None:
    r"""Draw a layer's weights and biases from U(-a, a), a = 3 / sqrt(n), such that the units behind it start bent.

    Inputs of unit variance then give the units a standard deviation of 1.7 and more. At torch's own a = 1 / sqrt(n) it
    is 0.6, and less in each further layer, where SiLU is all but linear: couplings then draw nothing but straight lines
    for hundreds of steps.

    Args:
        weight: (A, B), set in place; None where no unit sees anything.
        bias: (A,), set in place.
        n_seen: (A,), n of each unit; B where None.
    """
    if n_seen is None:
        n_seen = bias.new_full(bias.shape, 0.0 if weight is None else weight.shape[1])
    bound = BENT * n_seen.clamp_min(1).rsqrt()
    bias.uniform_(-1, 1).mul_(bound)
    if weight is not None:
        weight.uniform_(-1, 1).mul_(bound.unsqueeze(-1))
