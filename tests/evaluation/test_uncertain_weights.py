"""What draws of the weights say, against linear-Gaussian VAEs whose every quantity is known."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from latentfit import bayes
from latentfit.data.synthetic import LinearGaussian
from latentfit.errors import CapabilityError, InputError
from latentfit.evaluation import (
    LatentDistribution,
    LatentInvariants,
    OODScores,
    latent_distribution,
    latent_invariants,
    log_likelihood,
    score_ood,
)
from latentfit.evaluation.uncertainty import _posteriors


@pytest.fixture(scope="module")
def truths():
    """Three linear-Gaussian models whose loadings differ a little: draws of the decoder's weights."""
    base = LinearGaussian(data_dim=5, latent_dim=2)
    g = torch.Generator().manual_seed(4)
    others = []
    for _ in range(2):
        other = LinearGaussian(data_dim=5, latent_dim=2)
        other.weight = base.weight + 0.1 * torch.randn(base.weight.shape, generator=g, dtype=base.weight.dtype)
        others.append(other)
    return [base, *others]


@pytest.fixture(scope="module")
def models(exact_vae, truths):
    """VAEs of these truths around the first one's encoder."""
    first = exact_vae(truths[0])
    return [first, *(first.with_parts(decoder=exact_vae(truth).decoder) for truth in truths[1:])]


@pytest.fixture(scope="module")
def rows(truths):
    return truths[0].sample(30, random_state=1)[0]


def posterior(truth, rows):
    """Mean (N, D) and covariance (D, D) of the exact p(z given x)."""
    covariance = torch.linalg.inv(truth.weight.T @ truth.weight / truth.noise**2 + torch.eye(2).to(truth.weight))
    return (rows - truth.bias) @ truth.weight @ covariance.T / truth.noise**2, covariance


def log_p(truth, rows):
    covariance = truth.weight @ truth.weight.T + truth.noise**2 * torch.eye(5).to(truth.weight)
    return torch.distributions.MultivariateNormal(truth.bias, covariance).log_prob(rows).numpy()


def test_several_models_are_their_mixture(models, truths, rows):
    got = log_likelihood(models, rows, n_importance_samples=500, random_state=0)
    exact = np.logaddexp.reduce([log_p(t, rows) for t in truths], 0) - math.log(3)
    np.testing.assert_allclose(got.values, exact, atol=0.02)


def test_the_variance_falls_into_its_two_parts(models, truths, rows):
    got = latent_distribution(models, rows, refinement_steps=200)
    exact = [posterior(t, rows) for t in truths]
    means = torch.stack([mean for mean, _ in exact])
    aleatoric = torch.stack([cov.diagonal() for _, cov in exact]).mean(0)
    np.testing.assert_allclose(got.mean, means.mean(0), atol=0.02)
    np.testing.assert_allclose(got.aleatoric, aleatoric.expand(30, 2), rtol=0.1)
    np.testing.assert_allclose(got.epistemic, means.var(0, correction=0), rtol=0.15, atol=2e-4)
    assert 0 < got.share < 1
    assert "epistemic" in str(got)


def test_the_information_is_that_of_the_mixture(models, truths, rows):
    got = latent_distribution(models, rows, n_samples=200, refinement_steps=200).information
    g = torch.Generator().manual_seed(0)
    terms = []
    laws = [torch.distributions.MultivariateNormal(*posterior(t, rows)) for t in truths]
    for law in laws:
        eps = torch.randn(2000, 30, 2, generator=g, dtype=rows.dtype)
        z = law.mean + eps @ law.scale_tril[0].T
        mixture = torch.stack([other.log_prob(z) for other in laws]).logsumexp(0) - math.log(3)
        terms.append((law.log_prob(z) - mixture).mean(0))
    np.testing.assert_allclose(got.mean(), torch.stack(terms).mean(), rtol=0.1)
    assert (got >= 0).all()
    assert (got <= math.log(3)).all()


