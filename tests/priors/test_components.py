"""Mixture densities by matrix products against torch's own."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal

from latentfit import priors
from latentfit.priors import components


def disturbed(covariance):
    prior = priors.create("mixture", latent_dim=4, n_components=3, covariance=covariance).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return prior


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_density_is_torchs_mixture(covariance, monkeypatch):
    prior = disturbed(covariance)
    factor = prior._factor()
    if covariance == "full":
        parts = MultivariateNormal(prior.mean, precision_matrix=factor.mT @ factor)
    else:
        parts = Independent(Normal(prior.mean, 1 / factor), 1)
    oracle = MixtureSameFamily(Categorical(logits=prior.logits), parts)
    z = 3 * torch.randn(50, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(prior.log_prob(z), oracle.log_prob(z), rtol=1e-9, atol=1e-9)
    monkeypatch.setattr(components, "BLOCK", 7 * 3 * 4)  # blocks of seven rows, the last one short
    torch.testing.assert_close(prior.log_prob(z), oracle.log_prob(z), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_no_component_falls_below_the_floor(covariance):
    prior = priors.create("mixture", latent_dim=2, n_components=2, covariance=covariance)
    with torch.no_grad():
        prior.log_diagonal.fill_(50.0)
    peak = prior.log_prob(prior.mean[0]).item()
    assert peak < 2 * 7 + 0.5  # two standard deviations of 1e-3: log(1e3) = 6.9 nats each, at most
