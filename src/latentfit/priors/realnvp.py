"""A RealNVP flow as prior."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import torch
from torch import Generator, Tensor

from latentfit.errors import InputError
from latentfit.flows.sequence import coupling_flow
from latentfit.flows.whitening import Whitening
from latentfit.model.contracts import Prior, Shape, as_shape
from latentfit.priors.fitting import fit_by_gradient
from latentfit.priors.rows import CodeRows, code_rows, exact_moments
from latentfit.priors.standard import StandardNormalPrior
from latentfit.training import isolated_rng

if TYPE_CHECKING:
    from typing import Self

#: above this many dimensions the whitening uses variances alone: a (D, D) matrix would dominate the flow
FULL_WHITENING_UP_TO = 512


class RealNVPPrior(Prior):
    r"""p(z) = p_u(f(z)) |det df/dz| with f = [affine coupling, LU mixing] x `transforms` after a whitening.

    Density and draws each call `transforms` networks. f starts as a permutation, hence p at the base (N(0, I)
    unless one is given), and the total log-scale is bounded (see `latentfit.flows.Sequence`). The whitening
    is the identity in joint training; `fit` sets it from the exact moments of q(z).

    Args:
        latent_dim: D, or a shape (flattened).
        transforms: number of couplings.
        hidden_features: widths of each network's hidden layers; an int is used for two layers, None means
            4 D within 64 and 128, 2 D from 64 dimensions on.
        base: "normal", or another prior of the same shape, such as a mixture, learned with the flow.
        context_features: width of a context (..., C) that the couplings use; with 0 a context is not used.
        max_log_scale: bound on the total log-scale, in nats.

    Source: Dinh et al. (2017), arXiv:1605.08803; as a VAE's prior Xu et al. (2019), arXiv:1905.13452.

    Warning: a continuous map of one Gaussian leaves bridges between separated clusters, where it puts
    samples; a mixture as base does not.

    Example:
        >>> prior = RealNVPPrior(4, transforms=2)
        >>> prior.log_prob(prior.sample(10)).shape
        torch.Size([10])
    """

    def __init__(
        self,
        latent_dim: Shape,
        transforms: int = 8,
        hidden_features: int | tuple[int, ...] | None = None,
        base: Literal["normal"] | Prior = "normal",
        context_features: int = 0,
        max_log_scale: float = 12.0,
    ) -> None:
        super().__init__(latent_dim)
        dim = self.event_shape.numel()
        width = default_width(dim) if hidden_features is None else hidden_features
        hidden = (width, width) if isinstance(width, int) else tuple(width)
        if isinstance(base, Prior) and base.event_shape != self.event_shape:
            got, wanted = tuple(base.event_shape), tuple(self.event_shape)
            raise InputError(f"realnvp: the base is over latents of shape {got}, not {wanted}; give it the same.")
        self.network_calls = transforms
        self.context_features = context_features
        self.whitening = Whitening(dim, full=dim <= FULL_WHITENING_UP_TO)
        self.flow = coupling_flow(dim, transforms, hidden, context_features, max_log_scale)
        self.base = base if isinstance(base, Prior) else StandardNormalPrior(self.event_shape)

    @property
    def density(self):  # type: ignore[override]  # the base's: a flow is exact
        return self.base.density

    def log_prob(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        rows = z.flatten(-len(self.event_shape))
        whitened, log_det = self.whitening(rows)
        u, flow_log_det = self.flow(whitened, self._context(context))
        return self.base.log_prob(u.unflatten(-1, self.event_shape)) + flow_log_det + log_det

    @torch.no_grad()
    def sample(
        self,
        n: Shape,
        context: Tensor | None = None,
        generator: Generator | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """Draws: n an int or a shape -> (*n, *event_shape); context, where used, (*n, C) or (C,).

        `temperature` multiplies the base's draws: below 1 they keep to the centre, and are then not draws of
        p.
        """
        u = temperature * self.base.sample(n, generator=generator)
        rows = u.flatten(-len(self.event_shape))
        z, _ = self.flow.inverse(rows, self._context(context))
        z, _ = self.whitening.inverse(z)
        return z.reshape(*as_shape(n), *self.event_shape)

    @torch.no_grad()
    def inverse_error(self, z: Tensor, context: Tensor | None = None) -> float:
        """max |f^{-1}(f(z)) - z| over z (..., *event_shape), in units of the latents and in their dtype."""
        rows = z.flatten(-len(self.event_shape))
        context = self._context(context)
        u, _ = self.flow(self.whitening(rows)[0], context)
        back, _ = self.whitening.inverse(self.flow.inverse(u, context)[0])
        return (back - rows).abs().max().item()

    def fit(
        self,
        mean: Tensor,
        *,
        std: Tensor | None = None,
        var: Tensor | None = None,
        logvar: Tensor | None = None,
        context: Tensor | None = None,
        max_steps: int | None = None,
        random_state: int = 0,
        progress: Callable[[int, int], None] | None = None,
    ) -> Self:
        """Whiten by the exact moments of q(z), start the flow anew, and maximise log p on fresh draws.

        At most `max_steps` steps (2,000 to 4,000 by the number of dimensions), stopped by held-out rows, the
        best weights kept. Determined by `random_state`.
        """
        rows = code_rows(self, mean, std, var, logvar, context if self.context_features else None)
        self.whitening.set_moments(*exact_moments(rows))
        with isolated_rng(random_state, self.whitening.mean.device):
            self.flow.reset_parameters()
        self._fit_base(rows, random_state)
        fit_by_gradient(self, rows, max_steps=max_steps, random_state=random_state, progress=progress)
        return self

    @torch.no_grad()
    def _fit_base(self, rows: CodeRows, random_state: int) -> None:
        """Start a learnable base at its own fit to what it will see: the flow is still a permutation."""
        if self.base.n_parameters == 0:
            return
        rows = rows.to(self.whitening.mean.device, self.whitening.mean.dtype)
        generator = torch.Generator().manual_seed(random_state)
        u = [self.flow(self.whitening(rows.draw(generator))[0], rows.context)[0] for _ in range(4)]
        draws = torch.cat(u).unflatten(-1, self.event_shape)
        self.base.fit(draws, std=torch.zeros_like(draws), random_state=random_state)

    def _context(self, context: Tensor | None) -> Tensor | None:
        if not self.context_features:
            return None
        if context is None or context.shape[-1] != self.context_features:
            got = "none" if context is None else tuple(context.shape)
            raise InputError(f"This prior needs a context (..., {self.context_features}), got {got}.")
        return context


def default_width(dim: int) -> int:
    """Hidden units of each network: 4 D, within 64 and 128; 2 D from 64 dimensions on."""
    return max(64, min(128, 4 * dim), 2 * dim)
