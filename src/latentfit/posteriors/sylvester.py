"""A Sylvester flow as posterior."""

from __future__ import annotations

from typing import Literal

from latentfit.flows.sylvester import Sylvester
from latentfit.model.contracts import Shape
from latentfit.posteriors.flow import FlowPosterior


class SylvesterPosterior(FlowPosterior):
    r"""q(z given x): z = f_T o ... o f_1(u), f_t(z) = z + Q R tanh(S Q^T z + b), u ~ N(mean(x), diag exp(logvar(x))).

    Q, R, S and b of each step are linear in the encoder's features h, so each row has a flow of its own. It can only
    score its own draws. It starts as the diagonal Gaussian.

    Args:
        latent_dim: D, or a shape (flattened).
        kind: "orthogonal", Q with M = `columns` orthonormal columns; or "householder", Q square.
        transforms: T, the number of steps.
        columns: M of the orthogonal kind, and the number of reflections of the other; at most D are used.
        context_features: C, how many features h the encoder gives beside the mean and the log-variance.
        max_log_scale: bound on the total log-scale per coordinate, in nats.

    Source: van den Berg et al. (2018), Sylvester normalizing flows, arXiv:1803.05649.

    Example:
        >>> SylvesterPosterior(4, kind="householder", context_features=8).n_parameters
        16
    """

    def __init__(
        self,
        latent_dim: Shape,
        kind: Literal["orthogonal", "householder"] = "orthogonal",
        transforms: int = 4,
        columns: int = 8,
        context_features: int = 64,
        max_log_scale: float = 12.0,
    ) -> None:
        super().__init__(latent_dim, context_features)
        reflections = min(columns, self.dim)
        width = reflections if kind == "orthogonal" else self.dim
        self.flow = Sylvester(self.dim, transforms, width, reflections, context_features, max_log_scale)
