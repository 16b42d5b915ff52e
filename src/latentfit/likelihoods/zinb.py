"""Zero-inflated negative binomial: counts with more zeros than the counting explains."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from latentfit.likelihoods.negative_binomial import (
    LOG_DISPERSION_BOUNDS,
    check_counts,
    log_mean_of,
    sample_counts,
)
from latentfit.likelihoods.numerics import drawn, full_precision, negative_binomial_log_prob
from latentfit.model.contracts import Likelihood


class ZeroInflatedNegativeBinomial(Likelihood):
    r"""Negative binomial, replaced by 0 with a probability that the decoder gives.

    $$p(x_d \mid z) = \pi_d \, [x_d = 0] + (1 - \pi_d) \, \mathrm{NB}(x_d; \mu_d, \theta_d),
      \qquad \pi_d = \sigma(l_d)$$

    params: (..., N, *data_shape, 2), the log-mean (or, with `library_size`, the logit of the column's share;
    see `NegativeBinomial`) and the dropout logit l.

    Args:
        n_columns: size of the last dimension of x, for one theta per column; without it one theta for all.
        library_size: mu = l softmax(params[..., 0]) with l = context[:, 0].

    Source: Lopez et al. (2018), scVI, arXiv:1709.02082.

    Example:
        >>> import torch
        >>> from latentfit.likelihoods import ZeroInflatedNegativeBinomial
        >>> zinb = ZeroInflatedNegativeBinomial()
        >>> zinb.log_prob(torch.zeros(1, 1), torch.zeros(1, 1, 2)).exp()  # 1/2 + 1/2 * 1/2
        tensor([0.7500], grad_fn=<ExpBackward0>)
    """

    n_parameters = 2
    base_measure = "mass"

    def __init__(self, n_columns: int | None = None, library_size: bool = False) -> None:
        super().__init__()
        self.n_columns, self.library_size = n_columns, library_size
        self.log_dispersion = nn.Parameter(torch.zeros(() if n_columns is None else n_columns))

    def entry_log_prob(self, x: Tensor, params: Tensor, context: Tensor | None = None) -> Tensor:
        log_mean, dropout = self._log_mean_and_dropout(params, context)
        log_dispersion = self.log_dispersion.clamp(*LOG_DISPERSION_BOUNDS)
        counted = negative_binomial_log_prob(x.to(log_mean.dtype), log_mean, log_dispersion)
        return torch.where(x == 0, torch.logaddexp(dropout, counted), counted) - F.softplus(dropout)

    def mean(self, params: Tensor, context: Tensor | None = None) -> Tensor:
        log_mean, dropout = self._log_mean_and_dropout(params, context)
        return torch.sigmoid(-dropout) * log_mean.exp()

    @torch.no_grad()
    def sample(self, params: Tensor, context: Tensor | None = None, generator: Generator | None = None) -> Tensor:
        log_mean, dropout = self._log_mean_and_dropout(params, context)
        counts = sample_counts(log_mean.exp(), self.log_dispersion, generator)
        return counts * drawn(torch.bernoulli, torch.sigmoid(-dropout), generator=generator)

    def check(self, x: Tensor) -> None:
        check_counts(self.name, x, self.n_columns)

    def _log_mean_and_dropout(self, params: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        first, dropout = full_precision(params).unbind(-1)
        return log_mean_of(self.name, first, context, self.library_size), dropout
