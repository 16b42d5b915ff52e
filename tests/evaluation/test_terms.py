"""The ELBO's terms and the inference gap of the linear-Gaussian VAE."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from latentfit.data.synthetic import LinearGaussian
from latentfit.errors import InputError
from latentfit.evaluation import Estimate, elbo_terms, inference_gap, log_likelihood
from latentfit.priors import StandardNormalPrior


@pytest.fixture(scope="module")
def truth():
    return LinearGaussian(data_dim=6, latent_dim=3)


@pytest.fixture(scope="module")
def x(truth):
    return truth.sample(200, 1)[0]


class NoClosedForm(StandardNormalPrior):
    """N(0, I) whose KL must be estimated."""

    def analytic_kl(self, mean, std):
        return None


def test_the_analytic_kl_is_exact(exact_vae, truth, x):
    terms = elbo_terms(exact_vae(truth), x, n_draws=2)
    mean, _ = truth.posterior(x)
    variance = truth.optimal_variance
    exact = 0.5 * (mean.square() + variance - 1 - variance.log()).sum(-1)
    assert terms.analytic_kl
    np.testing.assert_allclose(terms.kl_per_row, exact.numpy(), atol=1e-10)


def test_monte_carlo_terms_are_within_their_error(exact_vae, truth, x):
    draws = np.stack(
        [elbo_terms(exact_vae(truth), x, n_draws=5, random_state=s).elbo_per_row.mean() for s in range(20)]
    )
    exact = float(truth.elbo(x).mean())
    assert abs(draws.mean() - exact) < 4 * draws.std(ddof=1) / 20**0.5


def test_the_monte_carlo_kl_agrees_with_the_analytic_one(exact_vae, truth, x):
    vae = exact_vae(truth)
    analytic = elbo_terms(vae, x).kl_per_row
    vae.prior = NoClosedForm(3).double()
    estimated = elbo_terms(vae, x, n_draws=200)
    assert not estimated.analytic_kl
    difference = Estimate.of(estimated.kl_per_row - analytic)
    assert abs(difference.value) < 4 * difference.std_error


def test_the_inference_gap_is_the_known_one(exact_vae, truth, x):
    vae = exact_vae(truth)
    values = log_likelihood(vae, x, X_train=x, n_importance_samples=200)
    gap = inference_gap(values, elbo_terms(vae, x, n_draws=50))
    assert abs(gap.value - truth.inference_gap()) < 4 * gap.std_error
    with pytest.raises(InputError, match="score the same rows"):
        inference_gap(values, elbo_terms(vae, x[:10]))


def test_draws_are_honoured_in_any_block(exact_vae, truth, x, monkeypatch):
    import latentfit.evaluation.terms as module

    scored = []
    vae = exact_vae(truth)
    log_p = vae.log_likelihood
    monkeypatch.setattr(vae, "log_likelihood", lambda batch, z: scored.append(z.shape[:2]) or log_p(batch, z))
    monkeypatch.setattr(module, "decoder_rows", lambda *of: 30)
    elbo_terms(vae, x[:70], n_draws=7)
    assert sum(s * n for s, n in scored) == 70 * 7
    assert max(s * n for s, n in scored) <= 30


def test_values_are_double_and_finite(exact_vae, truth, x):
    terms = elbo_terms(exact_vae(truth), x)
    assert terms.elbo_per_row.dtype == np.float64
    assert np.isfinite(terms.elbo_per_row).all()
    np.testing.assert_allclose(terms.log_likelihood_per_row - terms.kl_per_row, terms.elbo_per_row)
    assert torch.is_grad_enabled()
