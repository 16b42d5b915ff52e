"""A RealNVP flow as prior: affine couplings."""

from __future__ import annotations

import functools
from typing import Any, Literal

from torch import Tensor

from latentfit.flows.sequence import coupling_flow
from latentfit.model.contracts import Prior, Shape
from latentfit.priors.flow import FlowPrior, hidden_widths


class RealNVPPrior(FlowPrior):
    r"""p(z) = p_u(f(z)) |det df/dz| with f = [affine coupling, rotation] x `transforms` after a whitening.

    Density and draws each call `transforms` networks. The total log-scale is bounded (see `latentfit.flows.Sequence`).
    See `FlowPrior` for what all flows share.

    Args:
        latent_dim: D, or a shape (flattened).
        transforms: number of couplings.
        hidden_features: widths of each network's hidden layers; an int is used for two layers, None means
            4 D within 64 and 128, 2 D from 64 dimensions on.
        base: "normal", or another prior of the same shape, such as a mixture, learned with the flow.
        context_features: width of a context (..., C) that the couplings use; with 0 a context is not used.
        max_log_scale: bound on the total log-scale, in nats.
        mixing: between the couplings: a fixed "rotation", or "lu", learned; what is loaded decides.
        active: the flattened units the flow acts on, the others being N(0, 1); None for all; `fit` chooses.

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
        mixing: Literal["rotation", "lu"] = "rotation",
        active: tuple[int, ...] | None = None,
    ) -> None:
        make = functools.partial(
            coupling_flow,
            transforms=transforms,
            hidden_features=hidden_widths(hidden_features, latent_dim),
            context_features=context_features,
            max_log_scale=max_log_scale,
            mixing=mixing,
        )
        super().__init__(latent_dim, make, base, context_features, active)
        self.network_calls = transforms

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *arguments: Any) -> None:
        # folders of 0.1.0 do not name the mixing, which was LU then: the tensors tell
        if f"{prefix}flow.layers.1.lower" in state_dict and self._make_flow.keywords["mixing"] != "lu":
            self._make_flow = functools.partial(self._make_flow, mixing="lu")
            self._rebuild(self.active, self.base, mixing="lu")
        super()._load_from_state_dict(state_dict, prefix, *arguments)
