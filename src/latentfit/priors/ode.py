"""Ordinary differential equations: explicit Runge-Kutta steps, fixed or adapted to an error."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from latentfit.errors import TrainingError

State = tuple[Tensor, ...]
Field = Callable[[float, State], State]
Solver = Literal["euler", "heun", "rk4"]

#: slopes' weights within a step, and those of the step: Euler (order 1), Heun (2), the classical one (4)
TABLEAUX: dict[str, tuple[list[list[float]], list[float]]] = {
    "euler": ([[]], [1.0]),
    "heun": ([[], [1.0]], [0.5, 0.5]),
    "rk4": ([[], [0.5], [0.0, 0.5], [0.0, 0.0, 1.0]], [1 / 6, 1 / 3, 1 / 3, 1 / 6]),
}
#: Dormand & Prince (1980): order 5, and the weights of the difference from order 4, its error
FIFTH = [
    [],
    [1 / 5],
    [3 / 40, 9 / 40],
    [44 / 45, -56 / 15, 32 / 9],
    [19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729],
    [9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656],
    [35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84],
]
ERROR = [71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40]
#: steps of the adaptive solver at most
MOST_STEPS = 10_000


def integrate(field: Field, state: State, start: float, end: float, n_steps: int, solver: Solver = "rk4") -> State:
    """The state at `end` of d state / dt = field(t, state), in n equal steps.

    Args:
        field: (t, state) -> slopes like the state.
        state: tensors at `start`.
        solver: "euler", "heun" or "rk4", of order 1, 2 and 4.

    Example:
        >>> (grown,) = integrate(lambda t, s: s, (torch.ones(1),), 0.0, 1.0, 10)
        >>> round(grown.item(), 5)
        2.71828
    """
    within, weights = TABLEAUX[solver]
    h = (end - start) / n_steps
    for number in range(n_steps):
        slopes = _slopes(field, start + number * h, state, h, within)
        state = _along(state, slopes, weights, h)
    return state


def integrate_adaptive(
    field: Field, state: State, start: float, end: float, tolerance: float = 1e-5
) -> tuple[State, int]:
    """The same with steps chosen so that each one's error stays below `tolerance` (root mean square); and their number.

    Raises:
        TrainingError: ten thousand steps were not enough, or slopes are not finite.
    """
    t, h, steps = start, (end - start) / 20, 0
    while (end - t) * (end - start) > 0:
        h = min(h, end - t, key=abs)
        slopes = _slopes(field, t, state, h, FIFTH)
        miss = _along(tuple(torch.zeros_like(part) for part in state), slopes, ERROR, h)
        error = max(float(part.square().mean().sqrt()) for part in miss)
        steps += 1
        if steps > MOST_STEPS or not math.isfinite(error):
            raise TrainingError(f"The adaptive solver fails at t = {t:.3g}: error {error:.3g} after {steps:,} steps.")
        if error <= tolerance:
            t, state = t + h, _along(state, slopes, FIFTH[-1], h)
        # the error of a step goes with h^5; a fifth is kept in reserve
        h *= min(5.0, max(0.2, 0.8 * (tolerance / max(error, 1e-30)) ** 0.2))
    return state, steps


def _slopes(field: Field, t: float, state: State, h: float, within: Sequence[Sequence[float]]) -> list[State]:
    """Slopes at the stages; a stage lies at the sum of its weights."""
    slopes: list[State] = []
    for weights in within:
        slopes.append(field(t + h * sum(weights), _along(state, slopes, weights, h)))
    return slopes


def _along(state: State, slopes: Sequence[State], weights: Sequence[float], h: float) -> State:
    for slope, weight in zip(slopes, weights, strict=False):
        if weight:
            state = tuple(part.add(change, alpha=h * weight) for part, change in zip(state, slope, strict=True))
    return state
