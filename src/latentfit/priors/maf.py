"""A masked autoregressive flow as prior."""

from __future__ import annotations

import functools
from typing import Literal

from latentfit.flows.autoregressive import autoregressive_flow
from latentfit.model.contracts import Prior, Shape, as_shape
from latentfit.priors.flow import FlowPrior, hidden_widths


class MAFPrior(FlowPrior):
    r"""p(z) = p_u(f(z)) |det df/dz| with f = [autoregressive affine, rotation] x `transforms` after a whitening.

    **Fast density, slow draws**: log p calls `transforms` networks, a draw goes through each of them column by column,
    D steps one after the other. For a density that is often asked for and rarely sampled. The total log-scale is
    bounded (see `latentfit.flows.Sequence`). See `FlowPrior` for what all flows share.

    Args:
        latent_dim: D, or a shape (flattened).
        transforms: number of autoregressive layers.
        hidden_features: widths of each network's hidden layers; an int is used for two layers, None means
            max(128, 2 D).
        base: "normal", or another prior of the same shape, such as a mixture, learned with the flow.
        context_features: width of a context (..., C) that the networks use; with 0 a context is not used.
        max_log_scale: bound on the total log-scale, in nats.
        active: the flattened units the flow acts on, the others being N(0, 1); None for all; `fit` chooses.

    Source: Papamakarios, Pavlakou & Murray (2017), Masked autoregressive flow, arXiv:1705.07057.

    Example:
        >>> prior = MAFPrior(4, transforms=2)
        >>> prior.log_prob(prior.sample(10)).shape
        torch.Size([10])
    """

    def __init__(
        self,
        latent_dim: Shape,
        transforms: int = 5,
        hidden_features: int | tuple[int, ...] | None = None,
        base: Literal["normal"] | Prior = "normal",
        context_features: int = 0,
        max_log_scale: float = 12.0,
        active: tuple[int, ...] | None = None,
    ) -> None:
        dim = as_shape(latent_dim).numel()
        width = max(128, 2 * dim) if hidden_features is None else hidden_features
        make = functools.partial(
            autoregressive_flow,
            transforms=transforms,
            hidden_features=hidden_widths(width, latent_dim),
            context_features=context_features,
            max_log_scale=max_log_scale,
        )
        super().__init__(latent_dim, make, base, context_features, active)
        self.network_calls = transforms * dim