def test_equal_models_leave_nothing_uncertain(models, rows):
    got = latent_distribution([models[0], models[0]], rows)
    assert got.epistemic.max() < 1e-12
    assert got.information.max() < 1e-9
    low, high = got.band()
    np.testing.assert_allclose(low, high)
    mass = np.trapezoid(got.density[0], got.grid, axis=-1)
    np.testing.assert_allclose(mass, 1, atol=0.01)


def test_the_parts_sum_to_the_variance_of_the_mixture(models, rows):
    """The law of total variance, by brute force: draws of z from every draw's Gaussian."""
    got = latent_distribution(models, rows[:3], refinement_steps=100)
    codes = _posteriors(models, rows[:3], None, 100, 0)
    g = torch.Generator().manual_seed(0)
    draws = []
    for c in codes:
        eps = torch.randn(200_000, 3, 2, generator=g, dtype=torch.float64)
        draws.append(c.mean + (eps * c.std if c.scale_tril is None else (c.scale_tril @ eps.unsqueeze(-1)).squeeze(-1)))
    everything = torch.cat(draws)
    np.testing.assert_allclose(got.mean, everything.mean(0), atol=0.01)
    np.testing.assert_allclose(got.aleatoric + got.epistemic, everything.var(0, correction=0), rtol=0.01)


def test_densities_of_draws_are_those_of_their_posteriors(models, truths, rows):
    got = latent_distribution(models, rows, refinement_steps=200)
    for density, truth in zip(got.density, truths, strict=True):
        mean, covariance = posterior(truth, rows)
        for d in range(2):
            law = torch.distributions.Normal(mean[:, d], covariance[d, d].sqrt())
            exact = law.log_prob(torch.as_tensor(got.grid[d])[:, None]).exp().mean(-1)
            np.testing.assert_allclose(density[d], exact, atol=0.05 * float(exact.max()))


def marginals(weight, grid):
    """The marginal densities of q(z), z = posterior mean of x ~ N(0, I), of linear decoders (..., 5, 2) at a grid."""
    precision = weight.mT @ weight / 0.25 + torch.eye(2, dtype=torch.float64)
    covariance = torch.linalg.inv(precision)
    gain = covariance @ weight.mT / 0.25
    variance = (covariance + gain @ gain.mT).diagonal(dim1=-2, dim2=-1)  # (..., 2)
    return (-0.5 * grid**2 / variance[..., None]).exp() / (2 * math.pi * variance[..., None]).sqrt()


@pytest.mark.parametrize(
    ("n_draws", "level", "held"), [(10, None, 9 / 11), (5, None, 4 / 6), (40, None, 0.9), (40, 0.5, 0.5)]
)
def test_bands_hold_another_draw_as_often_as_they_say(n_draws, level, held):
    g = torch.Generator().manual_seed(0)
    base = torch.randn(5, 2, generator=g, dtype=torch.float64)
    weights = base + 0.3 * torch.randn(2000, n_draws + 1, 5, 2, generator=g, dtype=torch.float64)
    grid = torch.linspace(-3, 3, 7, dtype=torch.float64)
    densities = marginals(weights, grid).numpy()  # (reps, draws, 2, 7)
    inside = []
    for draws in densities:
        none = np.zeros((1, 2))
        low, high = LatentDistribution(none, none, none, np.zeros(1), grid.numpy(), draws[:-1]).band(level)
        inside.append((low <= draws[-1]) & (draws[-1] <= high))
    assert abs(np.mean(inside) - held) < 0.02


def test_a_level_that_the_draws_cannot_reach_is_refused():
    few = LatentInvariants(np.ones((10, 2)), np.ones(10), np.ones(10))
    with pytest.raises(InputError, match=r"10 draws give a level above 0 and at most 0.82, got 0.9; 19 draws would do"):
        few.band(0.9)
    many = LatentInvariants(np.ones((19, 2)), np.ones(19), np.ones(19))
    many.band(0.9)
    with pytest.raises(InputError, match=r"at most 0.90, got 1.5"):
        many.band(1.5)


