"""The linear layer: the one place through which every dense layer of Latentfit goes."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from latentfit.networks.products import dense


class Linear(nn.Module):
    r"""y = x W^T + b.

    $$W_{ij} \sim \mathcal{U}(-g\sqrt{3/n}, g\sqrt{3/n}), \quad b = 0, \qquad n = \text{in\_features}$$

    so an input of unit variance gives an output of standard deviation g.

    Args:
        in_features: columns of x.
        out_features: columns of y.
        bias: whether there is a b.
        gain: g; sqrt(2) before a rectifier or SiLU, 1 before a gate, less for a last layer.

    Example:
        >>> import torch
        >>> from latentfit.networks import Linear
        >>> Linear(3, 2)(torch.zeros(5, 3)).shape
        torch.Size([5, 2])
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, gain: float = 1.0) -> None:
        super().__init__()
        self.in_features, self.out_features, self.gain = in_features, out_features, gain
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights again, from torch's current random state."""
        bound = self.gain * math.sqrt(3 / self.in_features)
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in_features) -> (..., out_features)."""
        return dense(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"
