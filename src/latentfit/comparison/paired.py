r"""The paired gain of one candidate over another, with an error that knows both rows and training runs vary.

The model of a score, log p(x_r) under candidate j trained from seed s:

    y[j, s, r] = mu_j + A[j, s] + b_r + c[j, r] + e[j, s, r]

A is the luck of one training run, b how hard a row is (it cancels in every paired difference), c what suits a
row to a method, e the rest. Rows are many and seeds are few: pooling the seeds x rows pairs as if they were
independent declares winners among equals, because it never sees A.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from latentfit.errors import InputError
from latentfit.evaluation.estimate import Estimate, t_quantile

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class SeedVariance:
    """Variance over seeds of a mean over the rows (nats squared), and its degrees of freedom."""

    value: float
    df: float

    def __add__(self, other: SeedVariance) -> SeedVariance:
        """Of a difference of independent runs; degrees of freedom by Satterthwaite."""
        total = self.value + other.value
        spread = self.value**2 / self.df + other.value**2 / other.df
        return SeedVariance(total, total**2 / spread if spread > 0 else self.df + other.df)


@dataclass(frozen=True, slots=True)
class Gain(Estimate):
    """A paired gain in nats per row, which can be restated at another level.

    Attributes:
        components: (variance, degrees of freedom) of each source of error: seeds (with the residual), rows.
        this_run_only: one seed was scored, so the error holds for this training run only.
    """

    components: tuple[tuple[float, float], ...] = ()
    this_run_only: bool = False

    @classmethod
    def of_components(
        cls, value: float, components: tuple[tuple[float, float], ...], *, level: float, this_run_only: bool
    ) -> Gain:
        """value -+ sqrt(sum_i t_i^2 V_i), t_i Student's quantile at the degrees of freedom of V_i."""
        if not components:  # one number per candidate, or a gain of -inf: no error to state
            ends = (value, value) if math.isinf(value) else (math.nan, math.nan)
            return cls(value, math.nan, ends, level, (), this_run_only)
        error = math.sqrt(sum(variance for variance, _ in components))
        half = math.sqrt(sum(t_quantile(0.5 + level / 2, df) ** 2 * v for v, df in components if v > 0))
        return cls(value, error, (value - half, value + half), level, components, this_run_only)

    def at(self, level: float) -> Gain:
        """The same gain with its interval at another level."""
        return Gain.of_components(self.value, self.components, level=level, this_run_only=self.this_run_only)


def paired_gain(
    values: ArrayLike,
    baseline: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    seed_variance: SeedVariance | None = None,
    level: float = 0.95,
) -> Gain:
    r"""The mean of d = values - baseline over seeds and rows, both of them random.

        d[s, r] = mu + a_s + b_r + e[s, r],   Var(mean) = sigma_a^2 / S + sigma_b^2 / R + sigma_e^2 / (S R)

    with variances by ANOVA moments. A negative moment is set to 0, so the variance is biased upward where its
    truth is near 0. The interval is mean -+ sqrt(t_a^2 V_a + t_b^2 V_b), each part with its own degrees of
    freedom: V_a = sigma_a^2 / S + sigma_e^2 / (S R) has S - 1, or (S - 1) (R - 1) where sigma_a^2 is set to
    0; V_b = sigma_b^2 / R has R - 1. One number of degrees of freedom for both (Satterthwaite's), estimated
    from 3 seeds, covers less than it says: a seed variance that is too small by chance also claims too many
    of them. This interval covers 92 to 98 % at 95 % with 3 seeds and more (benchmarks/ranking_of_equals.py);
    with 2 seeds less than 90 % where seeds vary little beside the residual.

    Args:
        values: (S, R) in nats; a bare (R,) is one seed. baseline: the same shape.
        groups: (R,) labels of related rows; their means, not the rows, are then the independent units.
        seed_variance: of the mean over rows of d, pooled, in place of this pair's own (`seed_variances`).
        level: of the interval.

    Returns:
        The gain in nats per row. With one seed its error is that of the rows, and `this_run_only` is set. A
        candidate that gives some row probability 0 gains -inf.

    Raises:
        InputError: NaN or +inf, shapes that differ, fewer than two rows, -inf in the baseline.

    Sources: Searle, Casella & McCulloch, Variance Components (1992), chapter 4; Banerjee, Sankhya 22 (1960).

    >>> print(paired_gain([[1.0, 2.0, 3.0, 2.0]], [[0.0, 0.0, 0.0, 0.0]]))
    2.0 ± 0.4
    """
    y, base = as_matrix(values, "values"), as_matrix(baseline, "baseline")
    if y.shape != base.shape:
        raise InputError(f"paired_gain: values are {y.shape}, baseline {base.shape}; both are (seeds, rows), the same.")
    if y.shape[1] < 2:
        raise InputError("paired_gain: one row has no standard error; score at least 2 rows (better 100 and more).")
    check_level(level)
    check_baseline(base, "the baseline")
    return gain_of(y, base, group_index(groups, y.shape[1]), seed_variance, level)


