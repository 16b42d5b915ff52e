"""The gated perceptron of the VampPrior paper."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from latentfit.errors import InputError
from latentfit.networks.base import OUTPUT_GAIN, Network
from latentfit.networks.linear import Linear


class Gated(nn.Module):
    """h = A(x) * sigmoid(B(x)), A and B being the halves of one linear layer: (B, in) -> (B, out)."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        # a gate starts near 1/2, so A has to start twice as wide for the signal to keep its size
        self.linear = Linear(in_features, 2 * out_features)
        self.linear.weight.data[:out_features] *= 2

    def forward(self, x: Tensor) -> Tensor:
        return F.glu(self.linear(x), -1)


class GatedMLP(Network):
    r"""Dense layers, each gated by another of its size.

    $$h = A(x) \odot \sigma(B(x))$$

    Args:
        in_shape, out_shape, context_features: see `Network`.
        hidden: widths of the gated layers.

    Raises:
        InputError: a width that is not positive.

    Source: Tomczak & Welling (2018), arXiv:1705.07120; Dauphin et al. (2017), arXiv:1612.08083.

    Example:
        >>> import torch
        >>> from latentfit.networks import GatedMLP
        >>> GatedMLP(in_shape=784, out_shape=80)(torch.zeros(5, 784)).shape
        torch.Size([5, 80])
    """

    def __init__(
        self,
        in_shape: int | Sequence[int],
        out_shape: int | Sequence[int],
        context_features: int = 0,
        hidden: Sequence[int] = (300, 300),
    ) -> None:
        super().__init__(in_shape, out_shape, context_features)
        if any(width < 1 for width in hidden):
            raise InputError(f"hidden widths must be positive, got {list(hidden)}.")
        widths = [self.in_features + context_features, *hidden]
        layers = [Gated(n_in, n_out) for n_in, n_out in pairwise(widths)]
        self.layers = nn.Sequential(*layers, Linear(widths[-1], self.out_features, gain=OUTPUT_GAIN))

    def rows(self, x: Tensor) -> Tensor:
        return self.layers(x)
