"""A planar flow as posterior."""

from __future__ import annotations

from latentfit.flows.planar import Planar
from latentfit.model.contracts import Shape
from latentfit.posteriors.flow import FlowPosterior


class PlanarPosterior(FlowPosterior):
    r"""q(z given x): z = f_T o ... o f_1(u), f_t(z) = z + v tanh(w^T z + b), u ~ N(mean(x), diag exp(logvar(x))).

    v, w and b of each step are linear in the encoder's features h, v such that every step is invertible. A step
    changes q along one direction only: many are needed, and `sylvester` takes several directions at once. It can
    only score its own draws. It starts as the diagonal Gaussian.

    Args:
        latent_dim: D, or a shape (flattened).
        transforms: T, the number of steps.
        context_features: C, how many features h the encoder gives beside the mean and the log-variance.
        max_log_scale: bound on |log |det||, in nats.

    Source: Rezende & Mohamed (2015), Variational inference with normalizing flows, arXiv:1505.05770.

    Example:
        >>> PlanarPosterior(4, context_features=8).n_parameters
        16
    """

    def __init__(
        self, latent_dim: Shape, transforms: int = 16, context_features: int = 64, max_log_scale: float = 12.0
    ) -> None:
        super().__init__(latent_dim, context_features)
        self.flow = Planar(self.dim, transforms, context_features, max_log_scale)
