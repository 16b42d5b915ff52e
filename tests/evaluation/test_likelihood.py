"""log p(x) against the closed form, and the promises about draws, noise and combination."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from latentfit.data.synthetic import LinearGaussian
from latentfit.errors import CapabilityError, InputError, ReliabilityWarning
from latentfit.evaluation import encoder_proposal, fit_proposal, log_likelihood
from latentfit.posteriors import DiagonalGaussian, DiagonalPosterior
from latentfit.priors import EmpiricalPrior, StandardNormalPrior


@pytest.fixture(scope="module")
def truth():
    return LinearGaussian(data_dim=6, latent_dim=3)


@pytest.fixture(scope="module")
def rows(truth):
    return truth.sample(300, random_state=1)[0]


@pytest.fixture(scope="module")
def fitted(exact_vae, truth, rows):
    vae = exact_vae(truth)
    return vae, fit_proposal(vae, rows, max_steps=200)


class Counting(StandardNormalPrior):
    """N(0, I) that counts the latents it scores."""

    scored = 0

    def log_prob(self, z, context=None):
        self.scored += z.shape[:-1].numel()
        return super().log_prob(z, context)


@pytest.mark.parametrize("std_factor", [1.0, 10**-0.5, 1e-4])
def test_log_likelihood_is_the_closed_form_however_narrow_the_encoder(exact_vae, std_factor):
    truth = LinearGaussian(data_dim=24, latent_dim=16)
    train, test = truth.sample(1500, 1)[0], truth.sample(100, 2)[0]
    vae = exact_vae(truth, std_factor)
    result = log_likelihood(vae, test, X_train=train, n_importance_samples=300)
    exact = truth.log_prob(test).numpy()
    assert np.abs(result.values - exact).max() < 0.05
    assert abs(result.values.mean() - exact.mean()) < 0.005
    assert result.unreliable == 0
    assert result.doubling >= 0


class Deterministic(DiagonalPosterior):
    """All mass at the mean: an autoencoder's code."""

    def forward(self, parameters, batch=None):
        q = super().forward(parameters, batch)
        return DiagonalGaussian(q.mean, torch.zeros_like(q.std))


def test_a_deterministic_encoder_gets_a_scale_of_its_own(exact_vae, truth, rows):
    vae = exact_vae(truth)
    vae.posterior = Deterministic(3)
    proposal = fit_proposal(vae, rows)
    assert bool(proposal.fixed_scale.isfinite().all())
    result = log_likelihood(vae, rows[:50], proposal=proposal, n_importance_samples=500)
    assert np.abs(result.values - truth.log_prob(rows[:50]).numpy()).max() < 0.05


@pytest.mark.filterwarnings("ignore::latentfit.errors.ReliabilityWarning")
def test_without_training_rows_the_widened_encoder_serves_and_its_errors_are_those_made(exact_vae):
    truth = LinearGaussian(data_dim=4, latent_dim=1)
    x = truth.sample(200, 1)[0]
    result = log_likelihood(exact_vae(truth, 0.8), x, n_importance_samples=2000)
    error = result.values - truth.log_prob(x).numpy()
    assert np.abs(error).max() < 0.1
    assert 0.8 < np.sqrt(np.mean((error / result.std_error) ** 2)) < 1.25


def test_effective_sample_sizes_lie_between_one_and_the_number_of_draws(exact_vae, truth, rows):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ReliabilityWarning)
        result = log_likelihood(exact_vae(truth, 0.1), rows[:40], n_importance_samples=64)
    assert result.effective_sample_size.min() >= 1 - 1e-9
    assert result.effective_sample_size.max() <= 64 + 1e-9


@pytest.mark.parametrize("n", [1, 7, 100, 333])
def test_sample_counts_are_honoured_exactly(exact_vae, truth, rows, n):
    vae = exact_vae(truth)
    vae.prior = Counting(3).double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ReliabilityWarning)
        result = log_likelihood(vae, rows[:11], n_importance_samples=n, batch_size=50, refinement_steps=0)
    assert vae.prior.scored == 11 * n
    assert result.n_importance_samples == n


@pytest.mark.filterwarnings("ignore::latentfit.errors.ReliabilityWarning")
@pytest.mark.parametrize("batch_size", [1, 17, 64, 100_000])
def test_the_result_does_not_depend_on_the_memory_used(fitted, rows, batch_size):
    vae, proposal = fitted
    expected = log_likelihood(vae, rows[:13], proposal=proposal, n_importance_samples=60)
    got = log_likelihood(vae, rows[:13], proposal=proposal, n_importance_samples=60, batch_size=batch_size)
    np.testing.assert_allclose(got.values, expected.values, atol=1e-10)
    np.testing.assert_allclose(got.pareto_k, expected.pareto_k, atol=1e-6)


