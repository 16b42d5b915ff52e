"""What several models' weights say together, against what each says alone and against repetition."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from latentfit.data.synthetic import LinearGaussian
from latentfit.evaluation import fit_proposal, log_likelihood, pareto_k
from latentfit.evaluation.pooling import OverModels, PooledWeights


def pooled(*models: torch.Tensor) -> PooledWeights:
    pool = PooledWeights()
    for log_w in models:
        pool.add(log_w)
    return pool


def log_weights(n: int, rows: int, spread: float, seed: int) -> torch.Tensor:
    """Log-normal weights of mean 1."""
    g = torch.Generator().manual_seed(seed)
    return spread * torch.randn(n, rows, generator=g, dtype=torch.float64) - spread**2 / 2


def test_one_model_is_pooled_as_ever():
    log_w = log_weights(400, 50, 1.0, 0)
    pool = pooled(log_w)
    w = log_w.exp()
    torch.testing.assert_close(pool.values, w.mean(0).log())
    torch.testing.assert_close(pool.effective_sample_size, w.sum(0) ** 2 / w.square().sum(0))
    torch.testing.assert_close(pool.std_error, w.std(0) / w.mean(0) / math.sqrt(400))
    torch.testing.assert_close(pool.pareto_k, pareto_k(log_w))


def test_models_that_differ_make_no_error_and_no_tail():
    # each is known to the last digit, and they are 30 nats apart
    parts = [torch.full((100, 4), level, dtype=torch.float64) for level in (-10.0, -25.0, -40.0)]
    pool = pooled(*parts)
    torch.testing.assert_close(pool.values, torch.stack([part[0] for part in parts]).logsumexp(0) - math.log(3))
    assert pool.std_error.max() < 1e-6
    assert pool.pareto_k.max() < 0.1
    assert pool.doubling.abs().max() < 1e-12


@pytest.mark.parametrize(("spread", "low", "high"), [(0.5, 0.0, 0.01), (3.0, 0.95, 1.0)])
def test_the_tail_is_that_of_the_models_whatever_they_differ_by(spread, low, high):
    parts = [log_weights(400, 200, spread, seed) - level for seed, level in enumerate((0.0, 0.5, 1.5, 30.0))]
    assert low <= float((pooled(*parts).pareto_k > 0.7).double().mean()) <= high


def test_a_model_counts_by_what_it_adds():
    good, failed = log_weights(400, 40, 0.3, 0), log_weights(400, 40, 4.0, 9)
    assert float((pooled(good, failed - 15).pareto_k > 0.7).double().mean()) == 0
    assert float((pooled(good, failed + 15).pareto_k > 0.7).double().mean()) > 0.9


def test_the_error_is_that_over_repetitions():
    levels = torch.tensor([0.0, -0.5, -2.0], dtype=torch.float64)
    pool = pooled(*(log_weights(200, 4000, 0.5, 20 + i) + level for i, level in enumerate(levels)))
    assert abs(float(pool.values.std() / pool.std_error.mean()) - 1) < 0.05


@pytest.mark.parametrize("n", [1, 2, 7])
def test_few_draws_are_no_failure(n):
    pool = pooled(log_weights(n, 3, 0.5, 0), log_weights(n, 3, 0.5, 1))
    assert bool(pool.values.isfinite().all())
    assert bool(pool.std_error.isnan().all()) == (n == 1)
    assert bool(pool.doubling.isnan().all()) == (n == 1)
    assert bool(pool.pareto_k.isnan().all())


def test_a_row_that_no_model_explains_has_no_probability():
    pool = pooled(torch.full((50, 2), -math.inf, dtype=torch.float64), torch.full((50, 2), -math.inf).double())
    assert bool((pool.values == -math.inf).all())
    assert bool(pool.pareto_k.isnan().all())  # unreliable


def test_a_model_without_probability_leaves_the_others_as_they_are():
    known = log_weights(100, 5, 0.5, 0)
    pool = pooled(known, torch.full((100, 5), -math.inf, dtype=torch.float64))
    torch.testing.assert_close(pool.values, pooled(known).values - math.log(2))
    torch.testing.assert_close(pool.pareto_k, pareto_k(known))


def test_the_jackknife_knows_bias_and_error_over_draws_of_the_weights():
    # log p(x given w) = a(x) + b(x) w with w ~ N(0, 1): log E_w p = a + b^2 / 2
    rng = np.random.default_rng(0)
    b = rng.uniform(0.2, 0.6, 30)
    found = [OverModels.of(rng.standard_normal((10, 1)) * b) for _ in range(2000)]
    rng = np.random.default_rng(0)
    rng.uniform(0.2, 0.6, 30)
    means = []
    for _ in range(2000):
        log_p = rng.standard_normal((10, 1)) * b
        means.append((np.logaddexp.reduce(log_p, 0) - math.log(10)).mean())
    bias = np.mean(means) - (b**2 / 2).mean()
    assert bias < 0  # Jensen
    assert abs(np.mean([f.bias for f in found]) / bias - 1) < 0.25
    assert abs(np.sqrt(np.mean([f.std_error**2 for f in found])) / np.std(means) - 1) < 0.1


def test_equal_models_have_neither_bias_nor_error():
    found = OverModels.of(np.tile(np.array([-3.0, -4.0, -9.0]), (5, 1)))
    assert abs(found.bias) < 1e-12
    assert found.std_error < 1e-12
    np.testing.assert_allclose(found.effective, 5)


def test_draws_that_differ_by_many_nats_are_one_effective_draw():
    found = OverModels.of(np.array([[0.0], [-50.0], [-90.0]]))
    np.testing.assert_allclose(found.effective, 1)
    assert "3 models, 1.0 effective" in str(found)


def test_the_rows_weights_count_in_the_error_over_draws():
    log_p = np.array([[0.0, -1.0], [0.0, -5.0]])
    assert OverModels.of(log_p, np.array([1.0, 0.0])).std_error < 1e-12
    assert OverModels.of(log_p, np.array([0.0, 1.0])).std_error > 0.5


def test_log_likelihood_says_what_its_models_leave_open(exact_vae):
    truths = [LinearGaussian(6, 3, noise=noise) for noise in (0.5, 0.6, 0.8)]
    rows, train = truths[0].sample(40, 1)[0], truths[0].sample(300, 2)[0]
    models = [exact_vae(truth) for truth in truths]
    proposals = [fit_proposal(model, train, max_steps=100) for model in models]
    got = log_likelihood(models, rows, proposal=proposals, n_importance_samples=400)
    exact = OverModels.of(torch.stack([truth.log_prob(rows) for truth in truths]).numpy())
    assert got.over_models is not None
    np.testing.assert_allclose(got.over_models.effective, exact.effective, rtol=0.05)
    assert got.over_models.bias == pytest.approx(exact.bias, rel=0.1)
    assert got.over_models.std_error == pytest.approx(exact.std_error, rel=0.1)
    assert "3 models" in str(got)
    one = log_likelihood(models[0], rows, proposal=proposals[0], n_importance_samples=50)
    assert one.over_models is None
    assert "models" not in str(one)
