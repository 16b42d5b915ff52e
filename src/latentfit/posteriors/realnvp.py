"""A RealNVP flow as posterior."""

from __future__ import annotations

import torch

from latentfit.flows.mixing import Permutation
from latentfit.flows.sequence import Sequence, coupling_flow
from latentfit.model.contracts import Shape
from latentfit.posteriors.flow import FlowPosterior


class RealNVPPosterior(FlowPosterior):
    r"""q(z given x): z = f(u; h(x)), u ~ N(mean(x), diag exp(logvar(x))), f = [affine coupling, LU mixing] x T.

    Draws call T networks, and so does `log_prob` of any z. The couplings see the encoder's features h. f starts as
    the identity, hence q as the diagonal Gaussian; its total log-scale is bounded (see `latentfit.flows.Sequence`).

    Args:
        latent_dim: D, or a shape (flattened).
        transforms: T, the number of couplings.
        hidden_features: widths of each network's hidden layers.
        context_features: C, how many features h the encoder gives beside the mean and the log-variance.
        max_log_scale: bound on the total log-scale, in nats.

    Source: Dinh et al. (2017), arXiv:1605.08803; Rezende & Mohamed (2015), arXiv:1505.05770.

    Example:
        >>> posterior = RealNVPPosterior(4, transforms=2, context_features=8)
        >>> q = posterior(torch.zeros(5, posterior.n_parameters))
        >>> z, log_q = q.rsample_with_log_prob(3)
        >>> z.shape, bool(torch.allclose(q.log_prob(z), log_q, atol=1e-5))
        (torch.Size([3, 5, 4]), True)
    """

    can_score = True

    def __init__(
        self,
        latent_dim: Shape,
        transforms: int = 4,
        hidden_features: tuple[int, ...] = (128, 128),
        context_features: int = 64,
        max_log_scale: float = 12.0,
    ) -> None:
        super().__init__(latent_dim, context_features)
        couplings = coupling_flow(self.dim, transforms, hidden_features, context_features, max_log_scale)
        # what the flow starts as is undone at its end, so that the encoder's i-th mean is the i-th latent's
        with torch.no_grad():
            start, _ = couplings(torch.arange(self.dim, dtype=torch.float32), torch.zeros(context_features))
        self.flow = Sequence([couplings, Permutation(self.dim, start.round().long().argsort())], max_log_scale)
