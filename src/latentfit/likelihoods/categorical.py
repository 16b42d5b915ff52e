"""Categorical: x is the number of a class."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from latentfit.errors import InputError
from latentfit.likelihoods.numerics import drawn, full_precision, not_integer, refuse
from latentfit.model.contracts import Likelihood


class Categorical(Likelihood):
    r"""Categorical from logits, one class per entry.

    $$\log p(x \mid z) = \sum_d l_{d, x_d} - \log\sum_k e^{l_{d, k}}, \qquad x_d \in \{0, \dots, K - 1\}$$

    params: logits l, (..., N, *data_shape, K).

    Args:
        n_classes: K, at least 2.

    Raises:
        InputError: fewer than 2 classes.

    Example:
        >>> import torch
        >>> from latentfit.likelihoods import Categorical
        >>> Categorical(n_classes=4).log_prob(torch.tensor([[2]]), torch.zeros(1, 1, 4)).exp()
        tensor([0.2500])
    """

    base_measure = "mass"

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        if n_classes < 2:
            raise InputError(f"likelihood 'categorical' needs n_classes of at least 2, got {n_classes}.")
        self.n_classes = self.n_parameters = n_classes

    def entry_log_prob(self, x: Tensor, params: Tensor, context: Tensor | None = None) -> Tensor:
        logits = full_precision(params)
        index = x.clamp(0, self.n_classes - 1).long().expand(logits.shape[:-1]).unsqueeze(-1)
        return logits.gather(-1, index).squeeze(-1) - logits.logsumexp(-1)

    def probabilities(self, params: Tensor) -> Tensor:
        """p of each class: (..., *data_shape, K)."""
        return full_precision(params).softmax(-1)

    def mean(self, params: Tensor, context: Tensor | None = None) -> Tensor:
        """E of the class *number*, (..., *data_shape): for ordered classes; else see `probabilities`."""
        p = self.probabilities(params)
        return (p * torch.arange(self.n_classes, dtype=p.dtype, device=p.device)).sum(-1)

    @torch.no_grad()
    def sample(self, params: Tensor, context: Tensor | None = None, generator: Generator | None = None) -> Tensor:
        p = self.probabilities(params)
        draws = drawn(_pick, p.reshape(-1, self.n_classes), generator=generator)
        return draws.reshape(p.shape[:-1]).to(p.dtype)

    def check(self, x: Tensor) -> None:
        bad = not_integer(x) | (x < 0) | (x >= self.n_classes)
        hint = "More? Raise n_classes. Counts? --likelihood negative_binomial. Reals? --likelihood normal."
        refuse(self.name, f"classes 0 to {self.n_classes - 1}", x, bad, (0.0, self.n_classes - 1.0), hint)


def _pick(p: Tensor, generator: Generator | None) -> Tensor:
    """A class by its probability: (R, K) -> (R, 1)."""
    return torch.multinomial(p, 1, replacement=True, generator=generator)
