"""A Gaussian posterior with all correlations."""

from __future__ import annotations

import torch
from torch import Tensor

from latentfit.data.batch import Batch
from latentfit.flows.mixing import lower_index, unpack_lower
from latentfit.model.contracts import Posterior, Shape
from latentfit.posteriors.diagonal import check_parameters
from latentfit.posteriors.gaussian import FullGaussian, log_std_of


class FullGaussianPosterior(Posterior):
    r"""q(z given x) = N(mean(x), L(x) L(x)^T) with L = diag(std) (I + strictly lower part).

    The encoder gives D means, D log-variances (clamped to [-20, 10]; diag L^2) and the D (D - 1) / 2 numbers
    below the diagonal by rows, in units of that row's std. At zero parameters it is N(0, I).

    Args:
        latent_dim: D, or a shape with D entries.

    Source: Kingma & Welling (2019), An introduction to variational autoencoders, arXiv:1906.02691, section
        2.5.1.

    Example:
        >>> posterior = FullGaussianPosterior(3)
        >>> posterior.n_parameters
        9
    """

    below: Tensor

    def __init__(self, latent_dim: Shape) -> None:
        super().__init__(latent_dim)
        self.dim = self.event_shape.numel()
        self.n_parameters = self.dim + self.dim * (self.dim + 1) // 2
        self.register_buffer("below", lower_index(self.dim), persistent=False)

    def forward(self, parameters: Tensor, batch: Batch | None = None) -> FullGaussian:
        check_parameters(self, parameters)
        n_below = self.n_parameters - 2 * self.dim
        mean, log_variance, below = parameters.split((self.dim, self.dim, n_below), -1)
        std = log_std_of(log_variance).exp()
        unit = unpack_lower(torch.ones_like(std), below, self.below)  # (N, D, D)
        return FullGaussian(mean.unflatten(-1, self.event_shape), std.unsqueeze(-1) * unit)