def gain_of(
    y: Matrix, base: Matrix, index: NDArray[np.int64] | None, seed_variance: SeedVariance | None, level: float
) -> Gain:
    """`paired_gain` of checked arrays; (S, 1) has no rows to vary over, only seeds."""
    one_run = y.shape[0] == 1
    with np.errstate(invalid="ignore"):
        d = y - base  # (S, R)
    if not np.isfinite(d).all():
        value = -math.inf if np.isneginf(y).any() else math.inf
        return Gain.of_components(value, (), level=level, this_run_only=one_run)
    if index is not None:
        d = _by_group(d, index)
    n_seeds, n_rows = d.shape
    value, cell = float(d.mean()), d.mean(1)
    components: tuple[tuple[float, float], ...]
    if one_run:
        components = ((float(d.var(ddof=1)) / n_rows, n_rows - 1.0),) if n_rows > 1 else ()
        return Gain.of_components(value, components, level=level, this_run_only=True)
    of_cells = seed_variance or SeedVariance(float(cell.var(ddof=1)), n_seeds - 1.0)
    if n_rows == 1:
        components = ((of_cells.value / n_seeds, of_cells.df),)
        return Gain.of_components(value, components, level=level, this_run_only=False)
    row = d.mean(0)
    df_residual = (n_seeds - 1.0) * (n_rows - 1.0)
    ms_residual = float(np.square(d - cell[:, None] - row + value).sum()) / df_residual
    # a variance over seeds of means over rows holds sigma_e^2 / R besides sigma_a^2; likewise over rows
    of_cells = max(of_cells, SeedVariance(ms_residual / n_rows, df_residual), key=lambda each: each.value)
    of_rows = max(float(row.var(ddof=1)) - ms_residual / n_seeds, 0.0)
    components = ((of_cells.value / n_seeds, of_cells.df), (of_rows / n_rows, n_rows - 1.0))
    return Gain.of_components(value, components, level=level, this_run_only=False)


def shared_df(covariance: Matrix, n: int) -> float:
    """Degrees of freedom of tr(C) / k when the k estimates of C (k, k), n degrees each, are correlated."""
    k = covariance.shape[0]
    if n < 2 or k < 2:
        return float(n)
    trace, of_square = float(np.trace(covariance)), float(np.square(covariance).sum())
    # Wishart moments: both plain plug-ins are biased by the n degrees
    square = n**2 / ((n - 1) * (n + 2)) * (of_square - trace**2 / n)
    squared_trace = trace**2 - 2 * square / n
    return float(min(max(n * squared_trace / square, n), n * k)) if square > 0 else float(n * k)


def _by_group(d: Matrix, index: NDArray[np.int64]) -> Matrix:
    """(S, R) -> (S, G): a plain mean over G is the mean over R, and its spread that of whole groups."""
    centre = d.mean(1, keepdims=True)
    n_groups = int(index.max()) + 1
    sums = np.stack([np.bincount(index, weights=row, minlength=n_groups) for row in d - centre])
    return centre + sums * (n_groups / d.shape[1])


def as_matrix(values: ArrayLike, what: str) -> Matrix:
    """log p(x) as (S, R); refuses NaN and +inf, keeps -inf."""
    array = np.atleast_2d(np.asarray(values, dtype=np.float64))
    if array.ndim != 2 or array.size == 0:
        raise InputError(f"{what}: log p(x) has shape {array.shape}; expected (seeds, rows), at least one of each.")
    wrong = np.isnan(array) | np.isposinf(array)
    if wrong.any():
        seed, row = (int(i) for i in np.argwhere(wrong)[0])
        raise InputError(
            f"{what}: log p(x) is {array[seed, row]} in {int(wrong.sum())} of {array.size} values "
            f"(first: seed {seed}, row {row}). Leave this candidate out, or score it again."
        )
    return array


def check_baseline(base: Matrix, what: str) -> None:
    """Refuse a baseline with -inf."""
    impossible = int(np.isneginf(base).any(0).sum())
    if impossible:
        raise InputError(
            f"{what} gives probability 0 to {impossible} of {base.shape[1]} rows, so no gain on it is "
            "finite. Choose a likelihood that covers the data, or leave those rows out."
        )


def check_level(level: float) -> None:
    """Refuse a level outside (0, 1)."""
    if not 0 < level < 1:
        raise InputError(f"level is a probability between 0 and 1, got {level}; try 0.95.")


def group_index(groups: ArrayLike | None, n_rows: int) -> NDArray[np.int64] | None:
    """Labels (R,) as 0 .. G - 1."""
    if groups is None:
        return None
    labels = np.asarray(groups)
    if labels.shape != (n_rows,):
        raise InputError(f"groups has shape {labels.shape}; expected one label for each of the {n_rows} rows.")
    names, index = np.unique(labels, return_inverse=True)
    if len(names) < 2:
        raise InputError("groups: all rows are in one group, so nothing can be said beyond it; give at least 2 groups.")
    return index
