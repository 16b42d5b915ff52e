"""Normal: x is real; five ways to the scale."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Generator, Tensor, nn

from latentfit.errors import CapabilityError, InputError
from latentfit.likelihoods.numerics import check_columns, drawn, full_precision, refuse, widest
from latentfit.model.contracts import LOG_2PI, Likelihood

#: a raw log-sigma beyond this counts as this, so that its variance fits in float32
MAX_LOG_SCALE = 30.0


class Normal(Likelihood):
    r"""Normal around the decoder's output.

    $$\log p(x \mid z) = -\sum_d \frac{(x_d - \mu_d)^2}{2 \sigma_d^2} + \log\sigma_d + \tfrac12 \log 2\pi$$

    params: means mu, (..., N, *data_shape); for `scale="row"`, (..., N, *data_shape, 2) with mean and
    log-sigma.

    What is learned has sigma^2 = floor^2 + e^{2 s}: the floor is the noise of the data's own resolution,
    without which a density in dx grows without bound, and s never leaves the range where it has a gradient.

    Args:
        scale: `"learned"`, one sigma, a parameter; `"column"`, one for each of `n_columns` (the last
            dimension); `"row"`, one per row and entry, given by the decoder; `"optimal"`, the root mean
            square residual of the batch in training, frozen on training rows by `freeze_scale` before any
            number is reported; or a fixed positive number.
        n_columns: size of the last dimension of x, for `scale="column"`.
        floor: lower bound of sigma, in the units of x; not applied to a fixed scale. A list has one for each
            column, which `scale="column"` and `"row"` take: columns differ in how finely they were recorded.

    Raises:
        InputError: a scale that is none of these, `n_columns` missing or superfluous, or a list of floors that
            does not go with them.

    Source: Rybkin, Daniilidis & Levine (2021), arXiv:2006.13202 (optimal sigma).

    Example:
        >>> import torch
        >>> from latentfit.likelihoods import Normal
        >>> Normal(scale=1.0).log_prob(torch.zeros(1, 2), torch.zeros(1, 2))
        tensor([-1.8379])
    """

    base_measure = "density"
    optimal_scale: Tensor
    _floor: Tensor

    def __init__(
        self,
        scale: Literal["learned", "column", "optimal", "row"] | float = "learned",
        n_columns: int | None = None,
        floor: float | list[float] = 1e-3,
    ) -> None:
        super().__init__()
        kinds = ("learned", "column", "optimal", "row")
        if isinstance(scale, str) and scale not in kinds:
            raise InputError(f"likelihood 'normal': scale is one of {', '.join(kinds)} or a number, got {scale!r}.")
        if not isinstance(scale, str) and not (math.isfinite(scale) and scale > 0):
            raise InputError(f"likelihood 'normal': a fixed scale must be positive and finite, got {scale!r}.")
        if (scale == "column") != (n_columns is not None):
            raise InputError(
                f"likelihood 'normal': n_columns goes with scale='column' and only with it, got "
                f"scale={scale!r} and n_columns={n_columns!r}."
            )
        floors = floor if isinstance(floor, list) else [floor]
        if not all(math.isfinite(value) and value >= 0 for value in floors):
            raise InputError(f"likelihood 'normal': floor must be 0 or more, got {floor!r}.")
        if isinstance(floor, list) and scale not in ("column", "row"):
            raise InputError(f"likelihood 'normal': floors by column need scale='column' or 'row', got {scale!r}.")
        if isinstance(floor, list) and n_columns not in (None, len(floor)):
            raise InputError(f"likelihood 'normal': {len(floor)} floors for {n_columns} columns; give one for each.")
        self.scale, self.n_columns, self.floor = scale, n_columns, floor
        # stored with the configuration, not with the weights
        self.register_buffer("_floor", torch.tensor(floor, dtype=torch.float32), persistent=False)
        if scale == "row":
            self.n_parameters = 2
        elif scale in ("learned", "column"):
            self.log_scale = nn.Parameter(torch.zeros(() if n_columns is None else n_columns))
        elif scale == "optimal":
            self.register_buffer("optimal_scale", torch.tensor(math.nan))

    def entry_log_prob(self, x: Tensor, params: Tensor, context: Tensor | None = None) -> Tensor:
        mean = self.mean(params)
        residual = x.to(mean.dtype) - mean
        scale = self._scale(params, residual)
        return -0.5 * (residual / scale).square() - scale.log() - 0.5 * LOG_2PI

    def rows_log_prob(self, x: Tensor, params: Tensor, context: Tensor | None = None) -> Tensor:
        if self.scale in ("row", "column"):
            return self.entry_log_prob(x, params, context).flatten(-(x.dim() - 1)).sum(-1)
        # one sigma for all entries: the sum of squares first, the scale once per row
        mean = self.mean(params)
        residual = x.to(mean.dtype) - mean
        scale = self._scale(params, residual)
        squares = residual.square().flatten(-(x.dim() - 1))
        return squares.sum(-1) * (-0.5 / scale.square()) - squares.shape[-1] * (scale.log() + 0.5 * LOG_2PI)

    def mean(self, params: Tensor, context: Tensor | None = None) -> Tensor:
        params = full_precision(params)
        return params[..., 0] if self.scale == "row" else params

    @torch.no_grad()
    def sample(self, params: Tensor, context: Tensor | None = None, generator: Generator | None = None) -> Tensor:
        mean = self.mean(params)
        return mean + self._scale(params, None) * drawn(_unit_noise, mean, generator=generator)

    def check(self, x: Tensor) -> None:
        check_columns(self.name, x, len(self.floor) if isinstance(self.floor, list) else self.n_columns)
        hint = "Drop or fill the rows, or pass them as missing with Batch(mask=...)."
        refuse(self.name, "finite values", x, ~torch.isfinite(x), (-math.inf, math.inf), hint)

    @torch.no_grad()
    def freeze_scale(self, x: Tensor, params: Tensor) -> None:
        """Fix the optimal sigma to these training rows': x (N, *data_shape), params as in `log_prob`.

        A later call replaces an earlier one, so give all rows at once. Entries of x that are nan are left out. Other
        scales are left as they are.
        """
        if self.scale == "optimal":
            rows, mean = widest(x, self.mean(params))
            self.optimal_scale.copy_(self._from_residuals(rows - mean))

    @torch.no_grad()
    def fit_scale(self, x: Tensor, params: Tensor) -> bool:
        """sigma^2 <- the mean square residual of these rows, by column where each has its own, for learned scales.

        Entries of x that are nan are left out.
        """
        if self.scale not in ("learned", "column"):
            return False
        rows, mean = widest(x, self.mean(params))
        square = (rows - mean).square()
        square = square.flatten(0, -2).nanmean(0) if self.scale == "column" else square.nanmean()
        above_floor = (square - self._floor.square()).clamp_min(math.exp(-2 * MAX_LOG_SCALE))
        self.log_scale.copy_(0.5 * above_floor.log())
        return True

    def _scale(self, params: Tensor, residual: Tensor | None) -> Tensor:
        """sigma, broadcastable against the means; `residual` is None where none is known (sampling)."""
        if self.scale == "row":
            return self._with_floor(full_precision(params)[..., 1].clamp(max=MAX_LOG_SCALE))
        if self.scale in ("learned", "column"):
            return self._with_floor(self.log_scale.clamp(max=MAX_LOG_SCALE))
        if self.scale != "optimal":
            return full_precision(params).new_full((), float(self.scale))
        if self.training and residual is not None:
            # at the optimum the gradient by sigma vanishes: detached or not, the decoder's is the same
            return self._from_residuals(residual.detach())
        if bool(self.optimal_scale.isnan()):
            raise CapabilityError(
                "likelihood 'normal' with scale='optimal' has no sigma yet: it must come from training rows, "
                "not from the rows being scored. Call freeze_scale(x, params) with training rows first."
            )
        return self.optimal_scale.to(full_precision(params).dtype)

    def _with_floor(self, log_scale: Tensor) -> Tensor:
        # the lower clamp keeps a gradient where the floor is 0 and e^{2 s} would underflow
        return torch.sqrt(self._floor.square() + torch.exp(2 * log_scale.clamp(min=-MAX_LOG_SCALE)))

    def _from_residuals(self, residual: Tensor) -> Tensor:
        return torch.maximum(residual.square().nanmean().sqrt(), self._floor.clamp(min=1e-12))


def _unit_noise(like: Tensor, generator: Generator | None) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)
