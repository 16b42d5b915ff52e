r"""The Normal-Wishart family: one posterior over a Gaussian's mean and precision, and all its closed forms.

    L ~ Wishart(nu, Psi^{-1}),   mu given L ~ N(m, (kappa L)^{-1}),   z given mu, L ~ N(mu, L^{-1}),

with the hyper-prior m = 0, kappa0, nu0 = d + 1 + s and Psi0 = s tau^2 I, so that E C = tau^2 I whatever s: s counts
rows that were seen before the data, with that covariance. n rows give kappa = kappa0 + n, nu = nu0 + n. The
covariance is held as W, W^T W = (E C)^{-1} = (nu - d - 1) Psi^{-1}. In one dimension this is the
Normal-inverse-gamma with a = (s + 2 + n) / 2.

Constants are computed in float64: log-gammas of thousands of rows cancel. Source: Gelman et al. (2013), Bayesian
Data Analysis, sections 3.3 and 3.6; Bishop (2006), Pattern Recognition and Machine Learning, section 10.2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from latentfit.model.contracts import LOG_2PI

#: bounds of log s and log kappa0: a hundredth of a row to a hundred thousand
LOG_ROWS = (math.log(0.01), math.log(1e5))
#: bounds of log s where only correlations are shrunk, and the points between them
LOG_SHRINKING, LINE = (math.log(1e-3), math.log(1e6)), 200
#: tau^2 is sought within this factor of the rows' mean square
SCALES = math.log(1e3)
#: points of a line of the search, and how often its reach is narrowed
POINTS, ROUNDS = 9, 5


@dataclass(frozen=True, slots=True)
class Hyper:
    """log s, log kappa0 and log tau^2: scalars."""

    log_rows: Tensor
    log_mean_rows: Tensor
    log_variance: Tensor

    def numbers(self) -> tuple[Tensor, Tensor, Tensor]:
        """s, kappa0, log tau^2, in float64 and within `LOG_ROWS`."""
        rows, mean_rows = (log.double().clamp(*LOG_ROWS).exp() for log in (self.log_rows, self.log_mean_rows))
        return rows, mean_rows, self.log_variance.double()


def expected_log_prob(energy: Tensor, log_det: Tensor, n: Tensor, dim: int, hyper: Hyper) -> Tensor:
    r"""E over mu and L of log N(z; mu, L^{-1}).

        = (E log|L| - d log 2 pi - nu / (s + n) |W (z - m)|^2 - d / kappa) / 2,
        E log|L| = sum_i psi((nu + 1 - i) / 2) + d log(2 / (s + n)) + 2 log det W

    Args:
        energy: |W (z - m)|^2 (..., B) for each of B posteriors.
        log_det: log det W (B,).
        n: rows (B,), or a scalar.
        dim: d.
        hyper: of all of them.

    Returns:
        (..., B), in nats.
    """
    constant, slope = expected_constant(n, dim, hyper)
    return log_det + constant.to(energy) - 0.5 * dim * LOG_2PI - 0.5 * slope.to(energy) * energy


def expected_constant(n: Tensor, dim: int, hyper: Hyper) -> tuple[Tensor, Tensor]:
    """What E log N(z) has beyond log det W - D log(2 pi) / 2, and nu / (s + n), the factor of its energy: like n."""
    s, kappa0, _ = hyper.numbers()
    n = n.double()
    nu = dim + 1 + s + n
    constant = _digamma(nu / 2, dim) + dim * (math.log(2) - (s + n).log()) - dim / (kappa0 + n)
    return 0.5 * constant, nu / (s + n)


def predictive_log_prob(energy: Tensor, log_det: Tensor, n: Tensor, dim: int, hyper: Hyper) -> Tensor:
    r"""The log density of the next row: a Student-t, arguments and result as of `expected_log_prob`.

    t with s + n + 2 degrees of freedom around m, of shape c (W^T W)^{-1}, c as in `predictive`.
    """
    freedom, stretch = predictive(n, dim, hyper)
    half = 0.5 * (freedom + dim)
    constant = half.lgamma() - (0.5 * freedom).lgamma() - 0.5 * dim * (math.pi * freedom * stretch).log()
    ratio = energy / (freedom * stretch).to(energy)
    return log_det + constant.to(energy) - half.to(energy) * ratio.log1p()


def predictive(n: Tensor, dim: int, hyper: Hyper) -> tuple[Tensor, Tensor]:
    r"""Degrees of freedom s + n + 2 and c = (s + n)(kappa + 1) / (kappa (s + n + 2)) of the predictive: like n."""
    s, kappa0, _ = hyper.numbers()
    kappa, freedom = kappa0 + n.double(), s + n.double() + 2
    return freedom, (freedom - 2) * (kappa + 1) / (kappa * freedom)


def divergence(square: Tensor, trace: Tensor, log_det: Tensor, n: Tensor, dim: int, hyper: Hyper) -> Tensor:
    r"""KL of the posterior from the hyper-prior, in nats.

    Args:
        square: |W m|^2 (B,).
        trace: trace of W^T W (B,).
        log_det: log det W (B,).
        n: rows (B,), or a scalar.
        dim: d.
        hyper: of all of them.

    Returns:
        (B,), float64.
    """
    s, kappa0, log_variance = hyper.numbers()
    n, square, trace, log_det = n.double(), square.double(), trace.double(), log_det.double()
    kappa, nu, nu0 = kappa0 + n, dim + 1 + s + n, dim + 1 + s
    ratio = kappa0 / kappa
    of_mean = 0.5 * (dim * (ratio - 1 - ratio.log()) + kappa0 * nu / (s + n) * square)
    # log |Psi0 Psi^{-1}| and its trace
    volume = dim * (s.log() + log_variance - (s + n).log()) + 2 * log_det
    overlap = s * log_variance.exp() / (s + n) * trace
    gammas = _lgamma(nu0 / 2, dim) - _lgamma(nu / 2, dim) + 0.5 * (nu - nu0) * _digamma(nu / 2, dim)
    return of_mean - 0.5 * nu0 * volume + 0.5 * nu * (overlap - dim) + gammas


@dataclass(frozen=True, slots=True)
class Statistics:
    """What B groups of rows say: counts (B,), means (B, d), sums of squares around them (B, d, d); float64."""

    n: Tensor
    mean: Tensor
    scatter: Tensor

    def posterior(self, hyper: Hyper) -> tuple[Tensor, Tensor]:
        """m (B, d) and E C (B, d, d)."""
        s, kappa0, log_variance = hyper.numbers()
        mean = (self.n / (kappa0 + self.n))[:, None] * self.mean
        pulled = (kappa0 * self.n / (kappa0 + self.n))[:, None, None] * self.mean[:, :, None] * self.mean[:, None, :]
        prior = s * log_variance.exp() * torch.eye(self.mean.shape[1], dtype=self.mean.dtype)
        return mean, (prior + self.scatter + pulled) / (s + self.n)[:, None, None]

    def evidence(self, hyper: Hyper) -> Tensor:
        """log of the probability of each group's rows, parameters integrated out: (B,), nats."""
        return _evidence(self, torch.linalg.eigh(self.scatter), *(_line(x) for x in _logs(hyper)))[0]

    def best_hyper(self) -> Hyper:
        """The hyper-prior that maximises the groups' total evidence (empirical Bayes at the top).

        A search on a grid that narrows: s and tau^2 together, then kappa0.
        """
        eigen = torch.linalg.eigh(self.scatter)
        total = self.n.sum().clamp_min(1)
        square = eigen.eigenvalues.sum() + (self.n[:, None] * self.mean.square()).sum()
        scale = (square / (total * self.mean.shape[1])).clamp_min(1e-30).log()
        middle = 0.5 * (LOG_ROWS[0] + LOG_ROWS[1])
        s = kappa0 = torch.tensor(middle, dtype=torch.float64)
        log_variance, reach = scale, torch.tensor(1.0, dtype=torch.float64)
        steps = torch.linspace(-1, 1, POINTS, dtype=torch.float64)
        for _ in range(ROUNDS):
            rows = (s + reach * (LOG_ROWS[1] - middle) * steps).clamp(*LOG_ROWS)
            variances = (log_variance + reach * SCALES * steps).clamp(scale - SCALES, scale + SCALES)
            pair = torch.cartesian_prod(rows, variances)
            found = _evidence(self, eigen, pair[:, 0], _line(kappa0), pair[:, 1]).sum(1).argmax()
            s, log_variance = pair[found]
            lines = (kappa0 + reach * (LOG_ROWS[1] - middle) * steps).clamp(*LOG_ROWS)
            kappa0 = lines[_evidence(self, eigen, _line(s), lines, _line(log_variance)).sum(1).argmax()]
            reach = reach * 0.35
        return Hyper(s, kappa0, log_variance)


