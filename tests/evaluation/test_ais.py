"""Annealing against closed forms and quadrature: what it finds, what it cannot, and what brackets it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from latentfit.data.batch import Batch
from latentfit.data.synthetic import LinearGaussian
from latentfit.errors import CapabilityError, InputError, ReliabilityWarning
from latentfit.evaluation import ais_log_likelihood, bdmc, encoder_proposal, log_likelihood
from latentfit.evaluation.annealing import PILOT_CHAINS, Annealer, temperatures
from latentfit.evaluation.codes import encode_rows
from latentfit.evaluation.escalation import GATE_SHARE
from latentfit.evaluation.rows import RowNoise
from latentfit.likelihoods import Normal
from latentfit.model.vae import VAEModule
from latentfit.priors import EmpiricalPrior, StandardNormalPrior


class Square(nn.Module):
    """z -> z^2, which leaves the sign of z open."""

    def forward(self, z: Tensor) -> Tensor:
        return z.square()


class Root(nn.Module):
    """x -> [sqrt(x), log 0.04]: an encoder that knows the positive mode only."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.clamp_min(0.01).sqrt()
        return torch.cat([mean, torch.full_like(mean, math.log(0.04))], -1)


class Counting(StandardNormalPrior):
    """N(0, I) that counts the latents it scores."""

    scored = 0

    def log_prob(self, z, context=None):
        self.scored += z.shape[:-1].numel()
        return super().log_prob(z, context)


class NoisyPrior(StandardNormalPrior):
    density = "unbiased"


def two_modes(noise: float) -> tuple[VAEModule, Tensor, np.ndarray]:
    """A VAE whose posteriors have modes at +- sqrt(x), rows near 1, and their log p(x) by quadrature."""
    vae = VAEModule(encoder=Root(), decoder=Square(), likelihood=Normal(scale=noise), latent_dim=1).double()
    x = torch.linspace(0.8, 1.2, 16, dtype=torch.float64).unsqueeze(1)
    return vae, x, quadrature(x, noise)


def quadrature(x: Tensor, noise: float) -> np.ndarray:
    z = torch.linspace(-8, 8, 20_001, dtype=torch.float64)
    log_p = -0.5 * ((x - z.square()) / noise).square() - math.log(noise) - 0.5 * z.square() - math.log(2 * math.pi)
    return (log_p.logsumexp(1) + math.log(16 / 20_000)).numpy()


@pytest.fixture(scope="module")
def truth():
    return LinearGaussian(data_dim=6, latent_dim=3)


@pytest.fixture(scope="module")
def rows(truth):
    return truth.sample(24, random_state=2)[0]


def assert_exact(result, exact: np.ndarray) -> None:
    """Within 4 of its own standard errors, or 0.02 nats where they are smaller, in the mean; unbiased weights."""
    error = result.values - exact
    of_mean = np.sqrt(np.square(result.std_error).sum()) / len(exact)
    assert abs(error.mean()) < max(4 * of_mean, 0.02)
    assert np.sqrt(np.mean(np.square(error / result.std_error))) < 1.6


def test_it_is_the_closed_form_from_the_refined_proposal(exact_vae):
    truth = LinearGaussian(data_dim=12, latent_dim=8)
    x = truth.sample(16, 2)[0]
    result = ais_log_likelihood(exact_vae(truth), x, n_temperatures=40, n_chains=8)
    assert np.abs(result.values - truth.log_prob(x).numpy()).max() < 0.1
    assert abs(result.values.mean() - truth.log_prob(x).mean().item()) < 0.02
    assert result.effective_sample_size.min() > 4
    assert 0.7 < result.acceptance.mean() < 0.95
    assert result.unreliable == 0


