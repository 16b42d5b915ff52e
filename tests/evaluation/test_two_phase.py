"""Annealing a few rows corrects the mean of all, where importance weights fail."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from latentfit.data.synthetic import LinearGaussian
from latentfit.evaluation import annealed_where_needed, encoder_proposal, log_likelihood
from latentfit.priors import StandardNormalPrior


@pytest.fixture(scope="module")
def truth():
    return LinearGaussian(data_dim=6, latent_dim=3)


@pytest.fixture(scope="module")
def failed(exact_vae, truth):
    """A VAE whose encoder is four times too narrow, 300 rows, and their poor scores."""
    vae, rows = exact_vae(truth, 0.25), truth.sample(300, random_state=2)[0]
    poor = encoder_proposal(vae)
    with pytest.warns(match="unreliable"):
        scored = log_likelihood(vae, rows, n_importance_samples=64, proposal=poor, refinement_steps=0)
    return vae, rows, poor, scored


def test_the_mean_is_that_of_the_truth_where_weights_failed(failed, truth):
    vae, rows, poor, scored = failed
    exact = truth.log_prob(rows).numpy()
    before = (scored.values - exact).mean()
    assert before < -0.1
    got = annealed_where_needed(vae, rows, scored, proposal=poor)
    assert got.n_annealed == 64
    spread = (got.values - exact).std(ddof=1) / np.sqrt(len(exact))
    assert abs((got.values - exact).mean()) < 3 * spread < abs(before)
    assert got.unreliable < 0.1


def test_the_mean_moves_by_the_mean_difference_and_the_error_covers_the_choice_of_rows(failed):
    vae, rows, poor, scored = failed
    got = [annealed_where_needed(vae, rows, scored, proposal=poor, n_rows=30, random_state=s) for s in range(12)]
    for one in got:
        assert one.values.mean() - scored.values.mean() == pytest.approx(one.correction)
    means = np.array([one.values.mean() for one in got])
    # of the differences alone, as the same 300 rows are scored every time
    error = np.mean([np.var(one.values - scored.values, ddof=1) / len(one.values) for one in got])
    assert means.var(ddof=1) < 2.5 * error  # chi squared, 11 degrees of freedom: one run in 200 is above 2.4


def test_models_scored_with_one_seed_anneal_the_same_rows(failed):
    vae, rows, poor, scored = failed
    a, b = (annealed_where_needed(vae, rows, s, proposal=poor) for s in (scored, replace(scored)))
    np.testing.assert_array_equal(a.values, b.values)
    moved = np.flatnonzero(a.values != scored.values)
    assert set(moved) <= set(np.random.default_rng(0).permutation(300)[:64])


def test_weights_that_hold_and_priors_that_cannot_be_annealed_change_nothing(exact_vae, truth, failed):
    vae, rows, poor, scored = failed
    good = replace(
        scored, pareto_k=np.zeros(len(scored.values)), effective_sample_size=np.full(len(scored.values), 64.0)
    )
    assert annealed_where_needed(vae, rows, good, proposal=poor).values is good.values

    class Noisy(StandardNormalPrior):
        density = "unbiased"

    noisy = exact_vae(truth, 0.25)
    noisy.prior = Noisy(3)
    got = annealed_where_needed(noisy, rows, scored, proposal=poor)
    assert (got.n_annealed, got.unreliable) == (0, scored.unreliable)


def test_a_row_whose_weights_are_all_0_is_annealed_and_says_nothing_of_others(failed):
    vae, rows, poor, scored = failed
    values = scored.values.copy()
    values[7] = -np.inf
    got = annealed_where_needed(vae, rows, replace(scored, values=values), proposal=poor, n_rows=len(rows))
    assert np.isfinite(got.values).all()
    assert np.isfinite(got.correction)
