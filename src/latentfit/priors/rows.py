"""The rows a prior is fitted to: N Gaussians N(mean, diag std^2), their draws, moments and splits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from latentfit.errors import InputError
from latentfit.model.contracts import Prior, as_std
from latentfit.posteriors.noise import standard_normal

#: rows in float64 at once
BLOCK_ROWS = 16_384


@dataclass(frozen=True, slots=True)
class CodeRows:
    """q(z given x) of N rows, the event flattened.

    Attributes:
        mean: (N, D).
        std: (N, D).
        context: (N, C) or None.
    """

    mean: Tensor
    std: Tensor
    context: Tensor | None = None

    def __len__(self) -> int:
        return len(self.mean)

    def __getitem__(self, rows: Tensor) -> CodeRows:
        return CodeRows(self.mean[rows], self.std[rows], None if self.context is None else self.context[rows])

    def draw(self, generator: Generator | None = None) -> Tensor:
        """One draw per row: (N, D)."""
        return self.mean + self.std * standard_normal(self.mean.shape, self.mean, generator)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> CodeRows:
        """The same rows elsewhere."""
        context = None if self.context is None else self.context.to(device, dtype)
        return CodeRows(self.mean.to(device, dtype), self.std.to(device, dtype), context)

    def split(self, share: float, generator: Generator) -> tuple[CodeRows, CodeRows]:
        """Two disjoint parts, the second with `share` of the rows; under 20 rows both are all of them."""
        if len(self) < 20:
            return self, self
        order = torch.randperm(len(self), generator=generator).to(self.mean.device)
        n_second = max(1, round(share * len(self)))
        return self[order[n_second:]], self[order[:n_second]]


def code_rows(
    prior: Prior,
    mean: Tensor,
    std: Tensor | None,
    var: Tensor | None,
    logvar: Tensor | None,
    context: Tensor | None = None,
) -> CodeRows:
    """What `Prior.fit` was given, checked.

    Raises:
        InputError: not exactly one spread, another shape than the prior's, or fewer than two rows.
    """
    mean = _tensor(mean)
    std, var, logvar = (None if value is None else _tensor(value) for value in (std, var, logvar))
    std = as_std("fit", mean, std=std, var=var, logvar=logvar)
    if mean.shape[1:] != prior.event_shape:
        raise InputError(
            f"fit: the prior is over latents of shape {tuple(prior.event_shape)}, but mean is "
            f"{tuple(mean.shape)}; it must be (N, {', '.join(map(str, prior.event_shape))})."
        )
    if len(mean) < 2:
        raise InputError(f"fit: a prior is fitted to at least 2 rows, got {len(mean)}.")
    if context is not None and len(context) != len(mean):
        raise InputError(f"fit: context has {len(context)} rows, mean {len(mean)}; they must agree.")
    return CodeRows(mean.detach().flatten(1), std.detach().flatten(1), context)


def moments(rows: CodeRows) -> tuple[Tensor, Tensor]:
    r"""Mean and variances of q(z), in float64 on the CPU, in blocks of rows: (D,), (D,)."""
    n, dim = rows.mean.shape
    centre, variance = torch.zeros(dim, dtype=torch.float64), torch.zeros(dim, dtype=torch.float64)
    for block in rows.mean.split(BLOCK_ROWS):
        centre += block.double().sum(0).cpu() / n
    for mean, std in zip(rows.mean.split(BLOCK_ROWS), rows.std.split(BLOCK_ROWS), strict=True):
        variance += ((mean.cpu().double() - centre).square().sum(0) + std.cpu().double().square().sum(0)) / n
    return centre, variance


def exact_moments(rows: CodeRows) -> tuple[Tensor, Tensor]:
    r"""Mean and covariance of q(z) in closed form, in float64 on the CPU: (D,), (D, D).

    E z = mean of means; Cov z = covariance of means + diag mean of variances. The correlations are shrunk as
    if D + 1 further rows with the same variances and no correlation had been seen, which keeps N < D
    well-posed.
    """
    n, dim = rows.mean.shape
    centre, variance = moments(rows)
    covariance = torch.zeros(dim, dim, dtype=torch.float64)
    for mean in rows.mean.split(BLOCK_ROWS):
        offset = mean.cpu().double() - centre
        covariance += offset.T @ offset / n
    diagonal = torch.diag(variance)
    share = n / (n + dim + 1)
    covariance.fill_diagonal_(0.0)
    return centre, share * covariance + diagonal


def _tensor(values: Any) -> Tensor:
    """Codes come from any framework: arrays become float32 tensors, tensors stay."""
    if isinstance(values, Tensor):
        return values
    return torch.as_tensor(values, dtype=torch.float32)
