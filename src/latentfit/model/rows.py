"""The rows a prior is fitted to: N Gaussians, and how it is fitted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from latentfit.data.batch import Batch
from latentfit.errors import InputError
from latentfit.training.rng import standard_normal

#: numbers of the rows' products in memory at once
PRODUCTS = 1 << 22


@dataclass(frozen=True, slots=True)
class CodeRows:
    """q(z given x) of N rows, the event flattened: N(mean, diag std^2), or N(mean, F F^T) where units are correlated.

    Attributes:
        mean: (N, D).
        std: (N, D), of each unit by itself.
        context: (N, C) or None.
        factor: (N, D, R) or None, F, such as a Cholesky factor.
    """

    mean: Tensor
    std: Tensor
    context: Tensor | None = None
    factor: Tensor | None = None

    def __len__(self) -> int:
        return len(self.mean)

    def __getitem__(self, rows: Tensor) -> CodeRows:
        return self._each(lambda values: values[rows])

    def units(self, units: Sequence[int] | Tensor) -> CodeRows:
        """The same rows in some of their units."""
        picked = torch.as_tensor(units, device=self.mean.device)
        factor = None if self.factor is None else self.factor[:, picked]
        return CodeRows(self.mean[:, picked], self.std[:, picked], self.context, factor)

    def noise(self, generator: Generator | None = None) -> Tensor:
        """A draw of z - mean for each row: (N, D)."""
        if self.factor is None:
            return standard_normal(self.mean.shape, self.mean, generator).mul_(self.std)
        n_rows, _, rank = self.factor.shape
        return (self.factor @ standard_normal((n_rows, rank, 1), self.mean, generator)).squeeze(-1)

    def draw(self, generator: Generator | None = None) -> Tensor:
        """One draw per row: (N, D)."""
        return self.noise(generator).add_(self.mean)

    def conditional_std(self) -> Tensor:
        """Of each unit given x and the row's other units: (N, D)."""
        if self.factor is None:
            return self.std
        dim, parts = self.mean.shape[1], []
        for factor in self.factor.split(max(1, PRODUCTS // dim**2)):
            covariance = factor.double() @ factor.double().mT
            # units that others determine exactly have no inverse
            covariance.diagonal(dim1=-2, dim2=-1).mul_(1 + 1e-12).add_(torch.finfo(torch.float64).tiny)
            parts.append(torch.linalg.inv(covariance).diagonal(dim1=-2, dim2=-1).rsqrt())
        return torch.cat(parts).to(self.std)

    def packed(self) -> Batch:
        """For `draw_packed`: x is mean and spread, (N, 2, D), or (N, 1 + R, D) where units are correlated."""
        spread = self.std.unsqueeze(1) if self.factor is None else self.factor.mT
        return Batch(torch.cat((self.mean.unsqueeze(1), spread), 1), self.context)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> CodeRows:
        """The same rows elsewhere."""
        return self._each(lambda values: values.to(device, dtype))

    def split(self, share: float, generator: Generator) -> tuple[CodeRows, CodeRows]:
        """Two disjoint parts, the second with `share` of the rows; under 20 rows both are all of them."""
        if len(self) < 20:
            return self, self
        order = torch.randperm(len(self), generator=generator).to(self.mean.device)
        n_second = max(1, round(share * len(self)))
        return self[order[n_second:]], self[order[:n_second]]

    def _each(self, change: Callable[[Tensor], Tensor]) -> CodeRows:
        context, factor = (None if values is None else change(values) for values in (self.context, self.factor))
        return CodeRows(change(self.mean), change(self.std), context, factor)


def draw_packed(packed: Tensor) -> Tensor:
    """One draw of each of some rows of `CodeRows.packed`, by torch's generator: (B, D)."""
    mean, spread = packed[:, 0], packed[:, 1:]
    if spread.shape[1] == 1:
        return torch.addcmul(mean, spread[:, 0], standard_normal(mean.shape, mean))
    noise = standard_normal((len(mean), 1, spread.shape[1]), mean)
    return mean + (noise @ spread).squeeze(1)


@dataclass(frozen=True, slots=True)
class FitOptions:
    """How long a prior is fitted, by which seed, and who is told.

    Attributes:
        max_steps: gradient steps or iterations; None is the prior's own default.
        random_state: seed.
        progress: called with (step, steps).
    """

    max_steps: int | None = None
    random_state: int = 0
    progress: Callable[[int, int], None] | None = None


def code_rows(
    event_shape: torch.Size,
    mean: Tensor,
    *,
    std: Tensor | None = None,
    var: Tensor | None = None,
    logvar: Tensor | None = None,
    scale_tril: Tensor | None = None,
    context: Tensor | None = None,
) -> CodeRows:
    """What `Prior.fit` was given, checked and flattened.

    Raises:
        InputError: not exactly one spread, another shape than the prior's, or fewer than two rows.
    """
    mean = _tensor(mean)
    std, var, logvar, factor = (None if value is None else _tensor(value) for value in (std, var, logvar, scale_tril))
    if factor is not None:
        dim = mean.shape[1:].numel()
        if factor.shape != (len(mean), dim, dim):
            raise InputError(
                f"fit: scale_tril has shape {tuple(factor.shape)}, expected ({len(mean)}, {dim}, {dim}): one Cholesky "
                "factor for each row."
            )
        if any(value is not None for value in (std, var, logvar)):
            raise InputError("fit: give scale_tril alone; std, var and logvar are of factorised posteriors.")
        std = factor.norm(dim=-1).view_as(mean)
    std = as_std("fit", mean, std=std, var=var, logvar=logvar)
    if mean.shape[1:] != event_shape:
        raise InputError(
            f"fit: the prior is over latents of shape {tuple(event_shape)}, but mean is "
            f"{tuple(mean.shape)}; it must be (N, {', '.join(map(str, event_shape))})."
        )
    if len(mean) < 2:
        raise InputError(f"fit: a prior is fitted to at least 2 rows, got {len(mean)}.")
    if context is not None and len(context) != len(mean):
        raise InputError(f"fit: context has {len(context)} rows, mean {len(mean)}; they must agree.")
    return CodeRows(
        mean.detach().flatten(1), std.detach().flatten(1), context, None if factor is None else factor.detach()
    )


def as_std(
    what: str,
    mean: Tensor,
    *,
    std: Tensor | None = None,
    var: Tensor | None = None,
    logvar: Tensor | None = None,
) -> Tensor:
    """The standard deviation from exactly one of std, var and logvar, each like mean (N, *event_shape).

    A log-variance handed in as a standard deviation gives a wrong number in silence: negatives are refused by name.

    Raises:
        InputError: none or several given, another shape than mean, negative or not finite entries.
    """
    given = {key: value for key, value in {"std": std, "var": var, "logvar": logvar}.items() if value is not None}
    if len(given) != 1:
        got = " and ".join(given) or "none"
        raise InputError(
            f"{what}: give exactly one of std, var, logvar (got {got}). scvi's get_latent_representation("
            "return_dist=True) returns var; most PyTorch VAEs return logvar."
        )
    ((name, spread),) = given.items()
    if spread.shape != mean.shape:
        raise InputError(f"{what}: {name} has shape {tuple(spread.shape)}, mean {tuple(mean.shape)}; they must agree.")
    for label, value in (("mean", mean), (name, spread)):
        wrong = ~torch.isfinite(value)
        if bool(wrong.any()):
            row = int(wrong.flatten(1).any(1).nonzero()[0])
            raise InputError(
                f"{what}: {label} has {int(wrong.sum()):,} of its {value.numel():,} entries NaN or infinite, first in "
                f"row {row} (from 0)."
            )
    if name == "logvar":
        return (0.5 * spread).exp()
    negative = (spread < 0).float().mean().item()
    if negative > 0:
        word = "standard deviation" if name == "std" else "variance"
        raise InputError(
            f"{name} has {negative:.0%} negative entries, so it is not a {word}; it looks like a log-variance "
            f"(range {spread.min().item():.1f} to {spread.max().item():.1f}). Pass it as logvar=."
        )
    return spread.sqrt() if name == "var" else spread


def _tensor(values: Any) -> Tensor:
    """Codes come from any framework: arrays become float32 tensors, tensors stay."""
    if isinstance(values, Tensor):
        return values
    return torch.as_tensor(values, dtype=torch.float32)
