"""Two samples, as arrays or tensors, on one device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from latentfit.errors import InputError


@dataclass(frozen=True, slots=True)
class TwoSampleTest:
    """Whether two samples come from one distribution.

    Attributes:
        statistic: what was measured.
        p_value: the chance of as much where they do.
        null_interval: what `statistic` is with probability 95 % where they do.
    """

    statistic: float
    p_value: float
    null_interval: tuple[float, float]

    def __str__(self) -> str:
        low, high = self.null_interval
        return f"{self.statistic:.4g} (95 % under the null: {low:.4g} to {high:.4g}), p = {self.p_value:.3g}"


def two_samples(what: str, a: Any, b: Any) -> tuple[Tensor, Tensor]:
    """Both as detached floating tensors (n, D) and (m, D) on the first one's device.

    Raises:
        InputError: other shapes, fewer than two rows, or entries that are not finite.
    """
    x, y = (torch.as_tensor(sample).detach() for sample in (a, b))
    if x.dim() != 2 or y.dim() != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        got = f"{tuple(x.shape)} and {tuple(y.shape)}"
        raise InputError(f"{what} needs two samples (n, D) and (m, D) of at least 2 rows, got {got}.")
    dtype = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    x, y = x.to(dtype), y.to(x.device, dtype)
    if not (torch.isfinite(x).all() and torch.isfinite(y).all()):
        raise InputError(f"{what}: a sample has entries that are not finite.")
    return x, y


def slices(n: int, size: int) -> Iterator[slice]:
    """Consecutive slices of at most `size` rows."""
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))
