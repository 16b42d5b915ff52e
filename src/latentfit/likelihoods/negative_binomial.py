"""Negative binomial: overdispersed counts, with or without an observed library size."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor, nn

from latentfit.errors import InputError
from latentfit.likelihoods.numerics import (
    MAX_LOG_RATE,
    check_columns,
    drawn,
    full_precision,
    negative_binomial_log_prob,
    not_integer,
    refuse,
)
from latentfit.model.contracts import Likelihood

#: bounds of the log inverse dispersion: at e^15 nothing distinguishes it from Poisson
LOG_DISPERSION_BOUNDS = (-15.0, 15.0)


class NegativeBinomial(Likelihood):
    r"""Negative binomial with mean mu and inverse dispersion theta; the variance is mu + mu^2 / theta.

    $$\log p(x \mid z) = \sum_d \log\frac{\Gamma(x_d + \theta_d)}{\Gamma(\theta_d)\,x_d!}
      + x_d \log\frac{\mu_d}{\theta_d + \mu_d} + \theta_d \log\frac{\theta_d}{\theta_d + \mu_d}$$

    params: log-means, (..., N, *data_shape); with `library_size`, logits of each column's share of the row's
    library, mu = l softmax(params), the softmax over the last dimension and l = context[:, 0] > 0.

    Args:
        n_columns: size of the last dimension of x, for one theta per column; without it one theta for all.
        library_size: scale the means by an observed library size, as single-cell models do.

    Source: Lopez et al. (2018), scVI, arXiv:1709.02082.

    Example:
        >>> import torch
        >>> from latentfit.likelihoods import NegativeBinomial
        >>> NegativeBinomial().log_prob(torch.zeros(1, 1), torch.zeros(1, 1)).exp()   # geometric, p = 1/2
        tensor([0.5000], grad_fn=<ExpBackward0>)
    """

    base_measure = "mass"

    def __init__(self, n_columns: int | None = None, library_size: bool = False) -> None:
        super().__init__()
        self.n_columns, self.library_size = n_columns, library_size
        self.log_dispersion = nn.Parameter(torch.zeros(() if n_columns is None else n_columns))

    def entry_log_prob(self, x: Tensor, params: Tensor, context: Tensor | None = None) -> Tensor:
        log_mean = log_mean_of(self.name, full_precision(params), context, self.library_size)
        log_dispersion = self.log_dispersion.clamp(*LOG_DISPERSION_BOUNDS)
        return negative_binomial_log_prob(x.to(log_mean.dtype), log_mean, log_dispersion)

    def mean(self, params: Tensor, context: Tensor | None = None) -> Tensor:
        return log_mean_of(self.name, full_precision(params), context, self.library_size).exp()

    @torch.no_grad()
    def sample(self, params: Tensor, context: Tensor | None = None, generator: Generator | None = None) -> Tensor:
        return sample_counts(self.mean(params, context), self.log_dispersion, generator)

    def check(self, x: Tensor) -> None:
        check_counts(self.name, x, self.n_columns)


def log_mean_of(name: str, params: Tensor, context: Tensor | None, library_size: bool) -> Tensor:
    """Log-means from the decoder's output, (..., N, *data_shape), scaled by context[:, 0] where asked for."""
    if not library_size:
        return params.clamp(max=MAX_LOG_RATE)
    if context is None:
        raise InputError(
            f"likelihood {name!r} with library_size=True reads each row's library size from context[:, 0], "
            "but there is no context. Pass Batch(x, context=x.sum(1, keepdim=True)), or library_size=False."
        )
    if params.dim() < 2:
        raise InputError(
            f"likelihood {name!r} with library_size=True needs rows of columns, got {tuple(params.shape)}."
        )
    library = context[:, 0].to(params.dtype).unsqueeze(-1)  # (N, 1)
    if not bool((library > 0).all()):
        raise InputError(
            f"likelihood {name!r}: library sizes must be positive, context[:, 0] reaches "
            f"{library.min().item():g}. Drop the empty rows."
        )
    return (params.log_softmax(-1) + library.log()).clamp(max=MAX_LOG_RATE)


def sample_counts(mean: Tensor, log_dispersion: Tensor, generator: Generator | None) -> Tensor:
    """Negative binomial counts as a gamma mixture of Poissons: mean (..., *data_shape) -> the same."""
    theta = log_dispersion.clamp(*LOG_DISPERSION_BOUNDS).exp().to(mean.dtype).expand(mean.shape)
    # at small theta a gamma draw underflows to 0, and so would its count: nothing is lost
    rate = drawn(torch._standard_gamma, theta.contiguous(), generator=generator) * (mean / theta)
    return drawn(torch.poisson, rate, generator=generator)


def check_counts(name: str, x: Tensor, n_columns: int | None) -> None:
    """Counts 0, 1, 2, ... in as many columns as there are dispersions."""
    check_columns(name, x, n_columns)
    hint = "Normalised or logged counts? Use the raw ones. Reals? --likelihood normal."
    refuse(name, "counts 0, 1, 2, ...", x, not_integer(x) | (x < 0), (0.0, math.inf), hint)