def test_results_are_tables_and_json(models, rows):
    got = latent_distribution(models, rows[:4])
    assert list(got.table.columns) == ["information", "aleatoric", "epistemic", "epistemic_share"]
    assert len(got.table) == 4
    np.testing.assert_allclose(json.loads(got.to_json())["epistemic"], got.epistemic)
    found = LatentInvariants(np.ones((3, 2)), np.array([2, 2, 1]), np.zeros(3))
    assert found.table["active_units"].tolist() == [2, 2, 1]
    assert json.loads(found.to_json())["spectrum"] == [[1, 1]] * 3
    assert "with probability 50%" in str(found)


def test_coordinates_that_are_not_shared_are_refused_and_invariants_given(exact_vae, truths, rows):
    turn = torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=rows.dtype)
    turned = LinearGaussian(data_dim=5, latent_dim=2)
    turned.weight = truths[0].weight @ turn
    turned.posterior_covariance = turn.T @ truths[0].posterior_covariance @ turn
    turned.optimal_variance = 1 / torch.linalg.inv(turned.posterior_covariance).diagonal()
    apart = [exact_vae(truths[0]), exact_vae(turned)]
    with pytest.raises(CapabilityError, match="latent_invariants"):
        latent_distribution(apart, rows)
    X = truths[0].sample(400, random_state=3)[0]
    got = latent_invariants(apart, X)
    np.testing.assert_allclose(got.spectrum[0], got.spectrum[1], rtol=0.03)
    assert got.active_units.tolist() == [2, 2]
    assert np.abs(got.prior_gap).max() < 0.05  # N(0, I) is right
    assert "active units" in str(got)


def test_ood_scores_are_what_their_names_say():
    per_draw = np.array([[-1.0, -5.0], [-1.5, -9.0], [-0.5, -7.0]])
    got = OODScores(per_draw)
    np.testing.assert_allclose(got.expected, [-1.0, -7.0])
    np.testing.assert_allclose(got.disagreement, [0.25, 4.0])
    np.testing.assert_allclose(got.waic, [-1.25, -11.0])
    np.testing.assert_allclose(got.score, got.disagreement)
    w = np.exp(per_draw)
    np.testing.assert_allclose(got.log_p, np.log(w.mean(0)))
    np.testing.assert_allclose(got.effective_draws, w.sum(0) ** 2 / (w**2).sum(0))
    assert got.table.columns[0] == "score"
    assert json.loads(got.to_json())["n_draws"] == 3
    assert "2 rows, 3 draws" in str(got)


def test_draws_disagree_more_about_rows_far_from_the_data(models, truths, rows):
    near = score_ood(models, rows)
    far = score_ood(models, truths[0].bias + 4 * (rows - truths[0].bias))
    assert (far.score > near.score).mean() > 0.9
    exact = np.stack([log_p(t, rows) for t in truths]).var(0, ddof=1)
    np.testing.assert_allclose(near.score, exact, rtol=0.2, atol=0.02)


def test_a_bayesian_vae_brings_its_own_draws(exact_vae, truths, rows):
    model = exact_vae(truths[0])

    class Turned(bayes.UncertainNetwork):
        def forward(self, z):
            return self.network(z)

        def draw(self, generator=None):
            changed = exact_vae(truths[0]).decoder
            with torch.no_grad():
                changed.weight += 0.05 * torch.randn(changed.weight.shape, generator=generator, dtype=rows.dtype)
            return changed

    uncertain = model.with_parts(decoder=Turned(model.decoder))
    assert score_ood(uncertain, rows[:5], draws=4).per_draw.shape == (4, 5)
    assert latent_distribution(uncertain, rows[:5], draws=3).density.shape[0] == 3
    with pytest.raises(InputError, match="at least two"):
        score_ood(model, rows)
    with pytest.raises(InputError, match="draws="):
        score_ood([model, model], rows, draws=3)
    with pytest.raises(InputError, match="at least 1"):
        latent_distribution(uncertain, rows, refinement_steps=0)
