"""The proposal is a density, draws what it says, and stays exact under a swapped prior."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from latentfit.data.synthetic import LinearGaussian
from latentfit.evaluation import Codes, Proposal, fit_proposal, log_likelihood
from latentfit.evaluation.rows import RowNoise
from latentfit.priors import LearnedGaussianPrior


def moved(full: bool) -> Proposal:
    """A proposal away from its start."""
    torch.manual_seed(0)
    proposal = Proposal(2, full=full, width=1.5).double()
    for parameter in proposal.parameters():
        parameter.data.copy_(0.3 * torch.randn_like(parameter))
    return proposal.requires_grad_(False)


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("correlated", [True, False])
def test_the_mixture_integrates_to_one_and_scores_its_own_draws(full, correlated):
    mean = torch.tensor([[0.4, -0.7]], dtype=torch.float64)
    tril = torch.tensor([[[0.8, 0.0], [0.5, 0.6]]], dtype=torch.float64)
    std = tril.square().sum(-1).sqrt()
    codes = Codes(mean, std, scale_tril=tril if correlated else None)
    proposal = moved(full)
    n = 200_000
    z, log_e = proposal.draw(proposal.frame(codes), RowNoise(1, 0).draw(slice(0, 1), n, (2,), mean))
    # E_e[u / e] = integral of u, for a u inside e's support: a wide normal's mass is 1
    target = torch.distributions.MultivariateNormal(z.mean((0, 1)), 0.5 * torch.cov(z[:, 0].T))
    weight = (target.log_prob(z[:, 0]) - log_e[:, 0]).exp()
    error = float(weight.std() / math.sqrt(n))
    assert abs(float(weight.mean()) - 1) < 4 * error
    assert error < 0.01


def test_strata_add_up_and_a_single_draw_is_narrow():
    proposal = Proposal(3)
    for n in (1, 2, 9, 10, 55, 1000):
        narrow, wide = proposal.strata(n)
        assert narrow + wide == n
        assert narrow >= 1
        assert abs(wide - 0.1 * n) <= 0.5


def test_it_starts_as_the_encoder():
    codes = Codes(torch.randn(4, 3), torch.rand(4, 3) + 0.1)
    proposal = Proposal(3, wide_share=0.0)
    z, log_e = proposal.draw(proposal.frame(codes), torch.randn(4, 6, 3))
    expected = torch.distributions.Normal(codes.mean, codes.std).log_prob(z).sum(-1)
    torch.testing.assert_close(log_e, expected, rtol=1e-4, atol=1e-4)


def test_refitted_after_a_prior_swap_it_is_exact_again(exact_vae):
    truth = LinearGaussian(data_dim=5, latent_dim=3)
    x = truth.sample(600, 1)[0]
    vae = exact_vae(truth)
    first = fit_proposal(vae, x)
    prior = LearnedGaussianPrior(3).double()
    prior.mean.data.copy_(torch.tensor([0.5, -0.5, 0.2], dtype=torch.float64))
    prior.log_diagonal.data.fill_(0.4)
    vae.prior = prior
    variance = prior.variance().diag()
    exact = torch.distributions.MultivariateNormal(
        truth.weight @ prior.mean.detach() + truth.bias,
        truth.weight @ variance.detach() @ truth.weight.T + truth.noise**2 * torch.eye(5, dtype=torch.float64),
    ).log_prob(x[:50])
    again = fit_proposal(vae, x, warm_start=first)
    result = log_likelihood(vae, x[:50], proposal=again, n_importance_samples=200)
    assert np.abs(result.values - exact.numpy()).max() < 0.05
    assert result.effective_sample_size.mean() > 0.9 * 200
    # the warm start itself is left as it was
    assert log_likelihood(exact_vae(truth), x[:50], proposal=first).effective_sample_size.mean() > 900


def test_many_latents_get_a_diagonal_scale():
    assert Proposal(3).lower is not None
    assert Proposal(100, full=False).lower is None


def test_the_same_seed_gives_the_same_proposal(exact_vae):
    truth = LinearGaussian(data_dim=4, latent_dim=2)
    x, vae = truth.sample(200, 1)[0], exact_vae(truth)
    a, b = (fit_proposal(vae, x, max_steps=60, random_state=3).state_dict() for _ in range(2))
    assert all(torch.equal(a[key].nan_to_num(), b[key].nan_to_num()) for key in a)
