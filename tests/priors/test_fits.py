"""Fits against known answers and against scikit-learn."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentfit import priors
from latentfit.errors import CapabilityError, InputError
from latentfit.flows import coupling_flow
from latentfit.model.rows import CodeRows, FitOptions
from latentfit.priors import em, fitting
from latentfit.priors.em import candidates, features, fit_mixture, n_features, salience
from latentfit.priors.fitting import LEAST_GAIN, LEAST_SHARE, default_max_steps, fit_by_gradient, pass_lengths
from latentfit.priors.k_means import k_means
from latentfit.priors.moments import exact_moments


def ring(n, seed, radius=2.0, std=0.2):
    """Eight clusters on a ring: means, spreads, draws. The entropy of z is log 8 + log(2 pi e std^2)."""
    generator = torch.Generator().manual_seed(seed)
    angle = torch.randint(8, (n,), generator=generator) * math.pi / 4
    mean = radius * torch.stack((angle.cos(), angle.sin()), 1)
    spread = torch.full_like(mean, std)
    return mean, spread, mean + spread * torch.randn(n, 2, generator=generator)


TRUTH = -(math.log(8) + math.log(2 * math.pi * math.e * 0.2**2))


def held_out(prior, z):
    with torch.no_grad():
        return prior.log_prob(z).mean().item()


def test_exact_moments_are_those_of_endless_draws():
    """Within 5 standard errors of 200,000 draws; what the correlations are shrunk by is small at N = 500."""
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(500, 3, generator=generator) @ torch.randn(3, 3, generator=generator)
    std = torch.rand(500, 3, generator=generator)
    centre, covariance = exact_moments(CodeRows(mean, std))
    z = torch.cat([CodeRows(mean, std).draw(generator) for _ in range(400)]).double()
    variance = covariance.diagonal()
    assert ((z.mean(0) - centre).abs() < 5 * (variance / len(z)).sqrt()).all()
    torch.testing.assert_close(z.var(0), variance, rtol=0.02, atol=0)
    off = ~torch.eye(3, dtype=torch.bool)
    assert ((z.T.cov() - covariance)[off].abs() < 0.02 * covariance.diagonal().max()).all()


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_learned_gaussian_has_the_exact_moments(covariance):
    generator = torch.Generator().manual_seed(1)
    mean = torch.randn(400, 4, generator=generator) @ torch.randn(4, 4, generator=generator) + 3
    std = 0.1 + torch.rand(400, 4, generator=generator)
    prior = priors.create("learned_gaussian", latent_dim=4, covariance=covariance).fit(mean, std=std)
    centre, wanted = exact_moments(CodeRows(mean, std))
    torch.testing.assert_close(prior.mean.detach().double(), centre, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(prior.variance().detach().double(), wanted.diagonal(), rtol=1e-4, atol=1e-4)


def test_the_three_spreads_are_one():
    mean, std, z = ring(200, 0)
    fits = [
        priors.create("learned_gaussian", latent_dim=2).fit(mean, **spread)
        for spread in ({"std": std}, {"var": std.square()}, {"logvar": 2 * std.log()})
    ]
    for other in fits[1:]:
        assert held_out(fits[0], z) == pytest.approx(held_out(other, z), abs=1e-5)


def test_fewer_rows_than_dimensions_stay_proper():
    mean = torch.randn(5, 20, generator=torch.Generator().manual_seed(0))
    zero = torch.zeros_like(mean)
    for name in ("learned_gaussian", "mixture"):
        arguments = {"n_components": "auto"} if name == "mixture" else {}
        prior = priors.create(name, latent_dim=20, **arguments).fit(mean, std=zero)
        assert torch.isfinite(prior.log_prob(mean)).all()


def test_a_constant_dimension_stays_proper():
    mean, std, _ = ring(300, 0)
    mean, std = torch.cat((mean, torch.ones(300, 1)), 1), torch.cat((std, torch.zeros(300, 1)), 1)
    for name in ("learned_gaussian", "mixture"):
        prior = priors.create(name, latent_dim=3).fit(mean, std=std)
        assert torch.isfinite(prior.log_prob(mean)).all()


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_mixture_is_as_good_as_scikit_learns(covariance):
    from sklearn.mixture import GaussianMixture

    generator = torch.Generator().manual_seed(0)
    centres = 3 * torch.randn(5, 4, generator=generator)
    which = torch.randint(5, (6000,), generator=generator)
    mean, std = centres[which], 0.3 + torch.rand(6000, 4, generator=generator)
    z = mean + std * torch.randn(6000, 4, generator=generator)
    train, test = slice(0, 3000), slice(3000, None)
    kind = "full" if covariance == "full" else "diag"
    oracle = GaussianMixture(5, covariance_type=kind, n_init=5, random_state=0).fit(z[train].numpy())
    prior = priors.create("mixture", latent_dim=4, n_components=5, covariance=covariance)
    prior.fit(mean[train], std=std[train])
    assert held_out(prior, z[test]) > oracle.score(z[test].numpy()) - 0.05


def test_mixture_finds_the_number_and_the_truth():
    mean, std, _ = ring(2000, 0)
    _, _, z = ring(4000, 1)
    prior = priors.create("mixture", latent_dim=2, n_components="auto").fit(mean, std=std)
    assert prior.n_components == 10  # of 1, 3, 10 and 30 the first that holds eight clusters
    assert prior.config()["args"]["n_components"] == 10
    assert held_out(prior, z) > TRUTH - 0.05


def test_one_gaussian_is_not_made_many():
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(2000, 3, generator=generator)
    prior = priors.create("mixture", latent_dim=3, n_components="auto").fit(mean, std=0.5 * torch.ones_like(mean))
    z = math.sqrt(1.25) * torch.randn(5000, 3, generator=generator)
    assert prior.n_components == 1
    assert held_out(prior, z) > -1.5 * math.log(2 * math.pi * math.e * 1.25) - 0.02


def test_mixture_on_a_tiny_scale_far_away():
    """A weak KL leaves latents of any scale: nats must move by the log-scale alone."""
    mean, std, z = ring(1000, 0)
    plain = priors.create("mixture", latent_dim=2, n_components=8).fit(mean, std=std)
    small = priors.create("mixture", latent_dim=2, n_components=8).fit(1e-4 * mean + 1, std=1e-4 * std)
    shifted = held_out(small.double(), 1e-4 * z.double() + 1) + 2 * math.log(1e-4)
    assert shifted == pytest.approx(held_out(plain, z), abs=0.02)


def test_many_rows_are_seen_in_parts():
    mean, std, z = ring(30_000, 0)
    prior = priors.create("mixture", latent_dim=2, n_components=8).fit(mean, std=std, max_steps=40)
    assert held_out(prior, z) > TRUTH - 0.05


def test_candidates_follow_the_rows():
    assert candidates(10_000, 8, "full") == [1, 3, 10, 30, 100]
    assert candidates(500, 8, "full") == [1, 3, 10]
    assert candidates(10, 8, "full") == [1]


def test_dead_components_are_revived():
    """Thirty components on data with eight clusters: none may end empty."""
    mean, std, _ = ring(600, 0)
    found = fit_mixture(CodeRows(mean, std), 30, "diagonal", max_iterations=30, random_state=0)
    assert found.log_weight.exp().min() * 540 > 0.5
    assert torch.isfinite(found.factor).all()


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_natural_parameters_give_the_components_densities(covariance):
    mean, std, z = ring(500, 0)
    found = fit_mixture(CodeRows(mean.double(), std.double()), 5, covariance, max_iterations=5, random_state=0)
    joint = found.natural() @ features(z.double(), covariance)
    torch.testing.assert_close(joint.logsumexp(0), found.log_prob(z.double()))


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_features_are_the_same_in_memory_used_before(covariance):
    z = torch.randn(7, 4, generator=torch.Generator().manual_seed(0))
    memory = torch.full((n_features(4, covariance), 9), torch.nan)
    assert torch.equal(features(z, covariance, memory), features(z, covariance))


@pytest.mark.filterwarnings("ignore:Best performing initialization did not converge")
def test_rows_without_spread_get_em_itself(monkeypatch):
    """Three iterations from the same start are scikit-learn's; with a spread, on fresh draws, they are not."""
    from sklearn.mixture import GaussianMixture

    monkeypatch.setattr(em, "PRIOR_ROWS", 0.0)
    monkeypatch.setattr(em, "FLOOR", 1e-12)
    mean, std, z = (part.double() for part in ring(3000, 0))
    identity = torch.eye(2, dtype=torch.float64)
    start = em.MixtureFit(torch.full((4,), 0.25).double().log(), 0.5 * z[:4], identity.expand(4, 2, 2))
    found = {}
    for name, rows in {"still": CodeRows(z, torch.zeros_like(z)), "spread": CodeRows(mean, std)}.items():
        train, others = em._parts(rows, torch.Generator().manual_seed(0))
        points, judge = (part.draws_of(part.index, torch.Generator().manual_seed(1)) for part in (train, others))
        fit = em.expectation_maximisation(start, train, judge, len(train), 3, torch.Generator().manual_seed(1))
        oracle = GaussianMixture(
            4,
            tol=0,
            reg_covar=0,
            max_iter=3,
            weights_init=start.log_weight.exp().numpy(),
            means_init=start.mean.numpy(),
            precisions_init=identity.expand(4, 2, 2).numpy(),
        ).fit(points.double().numpy())
        found[name] = (fit.mean - torch.from_numpy(oracle.means_)).abs().max().item()
    assert found["still"] < 1e-4
    assert found["spread"] > 1e-2


