"""Posteriors on a cube, a sphere, a simplex: where they lie, their densities, their moments."""

import json

import pytest
import torch

import latentfit as lf
from latentfit.errors import CapabilityError, InputError
from latentfit.posteriors import SupportPosterior
from latentfit.registry import registry

SUPPORTS = ("square", "sphere", "simplex")


def make(support, dim=3, n=5):
    posterior = SupportPosterior(dim, support)
    generator = torch.Generator().manual_seed(0)
    parameters = 0.7 * torch.randn(n, posterior.n_parameters, generator=generator, dtype=torch.float64)
    return posterior, parameters.requires_grad_()


@pytest.mark.parametrize("support", SUPPORTS)
def test_draws_lie_on_the_support_and_are_reparameterised(support):
    posterior, parameters = make(support)
    z, log_q = posterior(parameters).rsample_with_log_prob(4, torch.Generator().manual_seed(1))
    assert z.shape == (4, 5, 3)
    assert log_q.shape == (4, 5)
    if support == "sphere":
        torch.testing.assert_close(z.norm(dim=-1), torch.ones(4, 5, dtype=torch.float64))
    else:
        assert ((z > 0) & (z < 1)).all()
    if support == "simplex":
        torch.testing.assert_close(z.sum(-1), torch.ones(4, 5, dtype=torch.float64))
    z.square().mul(torch.arange(1, 4)).sum().backward()
    assert (parameters.grad != 0).all()


@pytest.mark.parametrize("support", ["square", "simplex"])
def test_the_density_integrates_to_one_and_scores_its_own_draws(support):
    """On a grid over the square, or over the first two coordinates of the simplex."""
    posterior, parameters = make(support, 3 if support == "simplex" else 2, n=1)
    q = posterior(parameters.detach())
    n = 1_500
    line = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    points = torch.cartesian_prod(line, line)
    if support == "simplex":
        points = points[points.sum(1) < 1]
        points = torch.cat([points, 1 - points.sum(1, keepdim=True)], 1)
    assert q.log_prob(points[:, None]).exp().sum().item() / n**2 == pytest.approx(1.0, abs=2e-3)
    z, log_q = q.rsample_with_log_prob(9, torch.Generator().manual_seed(0))
    torch.testing.assert_close(q.log_prob(z), log_q, rtol=1e-6, atol=1e-6)
    units = q.unit_log_prob(z)
    if support == "square":
        torch.testing.assert_close(units.sum(-1), log_q, rtol=1e-6, atol=1e-6)
    else:
        assert units is None


def test_zero_parameters_are_uniform_on_the_square():
    q = SupportPosterior(2, "square")(torch.zeros(1, 4))
    _, log_q = q.rsample_with_log_prob(50)
    assert log_q.abs().max() < 1e-4


def test_a_dirichlet_prior_has_its_kl():
    """E_q[log q - log p] by the objective is that by hand, against torch's Dirichlet."""
    prior = lf.priors.as_prior(torch.distributions.Dirichlet(torch.full((3,), 2.0)))
    posterior, parameters = make("simplex")
    z, log_q = posterior(parameters).rsample_with_log_prob(2_000, torch.Generator().manual_seed(0))
    kl = (log_q - prior.log_prob(z.float())).mean(0)
    assert torch.isfinite(kl).all()
    assert (kl > 0).all()


@pytest.mark.parametrize("support", SUPPORTS)
def test_moments_are_those_of_the_draws(support):
    """Means within 3 % of the standard deviation, which is itself within 5 %."""
    posterior, parameters = make(support)
    q = posterior(parameters.detach())
    z, _ = q.rsample_with_log_prob(20_000, torch.Generator().manual_seed(2))
    mean, variance = q.moments()
    assert ((z.mean(0) - mean).abs() < 0.03 * variance.sqrt() + 5 * (variance / 20_000).sqrt()).all()
    assert ((z.std(0) / variance.sqrt() - 1).abs() < 0.05).all()


def test_the_sphere_has_no_density_and_so_no_kl():
    posterior, parameters = make("sphere", 2)
    q = posterior(parameters)
    _, log_q = q.rsample_with_log_prob(1)
    assert not q.has_density
    assert log_q.isnan().all()
    with pytest.raises(CapabilityError, match="not known"):
        q.log_prob(torch.zeros(1, 5, 2))
    encoder, decoder = torch.nn.Linear(3, 4), torch.nn.Linear(2, 3)
    model = lf.VAEModule(encoder, decoder, latent_dim=2, posterior=SupportPosterior(2, "sphere"), likelihood="normal")
    with pytest.raises(CapabilityError, match="no density of its draws"):
        lf.ELBO()(model, torch.zeros(4, 3))
    with pytest.raises(CapabilityError, match="has not"):
        lf.evaluation.elbo_terms(model, torch.zeros(4, 3))
    terms = lf.ELBO(0.0, [lf.penalties.mmd()])(model, torch.zeros(4, 3))
    assert "kl" not in terms
    assert torch.isfinite(terms["loss"])


def test_codes_of_a_support_are_kept_as_draws():
    encoder, decoder = torch.nn.Linear(3, 4), torch.nn.Linear(2, 3)
    model = lf.VAEModule(encoder, decoder, latent_dim=2, posterior=SupportPosterior(2, "sphere"), likelihood="normal")
    codes = lf.evaluation.encode_rows(model, torch.randn(20, 3))
    torch.testing.assert_close(codes.sample(3).norm(dim=-1), torch.ones(3, 20))


@pytest.mark.parametrize("support", SUPPORTS)
def test_rebuilt_from_its_configuration(support):
    posterior, parameters = make(support)
    again = registry.build("posterior", json.loads(json.dumps(posterior.config())))
    a, b = (p(parameters).rsample_with_log_prob(2, torch.Generator().manual_seed(0))[0] for p in (posterior, again))
    assert torch.equal(a, b)


def test_other_supports_are_refused():
    with pytest.raises(InputError, match="'square', 'sphere' or 'simplex'"):
        SupportPosterior(2, "torus")
    with pytest.raises(InputError, match="at least 2"):
        SupportPosterior(1, "simplex")
