"""A Gaussian posterior from the mean and spread that a foreign encoder gives, to the last digit."""

from __future__ import annotations

from torch import Tensor

from latentfit.data.batch import Batch
from latentfit.errors import InputError
from latentfit.model.contracts import LatentDistribution, Posterior, Shape
from latentfit.posteriors.gaussian import DiagonalGaussian, FullGaussian


class GivenGaussian(Posterior):
    r"""q(z given x) = N(mean, diag std^2), or N(mean, L L^T).

    Our own encoders give a log-variance that is clamped to [-20, 10]; a foreign one may be narrower (latent image
    models reach -30), and is taken as it is. Per row: D means, then D standard deviations, or L row by row (D^2).

    Args:
        latent_dim: D, or a shape.
        full: whether the spread is L.
    """

    def __init__(self, latent_dim: Shape, full: bool = False) -> None:
        super().__init__(latent_dim)
        self.dim, self.full = self.event_shape.numel(), full
        self.n_parameters = self.dim + (self.dim**2 if full else self.dim)

    def forward(self, parameters: Tensor, batch: Batch | None = None) -> LatentDistribution:
        if parameters.dim() != 2 or parameters.shape[1] != self.n_parameters:
            raise InputError(f"Expected (N, {self.n_parameters}) numbers, got {tuple(parameters.shape)}.")
        mean = parameters[:, : self.dim].unflatten(-1, self.event_shape)
        spread = parameters[:, self.dim :]
        if self.full:
            return FullGaussian(mean, spread.unflatten(-1, (self.dim, self.dim)))
        return DiagonalGaussian(mean, spread.unflatten(-1, self.event_shape))
