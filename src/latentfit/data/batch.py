"""What every signature passes along: a batch of rows with all that may be known about them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of data.

    Attributes:
        x: (N, *data_shape), the rows.
        context: (N, C) or None, what is given and not modelled: labels, covariates, an observed library size.
        index: (N,) int64 or None, each row's number in its data set (leave-one-out priors need it).
        weight: (N,) or None, row weights; a mean over rows is then sum(w f) / sum(w).
        mask: like x, bool, or None; True where an entry was observed. Unobserved entries are not scored.
    """

    x: Tensor
    context: Tensor | None = None
    index: Tensor | None = None
    weight: Tensor | None = None
    mask: Tensor | None = None

    @classmethod
    def of(cls, x: Batch | Tensor) -> Batch:
        """A bare tensor is accepted everywhere a batch is."""
        return x if isinstance(x, Batch) else cls(x)

    def __len__(self) -> int:
        return self.x.shape[0]

    def __getitem__(self, rows: Tensor | slice) -> Batch:
        """The rows picked from every field."""
        return self._map(lambda t: t[rows])

    def to(self, device: torch.device | str) -> Batch:
        """The batch on a device; itself where it is there already."""
        return self if self.x.device == torch.device(device) else self._map(lambda t: t.to(device))

    def mean(self, value: Tensor) -> Tensor:
        """Weighted mean over rows of `value` (N,)."""
        if self.weight is None:
            return value.mean()
        return (self.weight * value).sum() / self.weight.sum()

    def _map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        changed: dict[str, Any] = {name: None if value is None else function(value) for name, value in values.items()}
        return Batch(**changed)
