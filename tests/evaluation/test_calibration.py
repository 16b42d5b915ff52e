"""Decoder calibration where the optimal sigma is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from latentfit.data.batch import Batch
from latentfit.data.synthetic import LinearGaussian
from latentfit.data.transforms import Standardise
from latentfit.errors import CapabilityError, InputError
from latentfit.evaluation import Calibration, Estimate, decoder_calibration, elbo_terms, fit_proposal
from latentfit.likelihoods import Bernoulli, Normal
from latentfit.model.vae import VAEModule

TRUTH = LinearGaussian(data_dim=6, latent_dim=1, noise=0.5)  # in one dimension the diagonal posterior is exact


def rows(n: int, seed: int) -> torch.Tensor:
    return TRUTH.sample(n, seed)[0]


def test_the_noise_of_the_truth_is_found_and_its_gain_is_the_elbo_s(exact_vae):
    vae = exact_vae(TRUTH)
    vae.likelihood = Normal(scale=1.5).double()
    found = decoder_calibration(vae, rows(4000, 1), rows(3000, 2))
    assert found.sigma_used == pytest.approx(1.5)
    assert found.sigma_optimal == pytest.approx(0.5, rel=0.02)
    ratio = 0.5 / 1.5
    expected = 6 * (-math.log(ratio) - 0.5 * (1 - ratio**2))
    assert abs(found.gain.value - expected) < 4 * found.gain.std_error
    assert found.gain_per_row.shape == (3000,)
    before = elbo_terms(vae, rows(3000, 2), n_draws=20).elbo_per_row
    vae.likelihood = found.calibrated
    gained = Estimate.of(elbo_terms(vae, rows(3000, 2), n_draws=20).elbo_per_row - before - found.gain_per_row)
    assert abs(gained.value) < 4 * gained.std_error


def test_no_other_sigma_does_better_on_the_calibration_rows(exact_vae):
    vae, x = exact_vae(TRUTH), rows(300, 3)
    gains = {}
    for factor in (0.98, 1.0, 1.02):
        vae.likelihood = Normal(scale=1.0).double()
        optimal = decoder_calibration(vae, x, x).sigma_optimal
        vae.likelihood = Normal(scale=factor * optimal).double()
        gains[factor] = decoder_calibration(vae, x, x).gain.value
    assert gains[1.0] == pytest.approx(0, abs=1e-9)
    assert gains[0.98] > 1e-3
    assert gains[1.02] > 1e-3


class Constant(nn.Module):
    """Every row gets the same output."""

    def __init__(self, values: list[float]) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.tensor(values))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.values.expand(len(x), -1)


def by_hand(likelihood, preprocess=None) -> VAEModule:
    """mu = (0, 0) whatever z is."""
    return VAEModule(
        encoder=Constant([0.0, 0.0]),
        decoder=Constant([0.0, 0.0]),
        likelihood=likelihood,
        latent_dim=1,
        preprocess=preprocess,
    )


X = torch.tensor([[3.0, 0.4], [-3.0, -0.4], [1.0, 0.0], [-1.0, 0.0]])  # mean squares 5 and 0.08


def test_effective_beta_by_hand():
    found = decoder_calibration(by_hand(Normal(scale=1.0)), X, X)
    assert found.sigma_optimal == pytest.approx(math.sqrt(2.54))
    # SSE / 2 + w KL = 2.54 (SSE / (2 2.54) + w / 2.54 KL)
    assert found.effective_beta(0.5) == pytest.approx(0.5 / 2.54)
    tight = decoder_calibration(by_hand(Normal(scale=10.0)), X, X)
    assert tight.effective_beta() == pytest.approx(100 / 2.54)  # a sigma too large is a beta too large
    assert decoder_calibration(by_hand(tight.calibrated), X, X).effective_beta() == pytest.approx(1)


def test_each_column_gets_its_own_sigma_and_keeps_its_floor():
    likelihood = Normal(scale="column", n_columns=2, floor=[1e-3, 0.5])
    likelihood.log_scale.data = torch.tensor([1.0, 2.0]).log()
    found = decoder_calibration(by_hand(likelihood), X, X)
    assert found.columns_used == pytest.approx([math.sqrt(1 + 1e-6), math.sqrt(4.25)])
    assert found.columns_optimal == pytest.approx([math.sqrt(5), 0.5])  # sqrt(0.08) is below the floor
    again = decoder_calibration(by_hand(found.calibrated), X, X)
    assert again.columns_used == pytest.approx(found.columns_optimal)
    assert again.gain.value == pytest.approx(0, abs=1e-5)
    config = found.calibrated.config()
    assert config["args"]["scale"] == "column"


def test_masked_entries_and_weights_count_as_they_should():
    batch = Batch(
        torch.tensor([[3.0, math.nan], [1.0, 1.0]]),
        mask=torch.tensor([[True, False], [True, True]]),
        weight=torch.tensor([1.0, 2.0]),
    )
    found = decoder_calibration(by_hand(Normal(scale=1.0)), batch, batch)
    assert found.sigma_optimal == pytest.approx(math.sqrt((9 + 2 * 2) / 5))
    assert math.isfinite(found.gain.value)


def test_sigma_is_in_the_model_s_units_and_the_gain_in_any():
    scaled = 10 * X
    preprocess = Standardise(2)
    preprocess.scale.fill_(10.0)
    vae = by_hand(Normal(scale=1.0), preprocess)
    found, plain = decoder_calibration(vae, scaled, scaled), decoder_calibration(by_hand(Normal(scale=1.0)), X, X)
    assert found.sigma_optimal == pytest.approx(plain.sigma_optimal)
    assert found.gain.value == pytest.approx(plain.gain.value, abs=1e-5)


def test_optimal_and_learned_scales_are_read_as_they_are_used():
    vae = by_hand(Normal(scale="optimal"))
    with pytest.raises(CapabilityError, match="no sigma yet"):
        decoder_calibration(vae, X, X)
    vae.likelihood.freeze_scale(X, torch.zeros_like(X))
    assert decoder_calibration(vae, X, X).gain.value == pytest.approx(0, abs=1e-5)
    assert decoder_calibration(by_hand(Normal()), X, X).sigma_used == pytest.approx(1, abs=1e-5)


def test_what_has_no_such_scale_gives_none():
    assert decoder_calibration(by_hand(Bernoulli()), X.clamp(0, 1), X.clamp(0, 1)) is None
    assert decoder_calibration(by_hand(Normal(scale="row")), X, X) is None
    with pytest.raises(InputError, match="n_draws"):
        decoder_calibration(by_hand(Normal()), X, X, n_draws=0)


def test_the_error_follows_the_groups():
    grouped = decoder_calibration(by_hand(Normal(scale=5.0)), X, X.repeat(3, 1), groups=np.tile(np.arange(4), 3))
    once = decoder_calibration(by_hand(Normal(scale=5.0)), X, X)
    assert isinstance(once, Calibration)
    assert grouped.gain.std_error == pytest.approx(once.gain.std_error, rel=1e-4)


def test_an_encoder_s_fault_is_not_sigma_s_where_a_proposal_stands_in_for_it(exact_vae):
    vae, x = exact_vae(TRUTH, std_factor=4.0), rows(600, 1)
    vae.likelihood = Normal(scale=0.5).double()
    assert decoder_calibration(vae, x, x).sigma_optimal > 0.6
    proposal = fit_proposal(vae, x)
    assert decoder_calibration(vae, x, x, proposal=proposal).sigma_optimal == pytest.approx(0.5, rel=0.06)
