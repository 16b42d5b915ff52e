from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Independent, MultivariateNormal, Normal

from latentfit.data.synthetic import (
    LinearGaussian,
    gaussian_mixture_latents,
    kl_mixture_from_normal,
    zero_mismatch_latents,
)
from latentfit.errors import InputError

TRUTH = LinearGaussian(data_dim=3, latent_dim=2, noise=0.7, random_state=3)
X, Z = TRUTH.sample(6, random_state=1)


def grid(width=7.0, n=400, dim=2):
    """Points (P, dim) and the cell's volume."""
    axis = torch.linspace(-width, width, n, dtype=torch.float64)
    points = torch.cartesian_prod(*[axis] * dim).reshape(-1, dim)
    return points, float(axis[1] - axis[0]) ** dim


def log_joint(x, z):
    prior = Normal(0.0, 1.0).log_prob(z).sum(-1)
    return prior + Normal(z @ TRUTH.weight.T + TRUTH.bias, TRUTH.noise).log_prob(x).sum(-1)


def test_log_prob_is_the_integral_over_z():
    z, cell = grid()
    for x in X:
        assert TRUTH.log_prob(x).item() == pytest.approx(float(log_joint(x, z).logsumexp(0)) + math.log(cell), abs=1e-9)


def test_posterior_is_bayes_rule():
    mean, covariance = TRUTH.posterior(X)
    for x, m in zip(X, mean, strict=True):
        for z in Z:
            expected = log_joint(x, z) - TRUTH.log_prob(x)
            torch.testing.assert_close(MultivariateNormal(m, covariance).log_prob(z), expected)


def test_expected_log_prob_is_the_mean_over_the_population():
    x, _ = TRUTH.sample(20_000, random_state=2)
    values = TRUTH.log_prob(x)
    assert abs(values.mean() - TRUTH.expected_log_prob()) < 4 * values.std() / math.sqrt(len(x))


@pytest.mark.parametrize("kind", ["optimal diagonal", "exact", "too narrow"])
def test_elbo_is_its_definition(kind):
    covariance = {
        "optimal diagonal": torch.diag(TRUTH.optimal_variance),
        "exact": TRUTH.posterior_covariance,
        "too narrow": 0.1 * TRUTH.posterior_covariance,
    }[kind]
    mean, _ = TRUTH.posterior(X)
    z, cell = grid()
    for x, m, value in zip(X, mean, TRUTH.elbo(X, covariance), strict=True):
        log_q = MultivariateNormal(m, covariance).log_prob(z)
        brute = (log_q.exp() * (log_joint(x, z) - log_q)).sum() * cell
        torch.testing.assert_close(value, brute, atol=1e-6, rtol=0)
    if kind == "exact":
        assert TRUTH.inference_gap(covariance) == pytest.approx(0, abs=1e-12)


def test_no_other_diagonal_posterior_has_a_smaller_gap():
    best = TRUTH.inference_gap()
    rng = np.random.default_rng(0)
    for _ in range(50):
        factor = torch.from_numpy(np.exp(0.3 * rng.standard_normal(2)))
        assert TRUTH.inference_gap(torch.diag(TRUTH.optimal_variance * factor)) >= best - 1e-12


def test_expected_kl_and_aggregate_over_the_population():
    x, _ = TRUTH.sample(40_000, random_state=5)
    mean, _ = TRUTH.posterior(x)
    s = TRUTH.optimal_variance
    kl = 0.5 * (mean.square() + s - 1 - s.log()).sum(1)
    assert abs(kl.mean() - TRUTH.expected_kl()) < 4 * kl.std() / math.sqrt(len(x))
    torch.testing.assert_close(torch.cov(mean.T) + torch.diag(s), TRUTH.aggregate()[1], atol=0.04, rtol=0)


def test_the_exact_posterior_has_no_mismatch():
    torch.testing.assert_close(TRUTH.aggregate(TRUTH.posterior_covariance)[1], torch.eye(2, dtype=torch.float64))
    assert TRUTH.mismatch(TRUTH.posterior_covariance) == pytest.approx(0, abs=1e-12)
    assert TRUTH.mismatch() > 0


def test_mismatch_of_the_diagonal_posterior_is_the_normals_kl():
    mean, covariance = TRUTH.aggregate()
    standard = MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double())
    expected = torch.distributions.kl_divergence(MultivariateNormal(mean, covariance), standard)
    assert TRUTH.mismatch() == pytest.approx(expected.item(), abs=1e-12)


@given(m=st.floats(-3, 3), s=st.floats(0.05, 3))
@settings(max_examples=40, deadline=None)
def test_quadrature_of_one_component_is_the_closed_form(m, s):
    found = kl_mixture_from_normal(np.ones(1), np.array([m]), np.array([s]))
    assert found == pytest.approx(0.5 * (s**2 + m**2 - 1) - math.log(s), abs=1e-9)


@pytest.mark.parametrize("rotate", [False, True])
def test_the_mixtures_mismatch_is_the_integral_of_its_density(rotate):
    latents = gaussian_mixture_latents(
        10,
        2,
        centres=(-2.0, 0.5),
        component_std=(0.3, 0.6),
        weights=(0.3, 0.7),
        rotate=rotate,
        dtype=torch.float64,
    )
    z, cell = grid(width=8.0, n=800)
    log_q = latents.log_q(z)
    assert float(log_q.exp().sum()) * cell == pytest.approx(1, abs=1e-9)
    brute = float((log_q.exp() * (log_q - Normal(0.0, 1.0).log_prob(z).sum(-1))).sum()) * cell
    assert latents.mismatch == pytest.approx(brute, abs=1e-8)


@pytest.mark.parametrize("rotate", [False, True])
def test_draws_of_the_codes_follow_q(rotate):
    latents = gaussian_mixture_latents(40_000, 6, centres=(-1.5, 0.0, 1.0), rotate=rotate, random_state=2)
    generator = torch.Generator().manual_seed(0)
    codes = latents.mean + latents.std * torch.randn(latents.mean.shape, generator=generator)
    for z in (codes, latents.sample(40_000, random_state=1)):
        ratio = latents.log_q(z) - Normal(0.0, 1.0).log_prob(z).sum(-1)
        assert abs(ratio.mean() - latents.mismatch) < 4 * ratio.std() / math.sqrt(len(z))


def test_zero_mismatch_codes_are_standard_normal():
    latents = zero_mismatch_latents(50_000, 3, spread=0.4)
    generator = torch.Generator().manual_seed(0)
    z = latents.mean + latents.std * torch.randn(latents.mean.shape, generator=generator)
    torch.testing.assert_close(torch.cov(z.T), torch.eye(3), atol=0.03, rtol=0)
    torch.testing.assert_close(latents.log_q(z), Independent(Normal(torch.zeros(3), 1.0), 1).log_prob(z))
    assert latents.mismatch == 0
    assert latents.std.unique().tolist() == pytest.approx([0.4])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LinearGaussian(0, 2), "positive sizes and noise, got 0 x 2"),
        (lambda: LinearGaussian(2, 2, noise=0.0), "noise 0.0"),
        (lambda: zero_mismatch_latents(5, 2, spread=1.0), "spread must be between 0 and 1, got 1.0"),
        (lambda: gaussian_mixture_latents(5, 2, weights=(0.5, 0.6)), "positive weights that sum to 1"),
        (lambda: gaussian_mixture_latents(5, 2, weights=(1.0,)), "A mixture of 2 centres"),
        (lambda: gaussian_mixture_latents(5, 2, code_std=0.0), "Spreads must be positive"),
    ],
)
def test_impossible_truths_are_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
