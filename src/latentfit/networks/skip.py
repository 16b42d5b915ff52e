"""A multilayer perceptron whose last layer also reads the row itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from latentfit.networks.base import Network
from latentfit.networks.linear import Linear
from latentfit.networks.mlp import MLP


class SkipMLP(Network):
    r"""y = A x + f(x): an MLP f, and a last layer over the row and the hidden units together.

    f starts at 0, so y starts as the linear map A x, which the owner may set. The last layer over [x, h] is this sum
    of two.

    Args:
        in_shape, out_shape, context_features: see `Network`; the context reaches f alone.
        hidden, activation: see `MLP`.

    Source: the second stage of Dai & Wipf (2019), arXiv:1903.05789.

    Example:
        >>> import torch
        >>> from latentfit.networks import SkipMLP
        >>> SkipMLP(in_shape=3, out_shape=2, hidden=[8])(torch.zeros(5, 3)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        in_shape: int | Sequence[int],
        out_shape: int | Sequence[int],
        context_features: int = 0,
        hidden: Sequence[int] = (256, 256, 256),
        activation: Literal["silu", "relu"] = "silu",
    ) -> None:
        super().__init__(in_shape, out_shape, context_features)
        self.skip = Linear(self.in_features, self.out_features)
        self.mlp = MLP(self.in_features + context_features, self.out_features, hidden=hidden, activation=activation)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all weights again, from torch's current random state; f starts at 0."""
        for layer in (self.skip, *self.mlp.layers):
            if isinstance(layer, Linear):
                layer.reset_parameters()
        nn.init.zeros_(self.mlp.layers[-1].weight)  # type: ignore[arg-type]  # a Linear's

    def rows(self, x: Tensor) -> Tensor:
        return self.skip(x[:, : self.in_features]) + self.mlp.rows(x)
