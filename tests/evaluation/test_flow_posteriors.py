"""What holds for Gaussian posteriors holds for flow posteriors: log p(x), the ELBO, codes, the ladder."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from latentfit.data.synthetic import LinearGaussian
from latentfit.evaluation import encode_rows, fit_proposal, log_likelihood
from latentfit.evaluation.codes import STORED_DRAWS
from latentfit.evaluation.gap import prior_gap
from latentfit.evaluation.ladder import climb
from latentfit.evaluation.terms import elbo_terms, inference_gap
from latentfit.registry import registry

FLOWS = {
    "planar": {},
    "sylvester": {"columns": 2},
    "iaf": {"hidden_features": (16,)},
    "realnvp_posterior": {"hidden_features": (16,)},
}


class WithFeatures(nn.Module):
    """An encoder's mean and log-variance, and features that are functions of the row."""

    def __init__(self, encoder: nn.Module, data_dim: int, n_features: int) -> None:
        super().__init__()
        self.encoder, self.features = encoder, nn.Linear(data_dim, n_features)

    def forward(self, x):
        return torch.cat((self.encoder(x), torch.tanh(self.features(x))), -1)


@pytest.fixture(scope="module")
def truth():
    return LinearGaussian(data_dim=6, latent_dim=3)


def bent(exact_vae, truth, name, scale=0.08):
    """The exact model with its optimal encoder spoilt by a random flow."""
    vae = exact_vae(truth)
    torch.manual_seed(0)
    posterior = registry.create("posterior", name, latent_dim=3, context_features=4, **FLOWS[name]).double()
    with torch.no_grad():
        for weight in posterior.parameters():
            weight.add_(scale * torch.randn_like(weight))
    vae.encoder, vae.posterior = WithFeatures(vae.encoder, 6, 4).double(), posterior
    return vae


@pytest.mark.parametrize("name", FLOWS)
def test_log_p_is_the_closed_form_and_the_elbo_is_below(exact_vae, truth, name):
    vae = bent(exact_vae, truth, name)
    train, test = truth.sample(300, 1)[0], truth.sample(60, 2)[0]
    scored = log_likelihood(vae, test, proposal=fit_proposal(vae, train), n_importance_samples=1000)
    assert np.abs(scored.values - truth.log_prob(test).numpy()).max() < 0.05
    assert scored.unreliable == 0
    terms = elbo_terms(vae, test, n_draws=200)
    assert not terms.analytic_kl
    assert inference_gap(scored, terms).interval[0] > 0
    # E_q[log q - log p(z|x)] is what the encoder loses, and here p(z|x) is known
    mean, covariance = truth.posterior(test)
    q = vae.encode(test)
    with torch.no_grad():
        z, log_q = q.rsample_with_log_prob(4_000, torch.Generator().manual_seed(0))
        exact = torch.distributions.MultivariateNormal(mean, covariance)
        loss = (log_q - exact.log_prob(z)).mean(0)
    error = np.std(terms.elbo_per_row - truth.log_prob(test).numpy() + loss.numpy())  # of both draws, per row
    assert inference_gap(scored, terms).value == pytest.approx(loss.mean().item(), abs=max(0.05, 5 * error / 60**0.5))


@pytest.mark.parametrize("name", FLOWS)
def test_codes_are_draws_of_the_flow(exact_vae, truth, name):
    """Stored draws have q's moments over all rows: within 5 standard errors of 8 x 400 draws."""
    vae = bent(exact_vae, truth, name)
    codes = encode_rows(vae, truth.sample(400, 3)[0])
    assert codes.stored.shape == (STORED_DRAWS, 400, 3)
    standard = (codes.stored - codes.mean) / codes.std
    # the moments are of 64 draws: their error is part of it
    assert (standard.mean((0, 1)).abs() < 5 * (1 / 3200 + 1 / 64) ** 0.5).all()
    again = encode_rows(vae, truth.sample(400, 3)[0])
    assert torch.equal(codes.stored, again.stored)
    assert torch.equal(codes[10:20].sample(2), codes.stored[:2, 10:20])


def test_a_prior_is_fitted_to_the_flows_own_draws():
    """Rows whose q has two modes, all alike: N(mean, std^2) of each has one, and a prior fitted to it misses both."""
    from latentfit.evaluation.codes import Codes
    from latentfit.priors import create

    generator = torch.Generator().manual_seed(0)
    side = torch.randint(0, 2, (8, 1500, 1), generator=generator) * 4.0 - 2.0
    stored = side + 0.3 * torch.randn(8, 1500, 1, generator=generator)
    moments = torch.zeros(1500, 1), stored.std() * torch.ones(1500, 1)
    codes = Codes(*moments, stored=stored)
    p = create("standard", latent_dim=1)
    parts = [codes[slice(start, start + 500)] for start in (0, 500, 1000)]
    ladder = climb(*parts, p, rungs=["mixture"], random_state=0)
    on_gaussians = create("mixture", latent_dim=1, n_components=2).fit(moments[0], std=moments[1])
    assert ladder["mixture"].gap.interval[0] > prior_gap(on_gaussians, p, parts[2]).interval[1] + 0.1
    rows = codes.rows(p)
    pooled = rows.mean.var(correction=0) + rows.std.square().mean()
    assert pooled.item() == pytest.approx((0.75 * stored[0].square().mean() + 0.25 * stored.var()).item(), rel=0.02)
