"""Weights that change with the optimiser's step: the strength of the KL.

A schedule is called with the step (from 0) and returns the weight; `settled_at` is the first step from which the
weight no longer changes, so that early stopping waits for it and a warm-up longer than the run is refused.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

from latentfit.errors import InputError
from latentfit.registry import Component, registry


class Schedule(Component, ABC):
    """A weight for each step. Implement `__call__` and `settled_at`."""

    @abstractmethod
    def __call__(self, step: int) -> float:
        """The weight at a step, counted from 0."""

    @property
    @abstractmethod
    def settled_at(self) -> int:
        """The first step from which the weight is constant."""


class Constant(Schedule):
    """w(t) = value."""

    def __init__(self, value: float = 1.0) -> None:
        self.value = value

    def __call__(self, step: int) -> float:
        return self.value

    @property
    def settled_at(self) -> int:
        return 0


class _Ramp(Schedule):
    """From `start` to `end` within `steps`; subclasses give the shape on [0, 1]."""

    def __init__(self, steps: int, start: float, end: float) -> None:
        if steps < 1:
            raise InputError(f"A schedule needs steps >= 1, got {steps}.")
        self.steps, self.start, self.end = steps, start, end

    def __call__(self, step: int) -> float:
        if step >= self.steps:
            return self.end
        return self.start + (self.end - self.start) * self.shape(step / self.steps)

    @abstractmethod
    def shape(self, u: float) -> float:
        """[0, 1] -> [0, 1], increasing."""

    @property
    def settled_at(self) -> int:
        return self.steps


class Linear(_Ramp):
    """w(t) = start + (end - start) t / steps, then `end` (Bowman et al. 2016, arXiv 1511.06349)."""

    def __init__(self, steps: int, start: float = 0.0, end: float = 1.0) -> None:
        super().__init__(steps, start, end)

    def shape(self, u: float) -> float:
        return u


class Sigmoid(_Ramp):
    """A logistic curve from `start` to `end`, rescaled so that it meets both ends (Bowman et al. 2016)."""

    def __init__(self, steps: int, start: float = 0.0, end: float = 1.0, steepness: float = 10.0) -> None:
        super().__init__(steps, start, end)
        self.steepness = steepness

    def shape(self, u: float) -> float:
        def logistic(v: float) -> float:
            return 1 / (1 + math.exp(-self.steepness * (v - 0.5)))

        return (logistic(u) - logistic(0)) / (logistic(1) - logistic(0))


class Cosine(_Ramp):
    """w(t) = start + (end - start) (1 - cos(pi t / steps)) / 2, then `end`: flat at both ends."""

    def __init__(self, steps: int, start: float = 0.0, end: float = 1.0) -> None:
        super().__init__(steps, start, end)

    def shape(self, u: float) -> float:
        return 0.5 * (1 - math.cos(math.pi * u))


class Cyclical(Schedule):
    r"""`cycles` linear rises from `start` to `end`, each followed by a plateau, within `steps`; then `end`.

        w(t) = start + (end - start) min(1, tau / rise),  tau = (t mod P) / P,  P = steps / cycles

    It settles where the last rise ends, so early stopping never fires inside a cycle.

    Args:
        steps: of all cycles together.
        start, end: the weights.
        cycles: M, how often it rises.
        rise: R, the share of a cycle in which it rises, in (0, 1].

    Source: Fu et al. (2019), arXiv:1903.10145.

    Example:
        >>> [Cyclical(steps=8, cycles=2)(t) for t in range(9)]
        [0.0, 0.5, 1.0, 1.0, 0.0, 0.5, 1.0, 1.0, 1.0]
    """

    def __init__(self, steps: int, start: float = 0.0, end: float = 1.0, cycles: int = 4, rise: float = 0.5) -> None:
        if not 1 <= cycles <= steps:
            raise InputError(f"A cyclical schedule needs 1 <= cycles <= steps, got {cycles} cycles in {steps} steps.")
        if not 0 < rise <= 1:
            raise InputError(f"A cyclical schedule's rise must be in (0, 1], got {rise}.")
        self.steps, self.start, self.end, self.cycles, self.rise = steps, start, end, cycles, rise

    def __call__(self, step: int) -> float:
        if step >= self.steps:
            return self.end
        tau = step * self.cycles % self.steps / self.steps  # whole numbers until here: no cycle drifts
        return self.start + (self.end - self.start) * min(1.0, tau / self.rise)

    @property
    def settled_at(self) -> int:
        return math.ceil((self.cycles - 1 + self.rise) * self.steps / self.cycles)


registry.register("schedule", "constant", Constant)
registry.register("schedule", "linear", Linear)
registry.register("schedule", "sigmoid", Sigmoid)
registry.register("schedule", "cosine", Cosine)
registry.register("schedule", "cyclical", Cyclical)

constant = Constant
linear = Linear
sigmoid = Sigmoid
cosine = Cosine
cyclical = Cyclical
