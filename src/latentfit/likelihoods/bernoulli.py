"""Bernoulli: x is 0 or 1."""

from __future__ import annotations

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from latentfit.likelihoods.numerics import drawn, full_precision, refuse
from latentfit.model.contracts import Likelihood


class Bernoulli(Likelihood):
    r"""Bernoulli from logits.

    $$\log p(x \mid z) = \sum_d x_d \log\sigma(l_d) + (1 - x_d) \log\sigma(-l_d), \qquad x_d \in \{0, 1\}$$

    params: logits l, (..., N, *data_shape); computed in float32 at least, also under bfloat16.

    Example:
        >>> import torch
        >>> from latentfit.likelihoods import Bernoulli
        >>> Bernoulli().log_prob(torch.tensor([[1.0, 0.0]]), torch.zeros(1, 2))
        tensor([-1.3863])
    """

    base_measure = "mass"
    reads_logits = True

    def __init__(self) -> None:
        super().__init__()

    def entry_log_prob(self, x: Tensor, params: Tensor, context: Tensor | None = None) -> Tensor:
        logits = full_precision(params)
        # x is 0 or 1, so one log-sigmoid of a signed logit is the whole term: no cancellation, and one pass
        # forward and one backward, which measures faster than binary_cross_entropy_with_logits
        return F.logsigmoid((2 * x.to(logits.dtype) - 1) * logits)

    def mean(self, params: Tensor, context: Tensor | None = None) -> Tensor:
        return torch.sigmoid(full_precision(params))

    @torch.no_grad()
    def sample(self, params: Tensor, context: Tensor | None = None, generator: Generator | None = None) -> Tensor:
        return drawn(torch.bernoulli, self.mean(params), generator=generator)

    def check(self, x: Tensor) -> None:
        hint = (
            "Grey? --likelihood continuous_bernoulli. Counts? --likelihood negative_binomial. "
            "Reals? --likelihood normal."
        )
        refuse(self.name, "0 or 1", x, (x != 0) & (x != 1), (0.0, 1.0), hint)