def rows_without_correlation(correlation: Tensor, n: int) -> float:
    """s of largest evidence where n rows of mean 0 have these correlations (d, d), and tau^2 is 1.

    Correlations shrunk by n / (n + s) are their posterior means: noise goes, and what is nearly collinear stays so.
    """
    statistics = Statistics(
        correlation.new_tensor([n]), correlation.new_zeros(1, len(correlation)), n * correlation[None]
    )
    log_rows, zero = torch.linspace(*LOG_SHRINKING, LINE, dtype=correlation.dtype), correlation.new_zeros(1)
    found = _evidence(statistics, torch.linalg.eigh(statistics.scatter), log_rows, zero, zero).sum(1)
    return log_rows[found.argmax()].exp().item()


def inverse_factor(covariance: Tensor) -> Tensor:
    """W with W^T W the inverse, lower triangular: (..., d, d) -> (..., d, d)."""
    lower = torch.linalg.cholesky(covariance)
    identity = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
    return torch.linalg.solve_triangular(lower, identity.expand_as(lower), upper=False)


def _logs(hyper: Hyper) -> tuple[Tensor, Tensor, Tensor]:
    s, kappa0, log_variance = hyper.numbers()
    return s.log(), kappa0.log(), log_variance


def _line(value: Tensor) -> Tensor:
    return value.reshape(1)


