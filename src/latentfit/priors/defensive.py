"""A fitted prior mixed with the one the model was trained with."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from latentfit.errors import InputError
from latentfit.model.contracts import RANKABLE, Density, Prior, Shape, as_shape
from latentfit.model.rows import CodeRows, FitOptions


class DefensiveMixture(Prior):
    r"""w r(z) + (1 - w) p(z): a fitted prior r (`base`) with a share of the original p (`anchor`).

    log ratios to p are then at least log(1 - w) everywhere, and w = 0 is p itself. Draws choose a part per
    latent.

    Args:
        base: r.
        anchor: p, over latents of the same shape.
        weight: w in [0, 0.99].

    Source: Hesterberg (1995), Weighted average importance sampling and defensive mixture distributions.

    Example:
        >>> from latentfit.priors import LearnedGaussianPrior, StandardNormalPrior
        >>> prior = DefensiveMixture(LearnedGaussianPrior(2), StandardNormalPrior(2), weight=0.9)
        >>> prior.sample(3).shape
        torch.Size([3, 2])
    """

    def __init__(self, base: Prior, anchor: Prior, weight: float) -> None:
        super().__init__(tuple(base.event_shape))
        if anchor.event_shape != base.event_shape:
            got = f"{tuple(base.event_shape)} and {tuple(anchor.event_shape)}"
            raise InputError(f"defensive: base and anchor must be over latents of one shape, got {got}.")
        if not 0 <= weight <= 0.99:
            raise InputError(f"defensive: weight must lie in [0, 0.99], got {weight}: the anchor keeps 0.01 at least.")
        self.base, self.anchor, self.weight = base, anchor, weight

    @property
    def density(self) -> Density:  # type: ignore[override]
        """The parts': both exact is exact, both rankable unbiased, anything else at best approximate."""
        parts = {self.anchor.density} if self.weight == 0 else {self.base.density, self.anchor.density}
        if len(parts) == 1:
            # a mixture of log-unbiased estimates is not log-unbiased
            only = parts.pop()
            return "approximate" if only == "log_unbiased" and self.weight else only
        if "none" in parts:
            return "none"
        return "unbiased" if parts <= set(RANKABLE) else "approximate"

    @property
    def network_calls(self) -> int:  # type: ignore[override]
        """Calls for one draw, of the dearer part in use."""
        return max(self.anchor.network_calls, self.base.network_calls if self.weight else 0)

    def log_prob(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        anchor = self.anchor.log_prob(z, context)
        if self.weight == 0:
            return anchor
        base = self.base.log_prob(z, context)
        return torch.logaddexp(math.log(self.weight) + base, math.log1p(-self.weight) + anchor)

    def freeze(self) -> None:
        """As both parts do."""
        self.base.freeze()
        self.anchor.freeze()

    @torch.no_grad()
    def sample(self, n: Shape, context: Tensor | None = None, generator: Generator | None = None) -> Tensor:
        shape = as_shape(n)
        device = None if generator is None else generator.device
        choice = torch.rand(shape.numel(), generator=generator, device=device) < self.weight
        if context is not None:
            context = context.expand(*shape, context.shape[-1]).reshape(-1, context.shape[-1])
        parts = []
        for prior, chosen in ((self.base, choice), (self.anchor, ~choice)):
            rows = chosen.nonzero().squeeze(-1)
            given = None if context is None else context[rows.to(context.device)]
            parts.append((rows, prior.sample(len(rows), given, generator)))
        z = parts[1][1].new_empty(shape.numel(), *self.event_shape)
        for rows, draws in parts:
            z[rows.to(z.device)] = draws.to(z)
        return z.view(*shape, *self.event_shape)

    @property
    def of_rows(self) -> bool:  # type: ignore[override]  # read-only here
        """Whether the base's components are rows."""
        return self.base.of_rows

    def component_means(self) -> Tensor | None:
        """Those of the base."""
        return self.base.component_means()

    def responsibilities(self, z: Tensor) -> Tensor:
        """Those of the base."""
        return self.base.responsibilities(z)

    def fit_rows(self, rows: CodeRows, options: FitOptions) -> None:
        """Fit the base; the anchor and the weight stay."""
        self.base.fit_rows(rows, options)
