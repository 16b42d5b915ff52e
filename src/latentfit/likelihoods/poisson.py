"""Poisson: x counts without a bound."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from latentfit.likelihoods.numerics import (
    MAX_LOG_RATE,
    drawn,
    full_precision,
    not_integer,
    poisson_log_prob,
    refuse,
)
from latentfit.model.contracts import Likelihood


class Poisson(Likelihood):
    r"""Poisson from log-rates.

    $$\log p(x \mid z) = \sum_d x_d a_d - e^{a_d} - \log x_d!, \qquad x_d \in \{0, 1, 2, \dots\}$$

    params: log-rates a, (..., N, *data_shape). Counts are usually more variable than their mean: see
    `NegativeBinomial`. Log-rates above 30 count as 30.

    Example:
        >>> import torch
        >>> from latentfit.likelihoods import Poisson
        >>> Poisson().log_prob(torch.tensor([[0.0, 1.0]]), torch.zeros(1, 2))
        tensor([-2.])
    """

    base_measure = "mass"

    def __init__(self) -> None:
        super().__init__()

    def entry_log_prob(self, x: Tensor, params: Tensor, context: Tensor | None = None) -> Tensor:
        log_rate = full_precision(params)
        return poisson_log_prob(x.to(log_rate.dtype), log_rate)

    def mean(self, params: Tensor, context: Tensor | None = None) -> Tensor:
        return full_precision(params).clamp(max=MAX_LOG_RATE).exp()

    @torch.no_grad()
    def sample(self, params: Tensor, context: Tensor | None = None, generator: Generator | None = None) -> Tensor:
        return drawn(torch.poisson, self.mean(params), generator=generator)

    def check(self, x: Tensor) -> None:
        hint = "Reals? --likelihood normal. Shares of 1? --likelihood continuous_bernoulli."
        refuse(self.name, "counts 0, 1, 2, ...", x, not_integer(x) | (x < 0), (0.0, math.inf), hint)
