"""Binomial: x counts successes among n."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from latentfit.errors import InputError
from latentfit.likelihoods.numerics import drawn, full_precision, not_integer, refuse
from latentfit.model.contracts import Likelihood


class Binomial(Likelihood):
    r"""Binomial with a known number of trials, from logits.

    $$\log p(x \mid z) = \sum_d \log\binom{n}{x_d} + x_d \log\sigma(l_d) + (n - x_d) \log\sigma(-l_d),
      \qquad x_d \in \{0, \dots, n\}$$

    params: logits l, (..., N, *data_shape).

    Args:
        n: number of trials, the same for all entries.

    Raises:
        InputError: n is not between 1 and 1,000,000.

    Example:
        >>> import torch
        >>> from latentfit.likelihoods import Binomial
        >>> Binomial(n=2).log_prob(torch.tensor([[1.0]]), torch.zeros(1, 1)).exp()
        tensor([0.5000])
    """

    base_measure = "mass"
    reads_logits = True

    def __init__(self, n: int) -> None:
        super().__init__()
        if not 1 <= n <= 1_000_000:
            raise InputError(
                f"likelihood 'binomial' needs n between 1 and 1,000,000, got {n}. Unbounded? Use 'poisson'."
            )
        self.n = n
        log_factorial = [math.lgamma(k + 1) for k in range(n + 1)]
        table = [log_factorial[n] - log_factorial[k] - log_factorial[n - k] for k in range(n + 1)]
        # read from a float64 table: exact for every x, and cheaper than three log-gammas per entry
        # (a plain attribute: some devices have no float64 buffers)
        self._log_coefficients = torch.tensor(table, dtype=torch.float64)

    def entry_log_prob(self, x: Tensor, params: Tensor, context: Tensor | None = None) -> Tensor:
        logits = full_precision(params)
        constant = self._log_coefficients.to(x.device, logits.dtype)[x.clamp(0, self.n).long()]
        x = x.to(logits.dtype)
        # log sigmoid(l) = l + log sigmoid(-l), with the sign under which neither term cancels the other
        return (
            constant
            + x * torch.clamp(logits, max=0)
            + (x - self.n) * F.relu(logits)
            - self.n * torch.log1p(torch.exp(-logits.abs()))
        )

    def mean(self, params: Tensor, context: Tensor | None = None) -> Tensor:
        return self.n * torch.sigmoid(full_precision(params))

    @torch.no_grad()
    def sample(self, params: Tensor, context: Tensor | None = None, generator: Generator | None = None) -> Tensor:
        p = torch.sigmoid(full_precision(params))
        return drawn(torch.binomial, torch.full_like(p, self.n), p, generator=generator)

    def check(self, x: Tensor) -> None:
        bad = not_integer(x) | (x < 0) | (x > self.n)
        hint = "More trials? Raise n. No bound? --likelihood negative_binomial. Reals? --likelihood normal."
        refuse(self.name, f"whole numbers 0 to {self.n}", x, bad, (0.0, float(self.n)), hint)
