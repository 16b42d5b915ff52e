"""Kernels of pairs of rows, block by block, from one matrix product each."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from latentfit.errors import InputError

KernelName = Literal["rbf", "imq", "energy"]

#: rows whose pairwise distances give the median
MEDIAN_ROWS = 1_000
LOG2_E = math.log2(math.e)


@dataclass(frozen=True, slots=True)
class Kernel:
    r"""k(x, y) for several bandwidths h, from the exponents e = -|x - y|^2 / (2 h_1^2) of the largest one.

    * "rbf": exp(-|x - y|^2 / (2 h^2))
    * "imq": 1 / (1 + |x - y|^2 / (2 h^2)), the inverse multiquadratic with C = 2 h^2
    * "energy": -|x - y|, of the energy distance; its bandwidth is 1

    Args:
        name: one of these.
        bandwidths: h, from the largest to the smallest.
    """

    name: KernelName
    bandwidths: tuple[float, ...]

    @classmethod
    def of(cls, name: str, bandwidths: float | Sequence[float]) -> Kernel:
        """With bandwidths in any order.

        Raises:
            InputError: an unknown kernel, no bandwidth, or one that is not positive.
        """
        if name not in ("rbf", "imq", "energy"):
            raise InputError(f"kernel must be 'rbf', 'imq' or 'energy', got {name!r}.")
        values = [float(h) for h in ([bandwidths] if isinstance(bandwidths, int | float) else bandwidths)]
        if not values or not all(0 < h < math.inf for h in values):
            raise InputError(f"bandwidths must be positive and finite, got {values}.")
        return cls(name, tuple(sorted(values, reverse=True)))  # type: ignore[arg-type]  # checked above

    def sides(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (n, D), centred -> left, right (n, D + 4), such that left @ right.T are exponents.

        The squared norms ride in the product, so nothing is left to add; each is split into two numbers, because a
        rounded one shifts a whole row.
        """
        scale = 1 / (2 * self.bandwidths[0] ** 2) * (LOG2_E if self.name == "rbf" else 1.0)
        scaled = x * math.sqrt(2 * scale)
        norm = -0.5 * scaled.double().square().sum(-1, keepdim=True)
        high = norm.to(x)
        low = (norm - high.double()).to(x)
        one = torch.ones_like(high)
        return torch.cat([scaled, high, low, one, one], 1), torch.cat([scaled, one, one, high, low], 1)

    def each(self, exponents: Tensor) -> Iterator[tuple[float, Tensor]]:
        """(h, k) from the largest bandwidth on; each k is overwritten by the next."""
        if self.name == "energy":
            yield 1.0, exponents.mul(-2).clamp_min_(0).sqrt_().neg_()
            return
        largest = self.bandwidths[0]
        if self.name == "imq":
            k = torch.empty_like(exponents)
            for h in self.bandwidths:
                yield h, torch.mul(exponents, -((largest / h) ** 2), out=k).add_(1).reciprocal_()
            return
        k, now = torch.exp2(exponents), largest  # twice as fast as exp: torch vectorises it itself
        for h in self.bandwidths:
            squarings = 2 * math.log2(now / h)  # k^2 is the kernel of h / sqrt(2)
            if abs(squarings - round(squarings)) < 1e-9:
                for _ in range(round(squarings)):
                    k.mul_(k)
            else:
                torch.mul(exponents, (largest / h) ** 2, out=k).exp2_()
            now = h
            yield h, k

    def mean(self, exponents: Tensor) -> Tensor:
        """The mean of k over bandwidths."""
        if len(self.bandwidths) == 1:
            return next(self.each(exponents))[1]
        total = torch.zeros_like(exponents)
        for _, k in self.each(exponents):
            total.add_(k)
        return total.mul_(1 / len(self.bandwidths))

    def mean_and_slope(self, exponents: Tensor) -> tuple[Tensor, Tensor]:
        """The mean of k and of s, where dk/dx = -s (x - y)."""
        total, slope = torch.zeros_like(exponents), torch.zeros_like(exponents)
        for h, k in self.each(exponents):
            total.add_(k)
            if self.name == "rbf":
                slope.add_(k, alpha=1 / h**2)
            elif self.name == "imq":
                slope.addcmul_(k, k, value=1 / h**2)
            else:
                slope.sub_(k.clamp_max(-1e-12).reciprocal_())  # no direction between equal points
        share = 1 / len(self.bandwidths)
        return total.mul_(share), slope.mul_(share)


def median_distance(x: Tensor, y: Tensor) -> float:
    """The median distance between rows of both samples together, of at most `MEDIAN_ROWS` of them.

    The rows are taken evenly along the sorted first column: which they are depends on the pooled sample alone, not on
    its labels, so that a permutation test that uses it stays exact.
    """
    pooled = torch.cat([x, y])
    rows = pooled[:, 0].argsort(stable=True)
    rows = rows[:: -(-len(rows) // MEDIAN_ROWS)]
    distances = torch.pdist(pooled[rows].double())
    median = distances.median().item()
    return median if median > 0 else (distances.mean().item() or 1.0)
