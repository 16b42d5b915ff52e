"""The mean-field Gaussian posterior of every tutorial."""

from __future__ import annotations

from torch import Tensor

from latentfit.data.batch import Batch
from latentfit.errors import InputError
from latentfit.model.contracts import Posterior, Shape
from latentfit.posteriors.gaussian import DiagonalGaussian, log_std_of


class DiagonalPosterior(Posterior):
    r"""q(z given x) = N(mean(x), diag exp(logvar(x))).

    The encoder gives 2 D numbers per row: first the D means, then the D log-variances (clamped to [-20, 10]).

    Args:
        latent_dim: D, or a shape such as (C, H, W) with D = C H W.

    Source: Kingma & Welling (2014), Auto-Encoding Variational Bayes, arXiv:1312.6114.

    Example:
        >>> import torch
        >>> q = DiagonalPosterior(3)(torch.zeros(5, 6))
        >>> q.mean.shape, q.std[0, 0].item()
        (torch.Size([5, 3]), 1.0)
    """

    def __init__(self, latent_dim: Shape) -> None:
        super().__init__(latent_dim)
        self.n_parameters = 2 * self.event_shape.numel()

    def forward(self, parameters: Tensor, batch: Batch | None = None) -> DiagonalGaussian:
        check_parameters(self, parameters)
        mean, log_variance = parameters.unflatten(-1, (2, *self.event_shape)).unbind(1)
        log_std = log_std_of(log_variance)
        return DiagonalGaussian(mean, log_std.exp(), log_std)


def check_parameters(posterior: Posterior, parameters: Tensor) -> None:
    """Raise `InputError` unless parameters is (N, n_parameters)."""
    if parameters.dim() != 2 or parameters.shape[1] != posterior.n_parameters:
        raise InputError(
            f"The {posterior.name} posterior of {tuple(posterior.event_shape)} latents needs (N, "
            f"{posterior.n_parameters}) numbers from the encoder, got {tuple(parameters.shape)}. "
            f"Make the encoder's last layer {posterior.n_parameters} wide."
        )
