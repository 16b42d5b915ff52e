"""Codes, active units, holes and sample quality."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from latentfit.data.synthetic import LinearGaussian
from latentfit.errors import DataWarning, InputError
from latentfit.evaluation import (
    Codes,
    active_units,
    encode_rows,
    encoder_features,
    prior_holes,
    sample_quality,
)
from latentfit.priors import LearnedGaussianPrior, StandardNormalPrior


def test_encoded_rows_are_the_posterior_and_can_be_trained_on(exact_vae):
    truth = LinearGaussian(data_dim=5, latent_dim=2)
    x = truth.sample(4100, 1)[0]  # more than one block
    codes = encode_rows(exact_vae(truth), x)
    torch.testing.assert_close(codes.mean, truth.posterior(x)[0])
    torch.testing.assert_close(codes.std, truth.optimal_variance.sqrt().expand(4100, 2))
    (codes.mean * torch.ones(2, dtype=torch.float64, requires_grad=True)).sum().backward()


def test_draws_have_the_moments_also_of_full_gaussians():
    tril = torch.tensor([[0.8, 0.0], [0.6, 0.3]], dtype=torch.float64).expand(3, 2, 2)
    mean = torch.tensor([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]], dtype=torch.float64)
    codes = Codes(mean, tril.square().sum(-1).sqrt(), scale_tril=tril)
    z = codes.sample(40_000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(z.mean(0), mean, rtol=0, atol=0.02)
    torch.testing.assert_close(torch.cov(z[:, 1].T), tril[1] @ tril[1].T, rtol=0, atol=0.02)


def test_kl_to_the_standard_normal_is_torch_s():
    from torch.distributions import MultivariateNormal, kl_divergence

    rng = torch.Generator().manual_seed(0)
    mean = torch.randn(4, 3, generator=rng, dtype=torch.float64)
    tril = torch.eye(3, dtype=torch.float64) + torch.randn(4, 3, 3, generator=rng, dtype=torch.float64).tril(-1)
    codes = Codes(mean, tril.square().sum(-1).sqrt(), scale_tril=tril)
    standard = MultivariateNormal(torch.zeros(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64))
    expected = kl_divergence(MultivariateNormal(mean, scale_tril=tril), standard)
    torch.testing.assert_close(codes.kl_to_standard_normal(), expected)


def test_rows_of_codes_are_picked_everywhere():
    codes = Codes.of(torch.arange(8.0).view(4, 2), std=torch.ones(4, 2), groups=[0, 0, 1, 1])
    for rows in (np.array([3, 1]), torch.tensor([3, 1])):
        picked = codes[rows]
        assert picked.mean[:, 0].tolist() == [6.0, 2.0]
        assert picked.groups.tolist() == [1, 0]


def test_dead_units_are_counted_and_their_kl_is_zero():
    mean = torch.randn(2000, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 0.5, 0.0, 0.05])
    std = torch.tensor([0.1, 0.5, 1.0, 1.0]).expand(2000, 4)
    units = active_units(Codes(mean, std))
    assert units.active.tolist() == [True, True, False, False]
    assert int(units) == 2
    assert units.kl[2] == pytest.approx(0)
    assert units.std == pytest.approx([math.sqrt(1.01), math.sqrt(0.5), 1.0, math.sqrt(1.0025)], rel=0.05)


def test_a_good_prior_has_one_per_cent_of_holes_and_a_wide_one_the_known_share():
    rng = np.random.default_rng(0)
    sigma = 0.5  # q(z) = N(0, sigma^2) in one dimension
    mean = sigma * rng.standard_normal((20_000, 1))
    codes = Codes.of(mean, std=np.full_like(mean, 1e-4))
    r = LearnedGaussianPrior(1).double().fit(codes.mean, std=codes.std)
    own = prior_holes(r, r, codes, n_samples=20_000)
    assert abs(own.share.value - 0.01) < 4 * own.share.std_error
    wide = prior_holes(r, StandardNormalPrior(1).double(), codes, n_samples=20_000)
    exact = math.erfc(2.5758293 * sigma / math.sqrt(2))  # beyond q's 99 % interval
    assert abs(wide.share.value - exact) < 0.02
    assert wide.log_r_samples.shape == wide.log_r_codes.shape == (20_000,)


def test_samples_of_the_true_model_reach_their_floor_and_a_wrong_prior_does_not(exact_vae):
    truth = LinearGaussian(data_dim=6, latent_dim=2)
    x = truth.sample(2000, 1)[0]
    vae = exact_vae(truth)
    features = encoder_features(exact_vae(truth))
    good = sample_quality(vae, x, features=features)
    assert good.n == 1000
    assert abs(good.excess) < 0.05
    vae.prior = LearnedGaussianPrior(2).double()
    vae.prior.mean.data.fill_(1.5)
    bad = sample_quality(vae, x, features=features)
    assert bad.frechet.value == pytest.approx(2 * 1.5**2, rel=0.3)
    assert bad.floor.value == pytest.approx(good.floor.value, abs=0.05)
    assert bad.frechet.std_error > 0
    with pytest.raises(InputError, match="at least 4"):
        sample_quality(vae, x[:3])


def test_log_variances_that_are_all_positive_are_asked_about():
    mean, variance = np.random.default_rng(0).normal(size=(100, 2)), np.full((100, 2), 0.3)
    with pytest.warns(DataWarning, match="Are they variances"):
        Codes.of(mean, logvar=variance)
    with pytest.raises(InputError, match=r"mean has 1 of its 200 entries NaN or infinite, first in row 7 \(from 0\)"):
        Codes.of(np.where(np.arange(200).reshape(100, 2) == 15, np.nan, mean), var=variance)
