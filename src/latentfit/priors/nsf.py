"""A neural spline flow as prior: rational-quadratic spline couplings."""

from __future__ import annotations

import functools
from typing import Literal

from latentfit.flows.sequence import spline_flow
from latentfit.model.contracts import Prior, Shape, as_shape
from latentfit.priors.flow import FlowPrior, hidden_widths


class NSFPrior(FlowPrior):
    r"""p(z) = p_u(f(z)) |det df/dz| with f = [spline coupling, permutation] x `transforms` after a whitening.

    Density and draws each call `transforms` networks. A spline separates modes where an affine coupling bends; it costs
    two to four times as much. Outside [-box, box], in standard deviations of q(z), it is the identity: `fit` warns
    where more than 0.1 % of the codes lie there. See `FlowPrior` for what all flows share.

    Args:
        latent_dim: D, or a shape (flattened).
        transforms: number of couplings; None means 6, 8 above 32 dimensions.
        hidden_features: widths of each network's hidden layers; an int is used for two layers, None means
            4 D within 64 and 128, 2 D from 64 dimensions on.
        bins: of each spline.
        box: half the width of the splines' range, in standard deviations.
        base: "normal", or another prior of the same shape, such as a mixture, learned with the flow.
        context_features: width of a context (..., C) that the couplings use; with 0 a context is not used.
        active: the flattened units the flow acts on, the others being N(0, 1); None for all; `fit` chooses.

    Source: Durkan, Bekasov, Murray & Papamakarios (2019), Neural spline flows, arXiv:1906.04032.

    Example:
        >>> prior = NSFPrior(4, transforms=2)
        >>> prior.log_prob(prior.sample(10)).shape
        torch.Size([10])
    """

    def __init__(
        self,
        latent_dim: Shape,
        transforms: int | None = None,
        hidden_features: int | tuple[int, ...] | None = None,
        bins: int = 8,
        box: float = 5.0,
        base: Literal["normal"] | Prior = "normal",
        context_features: int = 0,
        active: tuple[int, ...] | None = None,
    ) -> None:
        if transforms is None:
            transforms = 6 if as_shape(latent_dim).numel() <= 32 else 8
        make = functools.partial(
            spline_flow,
            transforms=transforms,
            hidden_features=hidden_widths(hidden_features, latent_dim),
            context_features=context_features,
            bins=bins,
            box=box,
        )
        super().__init__(latent_dim, make, base, context_features, active)
        self.network_calls = transforms
