"""The linear-Gaussian VAE, whose every quantity is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from latentfit.data.synthetic import LinearGaussian
from latentfit.likelihoods import Normal
from latentfit.model.vae import VAEModule


class Affine(nn.Module):
    """x -> [W x + b, constants]."""

    def __init__(self, weight: Tensor, bias: Tensor, constants: Tensor | None = None) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())
        self.constants = None if constants is None else nn.Parameter(constants.clone())

    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.weight.T + self.bias
        return y if self.constants is None else torch.cat([y, self.constants.expand(len(y), -1)], -1)


def exact_vae(truth: LinearGaussian, std_factor: float = 1.0) -> VAEModule:
    """The truth's decoder with its optimal diagonal encoder, its std times `std_factor`; float64."""
    gain = truth.posterior_covariance @ truth.weight.T / truth.noise**2  # (K, D)
    log_variance = (std_factor**2 * truth.optimal_variance).log()
    return VAEModule(
        encoder=Affine(gain, -gain @ truth.bias, log_variance),
        decoder=Affine(truth.weight, truth.bias),
        likelihood=Normal(scale=truth.noise),
        latent_dim=truth.latent_dim,
    ).double()


@pytest.fixture(name="exact_vae", scope="session")
def _exact_vae():
    return exact_vae