@pytest.mark.parametrize(("std_factor", "shift"), [(10**-0.5, 0.0), (1.0, 2.0)], ids=["too narrow", "displaced"])
def test_it_is_the_closed_form_from_a_poor_proposal(exact_vae, truth, rows, std_factor, shift):
    vae = exact_vae(truth, std_factor)
    with torch.no_grad():  # in standard deviations of the optimal diagonal posterior
        vae.encoder.bias[0] += shift * truth.optimal_variance[0].sqrt()
    result = ais_log_likelihood(vae, rows, refinement_steps=0, n_temperatures=200)
    assert_exact(result, truth.log_prob(rows).numpy())


def test_one_temperature_is_importance_sampling_by_the_narrow_component(exact_vae, truth, rows):
    vae = exact_vae(truth)
    result = ais_log_likelihood(vae, rows[:5], n_temperatures=1, n_chains=1000, refinement_steps=0)
    q = vae.encode(rows[:5])
    z, log_q = q.rsample_with_log_prob(20_000, torch.Generator().manual_seed(0))
    log_w = vae.log_likelihood(rows[:5], z) + vae.prior.log_prob(z) - log_q
    other = (log_w.logsumexp(0) - math.log(20_000)).detach().numpy()
    assert np.abs(result.values - other).max() < 4 * np.nanmax(result.std_error) + 0.05
    assert np.isnan(result.acceptance).all()


@pytest.mark.filterwarnings("ignore::latentfit.errors.ReliabilityWarning")
def test_more_temperatures_raise_a_lower_bound(exact_vae, truth, rows):
    exact = truth.log_prob(rows).numpy()
    vae = exact_vae(truth, 10**-0.5)
    loss = []
    for n in (3, 15, 75):
        result = ais_log_likelihood(vae, rows, n_temperatures=n, refinement_steps=0, n_chains=4)
        loss.append(float(exact.mean() - result.values.mean()))
    assert loss[0] > 1.5 * loss[1] > 3 * loss[2] > -0.05


def test_too_few_temperatures_are_said_to_be_too_few(exact_vae, truth, rows):
    with pytest.warns(ReliabilityWarning, match=r"one chain carries the weight.*more n_temperatures"):
        ais_log_likelihood(exact_vae(truth, 0.1), rows, n_temperatures=3, refinement_steps=0)


def test_a_second_mode_that_importance_sampling_misses_is_found_across_a_shallow_valley():
    vae, x, exact = two_modes(0.5)
    with pytest.warns(ReliabilityWarning):
        sampled = log_likelihood(vae, x, n_importance_samples=1000)
    annealed = ais_log_likelihood(vae, x)
    assert sampled.unreliable > GATE_SHARE  # so its answer is not taken
    assert (sampled.values - exact).mean() < -0.1
    assert_exact(annealed, exact)


def test_a_mode_behind_a_deep_valley_is_missed_and_only_the_bracket_shows_it():
    vae, x, exact = two_modes(0.15)
    annealed = ais_log_likelihood(vae, x, n_temperatures=50)
    np.testing.assert_allclose(annealed.values - exact, -math.log(2), atol=0.15)
    assert annealed.effective_sample_size.min() > 10  # nothing looks wrong from inside
    bracket = bdmc(vae, n_rows=40, n_temperatures=50)
    assert bracket.gap.value > math.log(2)


def test_bidirectional_bounds_enclose_the_truth_and_close(exact_vae, truth):
    vae = exact_vae(truth, 10**-0.5)
    gaps = []
    for n in (3, 12, 48):
        result = bdmc(vae, n_rows=200, n_chains=4, n_temperatures=n, refinement_steps=0)
        exact = float(truth.log_prob(result.simulated).mean())
        assert result.lower.value <= exact <= result.upper.value
        assert result.gap.value == pytest.approx(result.upper.value - result.lower.value)
        assert result.gap.value > 4 * result.gap.std_error
        gaps.append(result.gap.value)
    assert gaps[0] > 2 * gaps[1] > 4 * gaps[2]