def _evidence(
    statistics: Statistics, eigen: tuple[Tensor, Tensor], log_s: Tensor, log_kappa0: Tensor, log_variance: Tensor
) -> Tensor:
    """For each of G hyper-priors, given as three (G,) or (1,): (G, B)."""
    n, dim = statistics.n, statistics.mean.shape[1]
    values, vectors = eigen
    along = (vectors.mT @ statistics.mean.unsqueeze(-1)).squeeze(-1).square()  # (B, d)
    s, kappa0 = log_s.exp().unsqueeze(-1), log_kappa0.exp().unsqueeze(-1)  # (G, 1)
    pull = kappa0 * n / (kappa0 + n)  # (G, B)
    spread = values.clamp_min(0) + (s * log_variance.exp().unsqueeze(-1)).unsqueeze(-1)  # (G, B, d)
    # log det (A + c m m^T) = log det A + log(1 + c m^T A^{-1} m): one eigendecomposition serves all of the grid
    log_det = spread.log().sum(-1) + (pull * (along / spread).sum(-1)).log1p()
    nu0 = dim + 1 + s
    return (
        -0.5 * n * dim * math.log(math.pi)
        + _lgamma((nu0 + n) / 2, dim)
        - _lgamma(nu0 / 2, dim)
        + 0.5 * nu0 * dim * (log_s + log_variance).unsqueeze(-1)
        - 0.5 * (nu0 + n) * log_det
        + 0.5 * dim * (kappa0 / (kappa0 + n)).log()
    )


def _halves(x: Tensor, dim: int) -> Tensor:
    """x, x - 1/2, ..., x - (d - 1)/2 along a new last dimension."""
    return x.unsqueeze(-1) - 0.5 * torch.arange(dim, dtype=x.dtype, device=x.device)


def _digamma(x: Tensor, dim: int) -> Tensor:
    return torch.digamma(_halves(x, dim)).sum(-1)


def _lgamma(x: Tensor, dim: int) -> Tensor:
    return torch.lgamma(_halves(x, dim)).sum(-1)
