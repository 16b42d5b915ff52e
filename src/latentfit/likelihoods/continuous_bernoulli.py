"""Continuous Bernoulli: x in [0, 1], such as grey pixels."""

from __future__ import annotations

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from latentfit.likelihoods.numerics import drawn, full_precision, log_exponential_mean, refuse, uniform
from latentfit.model.contracts import Likelihood


class ContinuousBernoulli(Likelihood):
    r"""Continuous Bernoulli from logits, with its normalising constant.

    $$\log p(x \mid z) = \sum_d x_d l_d - \log\int_0^1 e^{t l_d} dt
      = \sum_d x_d l_d - \log\frac{e^{l_d} - 1}{l_d}, \qquad x_d \in [0, 1]$$

    params: logits l of the parameter lambda = sigmoid(l), (..., N, *data_shape).
    Near l = 0 (lambda = 1/2) the constant is computed by its series.

    Source: Loaiza-Ganem & Cunningham (2019), arXiv:1907.06845.

    Example:
        >>> import torch
        >>> from latentfit.likelihoods import ContinuousBernoulli
        >>> ContinuousBernoulli().log_prob(torch.tensor([[0.3]]), torch.zeros(1, 1)).item()
        0.0
    """

    base_measure = "density"
    reads_logits = True

    def __init__(self) -> None:
        super().__init__()

    def entry_log_prob(self, x: Tensor, params: Tensor, context: Tensor | None = None) -> Tensor:
        logits = full_precision(params)
        # log of the integral of e^{t l}: relu(l) + log of that of e^{-|l| t}, by symmetry
        constant = F.relu(logits) + log_exponential_mean(logits.abs())
        return x.to(logits.dtype) * logits - constant

    def mean(self, params: Tensor, context: Tensor | None = None) -> Tensor:
        logits = full_precision(params)
        h = 0.5 * logits
        near = h.abs() < 0.25
        h2 = torch.where(near, h, 0.0).square()
        series = h * (1 / 3 - h2 * (1 / 45 - h2 * (2 / 945 - h2 * (1 / 4725 - h2 * 2 / 93555))))
        far = torch.where(near, 1.0, h)
        return 0.5 + 0.5 * torch.where(near, series, 1 / far.tanh() - 1 / far)

    @torch.no_grad()
    def sample(self, params: Tensor, context: Tensor | None = None, generator: Generator | None = None) -> Tensor:
        logits = full_precision(params)
        u = drawn(uniform, logits, generator=generator)
        a = logits.abs().clamp(min=1e-4)  # below, the density is flat to 1e-4
        low = torch.log1p(u * torch.expm1(-a)) / -a
        return torch.where(logits > 0, 1 - low, low).clamp(0, 1)

    def check(self, x: Tensor) -> None:
        hint = "Pixels of 0..255? Divide them, or --likelihood discretised_logistic. Reals? --likelihood normal."
        refuse(self.name, "values in [0, 1]", x, ~((x >= 0) & (x <= 1)), (0.0, 1.0), hint)