def test_the_bracket_is_tight_around_refined_proposals(exact_vae, truth):
    result = bdmc(exact_vae(truth, 10**-0.5), n_rows=30, n_chains=4, n_temperatures=30)
    exact = truth.log_prob(result.simulated).numpy()
    assert abs(result.gap.value) < 0.05
    assert abs((result.lower_values - exact).mean()) < 0.05


def test_simulated_rows_come_from_the_model(exact_vae, truth):
    x = bdmc(exact_vae(truth), n_rows=4000, n_chains=1, n_temperatures=1, refinement_steps=0).simulated
    error = (truth.covariance.diagonal() / 4000).sqrt()
    assert bool(((x.mean(0) - truth.bias).abs() < 4 * error).all())
    torch.testing.assert_close(x.T.cov(), truth.covariance, atol=0.5, rtol=0.1)


@pytest.mark.filterwarnings("ignore::latentfit.errors.ReliabilityWarning")
def test_the_number_of_draws_is_honoured(exact_vae, truth, rows):
    vae = exact_vae(truth)
    vae.prior = Counting(3).double()
    ais_log_likelihood(vae, rows[:7], n_chains=5, n_temperatures=6, n_leapfrog=3, refinement_steps=0)
    assert vae.prior.scored == 7 * (5 + PILOT_CHAINS) * (1 + 5 * 3)


def test_transitions_leave_every_temperature_in_place(exact_vae, truth):
    """Started from f_b, whose moments are known here, the chains keep them at a step size that rejects."""
    vae = exact_vae(truth)
    x = truth.sample(1, 3)[0]
    codes = encode_rows(vae, x)
    annealer = Annealer(vae, Batch(x), encoder_proposal(vae).frame(codes), n_leapfrog=2)
    b, n = 0.6, 40_000
    std = codes.std[0]
    mean, cov = truth.posterior(x[0])
    target = torch.linalg.inv(cov) * torch.outer(std, std)  # precision of the posterior in units of u
    precision = (1 - b) * torch.eye(3, dtype=torch.float64) + b * target
    centre = torch.linalg.solve(precision, b * target @ ((mean - codes.mean[0]) / std))
    factor = torch.linalg.cholesky(torch.linalg.inv(precision))
    noise = RowNoise(1, 0).draw(slice(0, 1), n, (8,), centre)
    u = centre + noise[..., :3] @ factor.T
    log_size = torch.tensor([math.log(0.9)])
    with torch.no_grad():
        moved, _, _, acceptance = annealer._transition(u, *annealer.joint(u), b, log_size, noise[..., 3:])
    assert 0.2 < float(acceptance) < 0.9
    assert float((moved - u).abs().mean()) > 0.2
    whitened = torch.linalg.solve_triangular(factor, (moved[0] - centre).T, upper=False)
    assert float(whitened.mean(1).abs().max()) < 4 / math.sqrt(n)
    torch.testing.assert_close(whitened.cov(), torch.eye(3, dtype=torch.float64), atol=6 / math.sqrt(n), rtol=0)


def test_whitening_undoes_the_placement(exact_vae, truth, rows):
    vae = exact_vae(truth)
    proposal = encoder_proposal(vae)
    for parameter in proposal.parameters():
        parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    annealer = Annealer(vae, Batch(rows), proposal.frame(encode_rows(vae, rows)), 1)
    u = RowNoise(len(rows), 0).draw(slice(0, len(rows)), 1, (3,), rows)
    torch.testing.assert_close(annealer.whiten(annealer.frame.place(u)[:, 0]), u[:, 0])


def test_temperatures_rise_from_zero_to_one_and_are_closest_at_the_ends():
    betas = temperatures(50)
    steps = np.diff(betas)
    assert betas[0] == 0
    assert betas[-1] == 1
    assert (steps > 0).all()
    assert steps.argmin() in (0, 49)
    np.testing.assert_allclose(steps, steps[::-1])


