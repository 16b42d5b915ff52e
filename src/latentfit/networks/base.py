"""What all networks share: shapes, context, and the flattening on the way in and out."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from latentfit.errors import InputError
from latentfit.registry import Component

#: the last layer's weights start this much smaller, so that outputs start near 0: mid-range, and unit scales
OUTPUT_GAIN = 0.1


class Network(Component, nn.Module, ABC):
    """A function of a row and its context, (B, *in_shape) -> (B, *out_shape).

    Implement `rows`, (B, in_features + context_features) -> (B, out_features), in the constructor's terms.
    Weights start from torch's current random state; whoever builds a network forks and seeds it.

    Args:
        in_shape: shape of a row that goes in; an int is a vector.
        out_shape: shape of a row that comes out.
        context_features: columns of context that are concatenated to the row; 0 refuses a context.

    Raises:
        InputError: a shape that is empty or not positive.
    """

    def __init__(
        self, in_shape: int | Sequence[int], out_shape: int | Sequence[int], context_features: int = 0
    ) -> None:
        super().__init__()
        self.in_shape, self.out_shape = _shape("in_shape", in_shape), _shape("out_shape", out_shape)
        if context_features < 0:
            raise InputError(f"context_features must be 0 or more, got {context_features}.")
        self.context_features = context_features
        self.in_features, self.out_features = math.prod(self.in_shape), math.prod(self.out_shape)

    @abstractmethod
    def rows(self, x: Tensor) -> Tensor:
        """Flat rows and their context: (B, in_features + context_features) -> (B, out_features)."""

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x (..., *in_shape), context (..., C) broadcast against x's leading dimensions -> (..., *out_shape).

        Raises:
            InputError: x of another shape, or a context that is missing, superfluous or of another width.
        """
        n = len(self.in_shape)
        if x.dim() <= n or x.shape[-n:] != self.in_shape:
            raise InputError(
                f"The {self.name or 'network'} takes rows of shape {tuple(self.in_shape)}, got {tuple(x.shape)}."
            )
        lead = x.shape[:-n]
        if not x.is_floating_point():
            x = x.to(torch.get_default_dtype())
        x = x.reshape(-1, self.in_features)
        if context is not None or self.context_features:
            x = torch.cat([x, self._context(context, lead).to(x)], -1)
        return self.rows(x).reshape(*lead, *self.out_shape)

    def _context(self, context: Tensor | None, lead: torch.Size) -> Tensor:
        name = self.name or "network"
        if context is None:
            raise InputError(
                f"This {name} was built for {self.context_features} context columns; none came with the rows."
            )
        if not self.context_features:
            raise InputError(
                f"This {name} takes no context, but {context.shape[-1]} columns came with the rows. "
                f"Build it with context_features={context.shape[-1]}, or leave the context out."
            )
        if context.shape[-1] != self.context_features:
            raise InputError(
                f"This {name} was built for {self.context_features} context columns, got {context.shape[-1]}."
            )
        return context.expand(*lead, self.context_features).reshape(-1, self.context_features)


def _shape(name: str, value: int | Sequence[int]) -> torch.Size:
    shape = torch.Size([value] if isinstance(value, int) else value)
    if not shape or min(shape) < 1:
        raise InputError(f"{name} must be positive, got {value!r}.")
    return shape
