"""Discretised logistic: ordered levels, such as pixels of 0..255."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from latentfit.errors import InputError
from latentfit.likelihoods.numerics import (
    drawn,
    full_precision,
    log_difference_of_sigmoids,
    not_integer,
    refuse,
    uniform,
)
from latentfit.model.contracts import Likelihood

#: bounds of the log-scale, in units of half the range: e^-7 is a ninth of one of 256 levels
LOG_SCALE_BOUNDS = (-7.0, 7.0)


class DiscretisedLogistic(Likelihood):
    r"""The mass that a logistic distribution puts on each level; the first and last level get the tails.

    $$p(x_d \mid z) = \sigma\Big(\frac{u_d + h - m_d}{s_d}\Big) - \sigma\Big(\frac{u_d - h - m_d}{s_d}\Big),
      \qquad u_d = \frac{2 x_d}{L - 1} - 1, \quad h = \frac{1}{L - 1}, \quad x_d \in \{0, \dots, L - 1\}$$

    with -infinity for the lower limit of level 0 and infinity for the upper one of level L - 1.

    params: locations m with levels mapped to [-1, 1], (..., N, *data_shape), so that an output of 0 is
    mid-range; for `scale="row"`, (..., N, *data_shape, 2) with location and log-scale.

    Args:
        levels: L, at least 2.
        scale: `"learned"`, one scale for all entries, a parameter; `"row"`, one per row and entry, by the
            decoder.

    Raises:
        InputError: fewer than 2 levels, or another scale.

    Source: Kingma et al. (2016), arXiv:1606.04934; Salimans et al. (2017), arXiv:1701.05517.

    Example:
        >>> import torch
        >>> from latentfit.likelihoods import DiscretisedLogistic
        >>> DiscretisedLogistic(levels=2).log_prob(torch.tensor([[1.0]]), torch.zeros(1, 1)).exp()
        tensor([0.5000], grad_fn=<ExpBackward0>)
    """

    base_measure = "mass"

    def __init__(self, levels: int, scale: Literal["learned", "row"] = "learned") -> None:
        super().__init__()
        if levels < 2:
            raise InputError(f"likelihood 'discretised_logistic' needs levels of at least 2, got {levels}.")
        if scale not in ("learned", "row"):
            raise InputError(f"likelihood 'discretised_logistic': scale is 'learned' or 'row', got {scale!r}.")
        self.levels, self.scale = levels, scale
        if scale == "row":
            self.n_parameters = 2
        else:
            self.log_scale = nn.Parameter(torch.tensor(-1.0))

    def entry_log_prob(self, x: Tensor, params: Tensor, context: Tensor | None = None) -> Tensor:
        location, inverse_scale = self._location_and_inverse_scale(params)
        x = x.to(location.dtype)
        half = 1 / (self.levels - 1)
        upper = (2 * half * x - 1 + half - location) * inverse_scale
        width = 2 * half * inverse_scale
        first, last = x <= 0, x >= self.levels - 1
        interior = log_difference_of_sigmoids(upper, width)
        return torch.where(first, F.logsigmoid(upper), torch.where(last, F.logsigmoid(width - upper), interior))

    def mean(self, params: Tensor, context: Tensor | None = None) -> Tensor:
        location, inverse_scale = self._location_and_inverse_scale(params)
        half = 1 / (self.levels - 1)
        # E[x] = sum over k >= 1 of P(x >= k), level by level: never (..., levels) at once
        total = torch.zeros_like(location)
        for k in range(1, self.levels):
            total = total + torch.sigmoid((location - (2 * half * k - 1 - half)) * inverse_scale)
        return total

    @torch.no_grad()
    def sample(self, params: Tensor, context: Tensor | None = None, generator: Generator | None = None) -> Tensor:
        location, inverse_scale = self._location_and_inverse_scale(params)
        u = drawn(uniform, location, generator=generator)
        tiny = torch.finfo(u.dtype).tiny
        noise = u.clamp(min=tiny).log() - torch.log1p(-u)
        level = 0.5 * (self.levels - 1) * (location + noise / inverse_scale + 1)
        return level.round().clamp(0, self.levels - 1)

    def check(self, x: Tensor) -> None:
        bad = not_integer(x) | (x < 0) | (x >= self.levels)
        hint = "In [0, 1]? --likelihood continuous_bernoulli. Reals? --likelihood normal."
        refuse(self.name, f"whole numbers 0 to {self.levels - 1}", x, bad, (0.0, self.levels - 1.0), hint)

    def _location_and_inverse_scale(self, params: Tensor) -> tuple[Tensor, Tensor]:
        params = full_precision(params)
        if self.scale == "row":
            location, log_scale = params.unbind(-1)
        else:
            location, log_scale = params, self.log_scale
        return location, torch.exp(-log_scale.clamp(*LOG_SCALE_BOUNDS))