@pytest.mark.filterwarnings("ignore::latentfit.errors.ReliabilityWarning")
def test_a_row_keeps_its_noise_whatever_other_rows_there_are(exact_vae, truth, rows):
    vae = exact_vae(truth)
    with torch.no_grad():  # at the optimum the refinement would follow rounding errors
        vae.encoder.bias.add_(0.2)
    settings = {"n_temperatures": 10, "n_chains": 4, "refinement_steps": 10, "random_state": 3}
    few, many = (ais_log_likelihood(vae, rows[:n], **settings) for n in (3, 20))
    np.testing.assert_allclose(few.values, many.values[:3], atol=1e-9)
    again = ais_log_likelihood(vae, rows[:3], **settings)
    np.testing.assert_array_equal(few.values, again.values)
    other = ais_log_likelihood(vae, rows[:3], **settings | {"random_state": 4})
    assert np.abs(few.values - other.values).max() > 1e-6


@pytest.mark.filterwarnings("ignore::latentfit.errors.ReliabilityWarning")
def test_the_model_and_the_random_state_are_left_alone(exact_vae, truth, rows):
    vae = exact_vae(truth)
    vae.train()
    vae.decoder.bias.requires_grad_(False)
    before = {key: value.clone() for key, value in vae.state_dict().items()}
    flags = [(p.requires_grad, p.grad) for p in vae.parameters()]
    state = torch.get_rng_state()
    ais_log_likelihood(vae, rows[:3], n_temperatures=4, n_chains=2, refinement_steps=5)
    bdmc(vae, n_rows=3, n_temperatures=4, n_chains=2, refinement_steps=5)
    assert torch.equal(state, torch.get_rng_state())
    assert vae.training
    assert flags == [(p.requires_grad, p.grad) for p in vae.parameters()]
    assert all(torch.equal(before[key], value) for key, value in vae.state_dict().items())


def test_progress_ends_at_the_end(exact_vae, truth, rows):
    seen: list[tuple[int, int]] = []
    bdmc(exact_vae(truth), n_rows=3, n_temperatures=4, refinement_steps=0, progress=lambda *step: seen.append(step))
    assert seen == [(i, 12) for i in range(1, 13)]


def test_a_density_that_cannot_be_walked_on_is_refused(exact_vae, truth, rows):
    vae = exact_vae(truth)
    vae.prior = NoisyPrior(3)
    with pytest.raises(CapabilityError, match="exactly at every z"):
        ais_log_likelihood(vae, rows[:3])
    vae.prior = EmpiricalPrior(3, lambda n, generator=None: torch.zeros(n, 3))
    with pytest.raises(CapabilityError, match="only samples"):
        bdmc(vae)


class Detached(nn.Module):
    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, z: Tensor) -> Tensor:
        return self.decoder(z.detach())


class FlatPrior(StandardNormalPrior):
    def log_prob(self, z, context=None):
        return super().log_prob(z.detach(), context)


def test_a_model_without_a_gradient_is_refused(exact_vae, truth, rows):
    vae = exact_vae(truth)
    vae.decoder, vae.prior = Detached(vae.decoder), FlatPrior(3)
    with pytest.raises(CapabilityError, match="gradient"):
        ais_log_likelihood(vae, rows[:3], refinement_steps=0)


@pytest.mark.parametrize("name", ["n_chains", "n_temperatures", "n_leapfrog"])
def test_counts_below_one_are_refused(exact_vae, truth, rows, name):
    with pytest.raises(InputError, match=f"{name} must be at least 1"):
        ais_log_likelihood(exact_vae(truth), rows, **{name: 0})


def test_what_cannot_be_simulated_is_refused(exact_vae, truth):
    with pytest.raises(InputError, match="n_rows"):
        bdmc(exact_vae(truth), n_rows=0)
    with pytest.raises(InputError, match="context has 4 rows"):
        bdmc(exact_vae(truth), n_rows=5, context=torch.zeros(4, 1))
