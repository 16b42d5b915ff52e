"""Maximum mean discrepancy: the estimate, its gradient, and the permutation test, in blocks of constant memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Generator, Tensor

from latentfit.divergences.kernels import Kernel, median_distance
from latentfit.divergences.samples import TwoSampleTest, slices, two_samples
from latentfit.errors import InputError
from latentfit.networks.products import dense

#: rows of a block: its kernel values stay in the processor's cache
BLOCK = 1_024
#: pooled rows up to which float64 costs nothing that matters
FEW = 2_048
#: bandwidths by default, in medians of the distances: halves of 2 h^2, so that squares of one kernel are the next
FACTORS = (2.0, 2**0.5, 1.0, 0.5**0.5, 0.5)
#: the same of the test, wider: what differs on a small scale only is lost on a large one
TEST_FACTORS = (2.0, 1.0, 0.5, 0.25, 0.125)
#: labels of permutations drawn at once
LABELS_AT_ONCE = 2**20


def mmd2(
    a: ArrayLike | Tensor,
    b: ArrayLike | Tensor,
    bandwidths: float | Sequence[float] | None = None,
    *,
    kernel: str = "rbf",
    unbiased: bool = True,
) -> float:
    r"""The squared maximum mean discrepancy, exactly, each pair of rows once.

        MMD^2 = E k(a, a') + E k(b, b') - 2 E k(a, b),  k(x, y) = exp(-|x - y|^2 / (2 bandwidth^2))

    averaged over the bandwidths. The samples are centred together first: far from the origin float32 would lose the
    distances.

    Args:
        a: (n, D), n >= 2.
        b: (m, D), m >= 2.
        bandwidths: one or several; by default five, from half to twice the median distance. Give them for numbers that
            are to be compared.
        kernel: "rbf"; "imq": 1 / (1 + |x - y|^2 / (2 bandwidth^2)); "energy": -|x - y|, without a bandwidth.
        unbiased: pairs of a row with itself are left out; it may be negative. Otherwise the V-statistic.

    Raises:
        InputError: other shapes, entries that are not finite, a bandwidth that is not positive.

    Source: Gretton et al. (2012), Journal of Machine Learning Research 13, 723-773.

    Example:
        >>> x = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
        >>> mmd2(x[:250], x[250:], 1.0) < 0.01 < mmd2(x[:250], x[250:] + 1, 1.0)
        True
    """
    x, y = two_samples("mmd2", a, b)
    x, y = _centred(x, y)
    k = Kernel.of(kernel, _bandwidths(kernel, bandwidths, x, y, FACTORS))
    return _mmd2(k, x, y, unbiased)[0].item()


def mmd2_with_gradient(z: Tensor, t: Tensor, kernel: Kernel, unbiased: bool = True) -> Tensor:
    """MMD^2 of z (n, D) and t (m, D) as a scalar whose gradient reaches z; t is taken as it is."""
    value: Tensor = _MMD2.apply(z, t, kernel, unbiased)
    return value


class _MMD2(torch.autograd.Function):
    """The gradient is found with the value: nothing of size n m is kept."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, t: Tensor, kernel: Kernel, unbiased: bool) -> Tensor:
        centre = t.mean(0)
        value, gradient = _mmd2(kernel, z.detach() - centre, t - centre, unbiased, ctx.needs_input_grad[0])
        ctx.save_for_backward(gradient)
        return value.to(z.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (gradient,) = ctx.saved_tensors
        return grads[0] * gradient, None, None, None


def _mmd2(
    kernel: Kernel, x: Tensor, y: Tensor, unbiased: bool, want_gradient: bool = False
) -> tuple[Tensor, Tensor | None]:
    """The value (), float64, and its gradient to x where wanted."""
    n, m = len(x), len(y)
    if unbiased and min(n, m) < 2:  # a last batch of one row has no pairs
        unbiased = False
    pairs = {"xx": n * (n - 1) if unbiased else n * n, "yy": m * (m - 1) if unbiased else m * m, "xy": n * m}
    sums = {name: torch.zeros((), dtype=torch.float64, device=x.device) for name in pairs}
    gradient = torch.zeros_like(x) if want_gradient else None
    for name, rows, columns, exponents, times in _pairs(kernel, x, y):
        if want_gradient and name != "yy":
            k, slope = kernel.mean_and_slope(exponents)
        else:
            k = kernel.mean(exponents)
        if times == 1 and name != "xy":
            k.fill_diagonal_(0)  # known without rounding
            if want_gradient and name == "xx":
                slope.fill_diagonal_(0)
        # rows in float32, their sums in float64: a block's sum in float32 would cost the seventh digit
        sums[name] += times * k.sum(1).double().sum()
        if gradient is not None and name != "yy":
            other = x if name == "xx" else y
            share = (2 if name == "xx" else -2) / pairs[name]
            gradient[rows].sub_(share * (slope.sum(1, keepdim=True) * x[rows] - slope @ other[columns]))
            if times == 2:
                gradient[columns].sub_(share * (slope.sum(0)[:, None] * x[columns] - slope.T @ x[rows]))
    if not unbiased and kernel.name != "energy":  # there k(x, x) = 0
        sums["xx"] += n
        sums["yy"] += m
    value = sums["xx"] / pairs["xx"] + sums["yy"] / pairs["yy"] - 2 * sums["xy"] / pairs["xy"]
    return value, gradient


def _pairs(kernel: Kernel, x: Tensor, y: Tensor) -> Iterator[tuple[str, slice, slice, Tensor, int]]:
    """Every block of exponents once: which, its rows and columns, the exponents, and how often it counts."""
    (left_x, right_x), (left_y, right_y) = kernel.sides(x), kernel.sides(y)
    for name, left, right in (("xx", left_x, right_x), ("yy", left_y, right_y), ("xy", left_x, right_y)):
        for rows in slices(len(left), BLOCK):
            for columns in slices(len(right), BLOCK):
                if name == "xy" or columns.start >= rows.start:
                    times = 1 if name == "xy" or rows == columns else 2
                    yield name, rows, columns, dense(left[rows], right[columns]), times


def mmd_test(
    a: ArrayLike | Tensor,
    b: ArrayLike | Tensor,
    bandwidths: float | Sequence[float] | None = None,
    *,
    kernel: str = "rbf",
    n_permutations: int = 500,
    random_state: int = 0,
) -> TwoSampleTest:
    r"""Whether two samples come from one distribution, by MMD and permutations of the labels.

    Each kernel value is computed once and serves all permutations: MMD^2 of every labelling is a quadratic form in
    it. With several bandwidths the smallest of their p-values, ties decided by their mean, is compared with its own
    permutations' (the aggregated test), so that nobody has to choose one, and the level holds exactly.

    Args:
        a: (n, D). For codes: one draw of each row, for several draws of a row are not exchangeable.
        b: (m, D).
        bandwidths: one or several; by default five, from an eighth to twice the median distance of the pooled rows.
        kernel: as in `mmd2`.
        n_permutations: the smallest p-value is 1 / (n_permutations + 1).
        random_state: of the permutations.

    Returns:
        The unbiased MMD^2 averaged over the bandwidths, the aggregated p-value.

    Raises:
        InputError: as `mmd2`, or no permutations.

    Source: Schrab et al. (2023), Journal of Machine Learning Research 24(194), arXiv:2110.15073; the smallest p-value
        with the permutations' own in place of their bisection.

    Example:
        >>> x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
        >>> mmd_test(x[:100], x[100:] + 1).p_value < 0.01
        True
    """
    if n_permutations < 1:
        raise InputError(f"mmd_test: n_permutations must be at least 1, got {n_permutations}.")
    x, y = two_samples("mmd_test", a, b)
    x, y = _centred(x, y)
    chosen = Kernel.of(kernel, _bandwidths(kernel, bandwidths, x, y, TEST_FACTORS))
    labels = _labels(len(x), len(y), n_permutations, random_state).to(x.device)  # (P + 1, N)
    values = _permuted(chosen, torch.cat([x, y]), labels, len(x))  # (H, P + 1)
    # of each labelling and bandwidth, the share of labellings that are at least as far apart
    order = values.sort(dim=1).values
    p_values = 1 - torch.searchsorted(order, values.contiguous(), side="left") / values.shape[1]
    # p-values are multiples of 1 / (P + 1), so several bandwidths tie, and ties hold the level below what was asked
    smallest = p_values.min(0).values + p_values.mean(0) / values.shape[1]
    averaged = values.mean(0)
    low, high = torch.quantile(averaged[1:], averaged.new_tensor([0.025, 0.975])).tolist()
    p_value = (smallest <= smallest[0] + 1e-12).double().mean().item()
    return TwoSampleTest(averaged[0].item(), p_value, (low, high))


def _permuted(kernel: Kernel, pooled: Tensor, labels: Tensor, n: int) -> Tensor:
    """Unbiased MMD^2 of every bandwidth and labelling: pooled (N, D), labels +-1 (P + 1, N) -> (H, P + 1).

    With w the labels and K without its diagonal, w'Kw, 1'Kw and 1'K1 give the three sums.
    """
    left, right = kernel.sides(pooled)
    total, m = len(pooled), len(pooled) - n
    n_kernels = len(kernel.bandwidths)
    forms = torch.zeros(n_kernels, len(labels), dtype=torch.float64, device=pooled.device)
    row_sums = torch.zeros(n_kernels, total, dtype=torch.float64, device=pooled.device)
    for columns in slices(total, BLOCK):
        signs = labels[:, columns].to(pooled.dtype)  # (P + 1, B)
        for rows in slices(columns.stop, BLOCK):
            own = labels[:, rows].to(pooled.dtype)
            times = 1 if rows == columns else 2
            for i, (_, k) in enumerate(kernel.each(dense(left[rows], right[columns]))):
                if times == 1:
                    k.fill_diagonal_(0)
                forms[i] += times * (dense(signs, k) * own).sum(1).double()
                row_sums[i, rows] += k.sum(1).double()
                if times == 2:
                    row_sums[i, columns] += k.sum(0).double()
    everything = row_sums.sum(1, keepdim=True)  # 1'K1
    linear = torch.cat([row_sums @ part.double().T for part in labels.split(64)], 1)  # 1'Kw
    across = (everything - forms) / 4
    first = ((everything + forms) / 2 + linear) / 2
    second = ((everything + forms) / 2 - linear) / 2
    return (first / (n * (n - 1)) + second / (m * (m - 1)) - 2 * across / (n * m)).cpu()


def _labels(n: int, m: int, n_permutations: int, random_state: int) -> Tensor:
    """+1 of n rows, -1 of m: (n_permutations + 1, n + m) int8, the given labelling first."""
    generator = Generator().manual_seed(random_state)
    labels = torch.full((n_permutations + 1, n + m), -1, dtype=torch.int8)
    labels[0, :n] = 1
    for rows in slices(n_permutations, max(1, LABELS_AT_ONCE // (n + m))):
        size = rows.stop - rows.start
        # float64: among float32 keys there are ties, and so labellings of another size
        keys = torch.rand(size, n + m, dtype=torch.float64, generator=generator)
        labels[1:][rows][keys <= keys.kthvalue(n, dim=1, keepdim=True).values] = 1
    return labels


def _centred(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Both less their common mean; in float64 where there are few rows, else in float32."""
    centre = (x.double().sum(0) + y.double().sum(0)) / (len(x) + len(y))
    dtype = torch.float64 if len(x) + len(y) <= FEW else torch.float32
    return (x - centre.to(x)).to(dtype), (y - centre.to(y)).to(dtype)


def _bandwidths(
    kernel: str, given: float | Sequence[float] | None, x: Tensor, y: Tensor, factors: Sequence[float]
) -> float | Sequence[float]:
    if kernel == "energy":
        if given is not None:
            raise InputError("The energy kernel has no bandwidth: leave bandwidths out.")
        return 1.0
    if given is not None:
        return given
    median = median_distance(x, y)
    return [factor * median for factor in factors]
