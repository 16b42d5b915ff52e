"""Importance weights of several models, reduced model by model to what the diagnostics need."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from latentfit.evaluation.psis import pareto_k


class PooledWeights:
    """Log-weights of R rows under one model after another; of each a few numbers per row are kept.

    Each model has S draws of its own, so the mean over all is that of a stratified sample: what the models differ by is
    no part of its error, as it would be with all weights in one heap. Memory: a few numbers per row and model,
    whatever S.
    """

    def __init__(self) -> None:
        self.n_samples = 0
        self.log_p: list[Tensor] = []  # of each model (R,)
        self._log_squares: list[Tensor] = []
        self._halves: list[Tensor] = []  # (2, R)
        self._pareto_k: list[Tensor] = []

    def add(self, log_w: Tensor) -> None:
        """The next model's log-weights (S, R), float64."""
        self.n_samples = len(log_w)
        self.log_p.append(log_w.logsumexp(0) - math.log(len(log_w)))
        self._log_squares.append((2 * log_w).logsumexp(0))
        halves = [part.logsumexp(0) - math.log(len(part)) for part in (log_w[::2], log_w[1::2]) if len(part)]
        self._halves.append(torch.stack(halves))
        self._pareto_k.append(pareto_k(log_w))

    @property
    def shares(self) -> Tensor:
        """(M, R) of each model in p(x)."""
        return torch.stack(self.log_p).softmax(0)

    @property
    def values(self) -> Tensor:
        """(R,) log p(x) of the mixture."""
        return torch.stack(self.log_p).logsumexp(0) - math.log(len(self.log_p))

    @property
    def effective_sample_size(self) -> Tensor:
        """(R,) (sum w)^2 / sum w^2."""
        log_total = self.values + math.log(len(self.log_p) * self.n_samples)
        return (2 * log_total - torch.stack(self._log_squares).logsumexp(0)).exp()

    @property
    def std_error(self) -> Tensor:
        r"""(R,) of `values`: (sum_m a_m^2 (1 / ESS_m - 1 / S) S / (S - 1))^(1/2), a_m the share of model m."""
        s = self.n_samples
        if s == 1:  # no spread to estimate an error from
            return torch.full_like(self.log_p[0], math.nan)
        within = 1 / self.effective_sample_size - self.shares.square().sum(0) / s
        return (within.clamp_min(0) * s / (s - 1)).sqrt()

    @property
    def pareto_k(self) -> Tensor:
        """(R,) mean of the models' own, weighted by their shares in p(x).

        Not the largest: each is known to about 0.2, and the largest of ten exceeds the gate by chance in every other
        row (measured on digits: 50 % of rows, where 6 to 10 % of the single k do).
        """
        shares = self.shares
        return torch.where(shares == 0, 0.0, shares * torch.stack(self._pareto_k)).sum(0)

    @property
    def doubling(self) -> Tensor:
        """(R,) `values` less the mean of those by either half of every model's draws."""
        if self.n_samples == 1:
            return torch.full_like(self.log_p[0], math.nan)
        halves = torch.stack(self._halves).logsumexp(0) - math.log(len(self.log_p))
        return self.values - halves.mean(0)


def effective_draws(log_p: np.ndarray) -> np.ndarray:
    """(sum p)^2 / sum p^2 over models, from 1 to M: log p(x given w_m) (M, N) -> (N,)."""
    with np.errstate(invalid="ignore"):  # nan where no model gives the row any probability
        return np.exp(2 * np.logaddexp.reduce(log_p, 0) - np.logaddexp.reduce(2 * log_p, 0))


@dataclass(frozen=True)
class OverModels:
    r"""What is uncertain in the mean over rows of log 1/M sum_m p_m(x) because the M models are draws of many.

    By the jackknife, leaving out one model at a time, which knows that one draw of the weights moves all rows together:

        bias = (M - 1) (mean_m f_(-m) - f),   std_error^2 = (M - 1) / M sum_m (f_(-m) - mean_m f_(-m))^2

    Where models differ by more nats than log M, the largest p_m is the sum, and both are lower limits: what M draws did
    not show is not in them. An ensemble that is meant as it stands is no sample of others, and has neither.

    Attributes:
        n: M.
        effective: (N,) `effective_draws`: how many explain the row.
        bias: nats, not above 0; std_error: nats.
    """

    n: int
    effective: np.ndarray
    bias: float
    std_error: float

    @classmethod
    def of(cls, log_p: np.ndarray, weights: np.ndarray | None = None) -> OverModels:
        """From log p(x given w_m) (M, N) of at least two models, and the rows' weights (N,)."""
        m = len(log_p)

        def mixed(values: np.ndarray) -> np.ndarray:
            return np.logaddexp.reduce(values, 0) - math.log(len(values))

        def mean(values: np.ndarray) -> float:
            return float(np.average(values, weights=weights))

        without = np.array([mean(mixed(np.delete(log_p, left_out, 0))) for left_out in range(m)])
        return cls(
            n=m,
            effective=effective_draws(log_p),
            bias=(m - 1) * (float(without.mean()) - mean(mixed(log_p))),
            std_error=math.sqrt((m - 1) / m * float(np.square(without - without.mean()).sum())),
        )

    def __str__(self) -> str:
        return (
            f"{self.n} models, {np.median(self.effective):.1f} effective in the middle row; as draws of many: bias "
            f"{self.bias:.2g}, ± {self.std_error:.2g}"
        )
