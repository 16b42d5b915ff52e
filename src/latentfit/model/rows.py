"""The rows a prior is fitted to: N Gaussians N(mean, diag std^2), and how it is fitted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from latentfit.errors import InputError
from latentfit.training.rng import standard_normal


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
    context: Tensor | None = None,
) -> CodeRows:
    """What `Prior.fit` was given, checked and flattened.

    Raises:
        InputError: not exactly one spread, another shape than the prior's, or fewer than two rows.
    """
    mean = _tensor(mean)
    std, var, logvar = (None if value is None else _tensor(value) for value in (std, var, logvar))
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
    return CodeRows(mean.detach().flatten(1), std.detach().flatten(1), context)


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
        if not bool(torch.isfinite(value).all()):
            share = 1 - torch.isfinite(value).float().mean().item()
            raise InputError(f"{what}: {label} has {share:.1%} entries that are not finite.")
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
