"""A multilayer perceptron."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from latentfit.errors import InputError
from latentfit.networks.base import OUTPUT_GAIN, Network
from latentfit.networks.linear import Linear

ACTIVATIONS: dict[str, type[nn.Module]] = {"silu": nn.SiLU, "relu": nn.ReLU}


class MLP(Network):
    """Dense layers with an activation between them; `hidden=[]` is one linear map.

    Args:
        in_shape, out_shape, context_features: see `Network`.
        hidden: widths of the hidden layers.
        activation: `"silu"` or `"relu"`.

    Raises:
        InputError: a width that is not positive, or another activation.

    Example:
        >>> import torch
        >>> from latentfit.networks import MLP
        >>> MLP(in_shape=[28, 28], out_shape=16, hidden=[32])(torch.zeros(5, 28, 28)).shape
        torch.Size([5, 16])
    """

    def __init__(
        self,
        in_shape: int | Sequence[int],
        out_shape: int | Sequence[int],
        context_features: int = 0,
        hidden: Sequence[int] = (256, 256),
        activation: Literal["silu", "relu"] = "silu",
    ) -> None:
        super().__init__(in_shape, out_shape, context_features)
        if activation not in ACTIVATIONS:
            raise InputError(f"activation is one of {', '.join(ACTIVATIONS)}, got {activation!r}.")
        if any(width < 1 for width in hidden):
            raise InputError(f"hidden widths must be positive, got {list(hidden)}.")
        widths = [self.in_features + context_features, *hidden]
        layers: list[nn.Module] = []
        for n_in, n_out in pairwise(widths):
            layers += [Linear(n_in, n_out, gain=math.sqrt(2)), ACTIVATIONS[activation]()]
        self.layers = nn.Sequential(*layers, Linear(widths[-1], self.out_features, gain=OUTPUT_GAIN))

    def rows(self, x: Tensor) -> Tensor:
        return self.layers(x)
