"""A number with its uncertainty."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from latentfit.errors import InputError

#: groups of related rows that rows are split by; fewer are no units to split by
FEWEST_GROUPS = 4


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value, its standard error and an interval at `level`.

    >>> print(Estimate.of([1.0, 2.0, 3.0, 4.0]))
    2.5 ± 0.6
    >>> float(Estimate(1.57, 0.02, (1.53, 1.61)))
    1.57
    """

    value: float
    std_error: float
    interval: tuple[float, float]
    level: float = 0.95

    @classmethod
    def of(
        cls,
        values: ArrayLike,
        *,
        weights: ArrayLike | None = None,
        groups: ArrayLike | None = None,
        level: float = 0.95,
    ) -> Estimate:
        """The mean of values (n,) over rows, with its standard error and Student-t interval.

        Args:
            values: (n,), one number per row.
            weights: (n,) or None, row weights; the mean is sum(w f) / sum(w), and rows of weight 0 are not counted.
            groups: (n,) or None, labels of related rows; the error is then cluster-robust, with one degree of
                freedom per group (Liang & Zeger 1986).
            level: of the interval.

        Raises:
            InputError: no values, weights or groups of another length, or weights that are negative or all 0.
        """
        array = np.asarray(values, dtype=np.float64).reshape(-1)
        n = array.size
        if n == 0:
            raise InputError("Estimate.of: there are no values to average.")
        for name, given in (("weights", weights), ("groups", groups)):
            if given is not None and np.shape(given) != (n,):
                raise InputError(f"Estimate.of: {name} has shape {np.shape(given)}, expected ({n},), one for each row.")
        share = np.full(n, 1 / n)
        if weights is not None:
            share = np.asarray(weights, dtype=np.float64)
            counted = share > 0
            if not counted.any() or not (share >= 0).all():
                raise InputError("Estimate.of: weights must be 0 or more, and not all 0.")
            array, share = array[counted], share[counted] / share.sum()
            groups = None if groups is None else np.asarray(groups)[counted]
        mean = float(share @ array)
        influence = share * (array - mean)
        if groups is not None:
            _, label = np.unique(np.asarray(groups), return_inverse=True)
            influence = np.bincount(label.reshape(-1), weights=influence).astype(np.float64)
        m = influence.size
        error = math.sqrt(float(influence @ influence) * m / (m - 1)) if m > 1 else math.nan
        return cls.from_error(mean, error, df=m - 1, level=level)

    @classmethod
    def from_error(cls, value: float, std_error: float, *, df: float = math.inf, level: float = 0.95) -> Estimate:
        """An estimate from a value, a standard error and its degrees of freedom."""
        half = t_quantile(0.5 + level / 2, df) * std_error if std_error > 0 else std_error  # nan stays nan
        return cls(value, std_error, (value - half, value + half), level)

    def __float__(self) -> float:
        return self.value

    def __format__(self, spec: str) -> str:
        return str(self) if not spec else f"{self.value:{spec}} ± {self.std_error:{spec.lstrip('+')}}"

    def __str__(self) -> str:
        if math.isnan(self.std_error):
            return f"{self.value:.1f}"
        digits = _digits(self.std_error)
        if 0 < max(abs(self.value), self.std_error) < 5e-4:  # four decimals would show zeros
            return f"{self.value:.1e} ± {self.std_error:.0e}"
        value = f"{self.value:.{digits}f}"
        return f"{value.removeprefix('-') if float(value) == 0 else value} ± {self.std_error:.{digits}f}"

    def to_dict(self) -> dict[str, float | list[float]]:
        """JSON."""
        return {
            "value": self.value,
            "std_error": self.std_error,
            "interval": list(self.interval),
            "level": self.level,
        }

    @classmethod
    def from_dict(cls, data: dict) -> Estimate:
        """The inverse of `to_dict`."""
        low, high = data["interval"]
        return cls(data["value"], data["std_error"], (low, high), data["level"])


def t_quantile(probability: float, df: float) -> float:
    """Quantile of Student's t with `df` degrees of freedom (infinite: the normal)."""
    from scipy.special import ndtri, stdtrit  # scikit-learn requires scipy; scipy.stats takes a second to import

    return float(ndtri(probability) if math.isinf(df) else stdtrit(df, probability))


def _digits(error: float) -> int:
    """Decimals that show one significant figure of the error: 0.02 -> 2, 0.6 -> 1; at most 4."""
    if not error or math.isinf(error):
        return 1
    exponent = int(f"{abs(error):.0e}".split("e")[1])  # after rounding: 0.096 is 0.1
    return 0 if exponent >= 1 else min(max(1, -exponent), 4)