def test_two_modes_in_one_of_forty_dimensions_are_found():
    """Every coordinate has variance 1, so that k-means alone would cut anywhere; 0.51 nats are there to be won."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(4000, 40, generator=generator)
    z[:, 7] = 0.3 * z[:, 7] + 0.954 * torch.randn(4000, generator=generator).sign()
    weight = salience(z)
    assert weight.argmax() == 7
    assert weight[torch.arange(40) != 7].max() < 0.3
    rows = CodeRows(z[:2000], torch.zeros(2000, 40))
    found = fit_mixture(rows, 2, "full", max_iterations=10, random_state=0)
    gaussian = fit_mixture(rows, 1, "full", max_iterations=10, random_state=0)
    assert found.mean[:, 7].abs().tolist() == pytest.approx([0.954, 0.954], abs=0.05)
    gained = (found.log_prob(z[2000:].double()) - gaussian.log_prob(z[2000:].double())).mean()
    assert 0.15 < gained < 0.51  # a second covariance of 820 numbers from 900 rows costs the rest


def test_rows_far_out_do_not_break_the_features():
    mean, std, _ = ring(2000, 0)
    mean[:3] += 3000.0
    found = fit_mixture(CodeRows(mean, std), 10, "full", max_iterations=10, random_state=0)
    assert math.isfinite(found.validation)
    assert torch.isfinite(found.factor).all()


def test_k_means_separates_what_is_separate():
    mean, _, z = ring(400, 0)
    labels = k_means(z.double(), 8, torch.Generator().manual_seed(0))
    pairs = {(tuple(m), int(k)) for m, k in zip(mean.round(decimals=3).tolist(), labels, strict=True)}
    assert len(pairs) == 8


def test_k_means_of_identical_points():
    assert k_means(torch.ones(10, 2), 3, torch.Generator().manual_seed(0)).shape == (10,)


def test_too_many_components_are_named():
    mean, std, _ = ring(10, 0)
    with pytest.raises(InputError, match="at least as many rows"):
        priors.create("mixture", latent_dim=2, n_components=50).fit(mean, std=std)


def test_progress_reaches_the_end():
    seen = []
    mean, std, _ = ring(200, 0)
    for name, arguments in (("mixture", {}), ("realnvp", {"transforms": 1, "hidden_features": 8})):
        seen.clear()
        prior = priors.create(name, latent_dim=2, **arguments)
        prior.fit(mean, std=std, max_steps=12, progress=lambda step, total: seen.append((step, total)))
        assert seen[-1][0] == seen[-1][1]
        assert [step for step, _ in seen] == sorted(step for step, _ in seen)


def test_realnvp_beats_the_gaussian_on_a_ring():
    mean, std, _ = ring(2000, 0)
    _, _, z = ring(2000, 1)
    torch.manual_seed(0)
    gaussian = priors.create("learned_gaussian", latent_dim=2).fit(mean, std=std)
    flow = priors.create("realnvp", latent_dim=2, transforms=4, hidden_features=32)
    flow.fit(mean, std=std, max_steps=250)
    assert held_out(flow, z) > held_out(gaussian, z) + 0.5
    assert flow.inverse_error(z) < 1e-4
    assert flow.inverse_error(flow.sample(500, generator=torch.Generator().manual_seed(0))) < 1e-4


def test_a_mixture_as_base_holds_the_modes():
    mean, std, _ = ring(2000, 0)
    _, _, z = ring(2000, 1)
    base = priors.create("mixture", latent_dim=2, n_components=8)
    flow = priors.create("realnvp", latent_dim=2, transforms=2, hidden_features=16, base=base)
    flow.fit(mean, std=std, max_steps=30)
    assert held_out(flow, z) > TRUTH - 0.1


def test_refitting_forgets_the_first_fit():
    mean, std, z = ring(300, 0)
    torch.manual_seed(0)
    flow = priors.create("realnvp", latent_dim=2, transforms=2, hidden_features=8)
    flow.fit(mean, std=std, max_steps=20)
    once = held_out(flow, z)
    flow.fit(3 * mean + 1, std=std, max_steps=20)
    flow.fit(mean, std=std, max_steps=20)
    assert held_out(flow, z) == once


def test_conditional_realnvp_learns_from_its_context():
    """z is the context plus noise of 0.3: -log(0.3 sqrt(2 pi e)) a dimension, for who reads the context."""
    generator = torch.Generator().manual_seed(0)
    context = torch.randn(1500, 1, generator=generator)
    mean = context.expand(-1, 2).contiguous()
    std = torch.full_like(mean, 0.3)
    torch.manual_seed(0)
    prior = priors.create("realnvp", latent_dim=2, transforms=4, hidden_features=32, context_features=1)
    prior.fit(mean, std=std, context=context, max_steps=200)
    z = mean + std * torch.randn(mean.shape, generator=generator)
    with torch.no_grad():
        right, wrong = prior.log_prob(z, context).mean(), prior.log_prob(z, context.flip(0)).mean()
    assert right > wrong + 1
    assert right > -2 * math.log(0.3 * math.sqrt(2 * math.pi * math.e)) - 0.3
    draws = prior.sample(1500, context, generator=generator)
    assert torch.corrcoef(torch.stack((draws[:, 0], context[:, 0])))[0, 1] > 0.9
    with pytest.raises(InputError, match="needs a context"):
        prior.log_prob(z)


def test_a_context_it_cannot_use_changes_nothing():
    prior = priors.create("realnvp", latent_dim=2, transforms=1, hidden_features=8)
    z = torch.ones(3, 2)
    assert torch.equal(prior.log_prob(z, torch.ones(3, 5)), prior.log_prob(z))


def test_a_low_temperature_draws_closer_to_the_centre():
    prior = priors.create("realnvp", latent_dim=3, transforms=1, hidden_features=8)
    warm, cold = (prior.sample(500, generator=torch.Generator().manual_seed(0), temperature=t) for t in (1.0, 0.5))
    torch.testing.assert_close(cold, 0.5 * warm)


def test_default_steps_lie_in_their_range():
    assert default_max_steps(50_000, 2) == 2_100
    assert default_max_steps(50_000, 200) == 4_000
    assert default_max_steps(100, 8) == 500
    assert coupling_flow(2).max_log_scale <= 12


def test_what_has_no_parameters_cannot_be_fitted():
    fixed = priors.as_prior(torch.distributions.Normal(torch.zeros(2), torch.ones(2)))
    with pytest.raises(CapabilityError, match="no learnable parameters"):
        fixed.fit(torch.zeros(4, 2), std=torch.ones(4, 2))


@given(st.integers(1, 20_000))
def test_passes_use_all_the_steps_and_never_more_than_double_them(max_steps):
    lengths = pass_lengths(max_steps)
    assert sum(lengths) == max_steps
    assert all(length <= 1.5 * sum(lengths[:i]) for i, length in enumerate(lengths) if i)


def test_a_fit_goes_on_while_a_pass_raises_the_gap(monkeypatch):
    """It stops at the first pass that adds less than a hundredth of the gap, and keeps the better weights."""
    prior = priors.create("learned_gaussian", latent_dim=2)
    rows = CodeRows(torch.zeros(400, 2), torch.ones(400, 2))
    of_null = 1.0 + math.log(2 * math.pi)  # -E log N(z; 0, I), z ~ N(0, I) in two dimensions, but for the draws
    ran, values = [], iter([of_null - 1.0, of_null - 1.2, of_null - 1.205])

    def minimise(module, loss, data, recipe, **others):
        ran.append(recipe.max_steps)
        return SimpleNamespace(best_value=next(values))

    monkeypatch.setattr(fitting, "minimise", minimise)
    fit_by_gradient(prior, rows, FitOptions(), rows)
    assert ran == pass_lengths(default_max_steps(400, 2))[:3]
    assert max(LEAST_GAIN, 1.2 * LEAST_SHARE) > 0.005


@pytest.mark.parametrize("max_steps", [5, None])
def test_a_fit_never_ends_below_its_start(monkeypatch, max_steps):
    prior = priors.create("realnvp", latent_dim=2)
    before = {name: value.clone() for name, value in prior.state_dict().items()}

    def minimise(module, loss, data, recipe, **others):
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(1.0)
        return SimpleNamespace(best_value=1e6)

    monkeypatch.setattr(fitting, "minimise", minimise)
    rows = CodeRows(torch.zeros(400, 2), torch.ones(400, 2))
    fit_by_gradient(prior, rows, FitOptions(max_steps), rows)
    assert all(torch.equal(value, before[name]) for name, value in prior.state_dict().items())