@pytest.mark.filterwarnings("ignore::latentfit.errors.ReliabilityWarning")
def test_a_row_keeps_its_noise_whatever_other_rows_there_are(fitted, rows):
    vae, proposal = fitted
    few = log_likelihood(vae, rows[:5], proposal=proposal, n_importance_samples=50, random_state=3)
    many = log_likelihood(vae, rows[:40], proposal=proposal, n_importance_samples=50, random_state=3)
    np.testing.assert_allclose(few.values, many.values[:5], atol=1e-10)
    other = log_likelihood(vae, rows[:5], proposal=proposal, n_importance_samples=50, random_state=4)
    assert np.abs(few.values - other.values).max() > 1e-6


@pytest.mark.filterwarnings("ignore::latentfit.errors.ReliabilityWarning")
def test_models_see_common_random_numbers(exact_vae, truth, rows):
    # two models that differ by a constant in log p(x|z) differ by that constant, draw by draw
    vae, other = exact_vae(truth), exact_vae(truth)
    other.prior.log_prob = lambda z, context=None: StandardNormalPrior(3).log_prob(z) - 1.25
    e = encoder_proposal(vae)
    a = log_likelihood(vae, rows[:30], proposal=e, n_importance_samples=100)
    b = log_likelihood(other, rows[:30], proposal=e, n_importance_samples=100)
    np.testing.assert_allclose(a.values - b.values, 1.25, atol=1e-10)


def test_several_models_combine_by_log_sum_exp(exact_vae, truth, rows):
    other_truth = LinearGaussian(data_dim=6, latent_dim=3, noise=0.8, random_state=5)
    models = [exact_vae(truth), exact_vae(other_truth)]
    result = log_likelihood(models, rows[:40], X_train=rows, n_importance_samples=400)
    exact = torch.logaddexp(truth.log_prob(rows[:40]), other_truth.log_prob(rows[:40])) - np.log(2)
    assert np.abs(result.values - exact.numpy()).max() < 0.05
    assert result.n_models == 2


def test_priors_without_an_exact_density_are_refused_in_one_line(exact_vae, truth, rows):
    vae = exact_vae(truth)
    vae.prior = EmpiricalPrior(3, lambda n, generator=None: torch.zeros(n, 3))
    with pytest.raises(CapabilityError, match="only samples") as error:
        log_likelihood(vae, rows)
    assert "\n" not in str(error.value)


def test_unreliable_rows_are_warned_of(exact_vae, truth, rows):
    with pytest.warns(ReliabilityWarning, match=r"unreliable for \d+% of rows \(Pareto-k > 0.7\)"):
        result = log_likelihood(exact_vae(truth, 0.02), rows[:30], n_importance_samples=200, refinement_steps=0)
    assert result.unreliable > 0.5


def test_nothing_of_the_model_or_the_random_state_changes(exact_vae, truth, rows):
    vae = exact_vae(truth).train()
    before = {key: value.clone() for key, value in vae.state_dict().items()}
    torch.manual_seed(0)
    state = torch.get_rng_state()
    log_likelihood(vae, rows[:20], X_train=rows, n_importance_samples=50)
    assert torch.equal(torch.get_rng_state(), state)
    assert vae.training
    assert vae.decoder.training
    assert all(p.requires_grad and p.grad is None for p in vae.parameters())
    assert all(torch.equal(value, before[key]) for key, value in vae.state_dict().items())


def test_progress_ends_with_all_rows_of_all_models(exact_vae, truth, rows):
    told: list[tuple[str, int, int]] = []
    models = [exact_vae(truth), exact_vae(truth)]
    log_likelihood(models, rows, n_importance_samples=100, progress=lambda *step: told.append(step))
    assert told[-1] == ("log p(x)", 2 * len(rows), 2 * len(rows))
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)


def test_counts_that_make_no_sense_are_refused(exact_vae, truth, rows):
    vae = exact_vae(truth)
    with pytest.raises(InputError, match="n_importance_samples"):
        log_likelihood(vae, rows, n_importance_samples=0)
    with pytest.raises(InputError, match="as many proposals"):
        log_likelihood([vae, exact_vae(truth)], rows, proposal=encoder_proposal(vae))
    with pytest.raises(InputError, match="at least 8"):
        fit_proposal(vae, rows[:4])


def test_refinement_mends_an_encoder_that_misplaces_rows(exact_vae, truth, rows):
    """Shifted encodings: the shared proposal is far off in each row; refined, the closed form is met again."""
    vae = exact_vae(truth)
    shift = torch.randn(11, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    encode = vae.encode

    def misplaced(batch):
        q = encode(batch)
        return type(q)(q.mean + 2 * shift[: len(q.mean)] * q.std, q.std)

    vae.encode = misplaced
    exact = truth.log_prob(rows[:11])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ReliabilityWarning)
        shared = log_likelihood(vae, rows[:11], n_importance_samples=200, refinement_steps=0)
        refined = log_likelihood(vae, rows[:11], n_importance_samples=200)
    assert np.abs(shared.values - exact.numpy()).max() > 0.2
    error = np.abs(refined.values - exact.numpy())
    assert (error < 4 * refined.std_error + 0.02).all()
    assert np.median(error) < 0.05
    assert np.median(refined.effective_sample_size) > 150
