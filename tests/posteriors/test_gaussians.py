"""The Gaussian posteriors against torch's own distributions."""

from __future__ import annotations

import torch
from torch.distributions import Independent, MultivariateNormal, Normal

from latentfit.posteriors import DiagonalGaussian, DiagonalPosterior, FullGaussian, FullGaussianPosterior


def test_diagonal_is_torchs_normal():
    generator = torch.Generator().manual_seed(0)
    parameters = torch.randn(5, 8, generator=generator, dtype=torch.float64)
    q = DiagonalPosterior(4)(parameters)
    mean, log_variance = parameters.chunk(2, -1)
    oracle = Independent(Normal(mean, (0.5 * log_variance).exp()), 1)
    z, log_q = q.rsample_with_log_prob(3, generator=generator)
    torch.testing.assert_close(log_q, oracle.log_prob(z), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(q.log_prob(z + 1), oracle.log_prob(z + 1), rtol=1e-12, atol=1e-12)
    alone = DiagonalGaussian(q.mean, q.std)
    torch.testing.assert_close(alone.log_prob(z), q.log_prob(z), rtol=1e-12, atol=1e-12)


def test_full_is_torchs_multivariate_normal():
    generator = torch.Generator().manual_seed(1)
    posterior = FullGaussianPosterior(4).double()
    parameters = torch.randn(5, posterior.n_parameters, generator=generator, dtype=torch.float64)
    q = posterior(parameters)
    oracle = MultivariateNormal(parameters[:, :4], scale_tril=q.scale_tril)
    z, log_q = q.rsample_with_log_prob(3, generator=generator)
    torch.testing.assert_close(log_q, oracle.log_prob(z), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(q.log_prob(z + 1), oracle.log_prob(z + 1), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(q.moments()[1], oracle.variance)
    torch.testing.assert_close(q.scale_tril.diagonal(dim1=-2, dim2=-1).square(), parameters[:, 4:8].exp())


def test_full_draws_have_the_covariance():
    """Every entry within 5 standard errors of 100,000 draws."""
    n = 100_000
    scale_tril = torch.tensor([[[1.0, 0.0], [-0.8, 0.3]]], dtype=torch.float64)
    q = FullGaussian(torch.zeros(1, 2, dtype=torch.float64), scale_tril)
    z, _ = q.rsample_with_log_prob(n, generator=torch.Generator().manual_seed(2))
    wanted = (scale_tril @ scale_tril.mT)[0]
    variance = wanted.diagonal()
    error = ((variance[:, None] * variance + wanted.square()) / n).sqrt()
    assert ((z[:, 0].T.cov() - wanted).abs() < 5 * error).all()
