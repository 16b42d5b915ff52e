"""Flow matching: the divergence, the solvers' orders, its density against a known mixture."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from latentfit import priors
from latentfit.errors import InputError, ReliabilityWarning, TrainingError
from latentfit.evaluation.likelihood import require_density
from latentfit.priors import flow_matching
from latentfit.priors.ode import integrate, integrate_adaptive
from latentfit.priors.velocity import VelocityConv, VelocityMLP


def moved(module, seed=0, size=0.3):
    """In float64, with every weight away from its start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return module.double()


FIELDS = {
    "mlp": (lambda: VelocityMLP(5, 32), (5,)),
    "mlp, context": (lambda: VelocityMLP(3, 16, context_features=2), (3,)),
    "convolutions": (lambda: VelocityConv(torch.Size((2, 3, 2)), 8), (2, 3, 2)),
}


@pytest.mark.parametrize("name", FIELDS)
def test_divergence_is_the_trace_of_the_jacobian(name):
    make, shape = FIELDS[name]
    torch.manual_seed(0)
    field = moved(make())
    y = torch.randn(4, *shape, dtype=torch.float64)
    context = torch.randn(4, 2, dtype=torch.float64) if "context" in name else None
    angle = torch.rand(4, dtype=torch.float64)
    velocity, divergence = field.with_divergence(y, angle, context)

    def one(row, at, given):
        return field(row[None], at[None], None if given is None else given[None])[0]

    jacobian = torch.func.vmap(torch.func.jacrev(one), in_dims=(0, 0, None if context is None else 0))
    trace = jacobian(y, angle, context).reshape(4, y[0].numel(), -1).diagonal(dim1=1, dim2=2).sum(-1)
    torch.testing.assert_close(velocity, field(y, angle, context))
    torch.testing.assert_close(divergence, trace)


def test_hutchinson_is_unbiased():
    """Over all 2^6 directions of signs the estimate's mean is the divergence itself."""
    torch.manual_seed(0)
    field = moved(VelocityConv(torch.Size((1, 3, 2)), 4))
    y, angle = torch.randn(1, 1, 3, 2, dtype=torch.float64), torch.tensor(0.4, dtype=torch.float64)
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 6).double().view(-1, 1, 3, 2)
    _, exact = field.with_divergence(y, angle)
    _, estimates = field.with_divergence(y.expand_as(signs), angle, None, signs)
    torch.testing.assert_close(estimates.mean(), exact[0])
    assert estimates.std() > 0


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2), ("rk4", 4)])
def test_the_sampling_error_falls_at_the_solvers_order(solver, order):
    """Halving the steps divides the error of samples by 2^order, within a factor of 2^0.5."""
    torch.manual_seed(0)
    prior = priors.create("flow_matching", latent_dim=3, hidden_features=16, solver=solver)
    prior = moved(prior, size=0.1)

    def draw(**how):
        return prior.sample(200, generator=torch.Generator().manual_seed(1), **how)

    exact = draw(tolerance=1e-10)
    errors = [(draw(n_steps=n) - exact).square().mean().sqrt().item() for n in (16, 32, 64)]
    falls = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    assert min(falls) > order - 0.5
    assert falls[-1] < order + 0.5
    torch.testing.assert_close(draw(tolerance=1e-6), exact, rtol=0, atol=1e-4)


def test_the_adaptive_solver_knows_the_exponential():
    state = (torch.ones(3, dtype=torch.float64),)
    (grown,), steps = integrate_adaptive(lambda t, s: s, state, 0.0, 2.0, 1e-9)
    torch.testing.assert_close(grown, torch.full_like(grown, math.exp(2)), rtol=1e-7, atol=0)
    (back,), _ = integrate_adaptive(lambda t, s: s, (grown,), 2.0, 0.0, 1e-9)
    torch.testing.assert_close(back, state[0], rtol=1e-7, atol=0)
    assert steps < 200
    (coarse,) = integrate(lambda t, s: (s[0] * t,), state, 0.0, 1.0, 20)
    torch.testing.assert_close(coarse, torch.full_like(coarse, math.exp(0.5)), rtol=1e-6, atol=0)
    with pytest.raises(TrainingError, match="fails at"):
        integrate_adaptive(lambda t, s: (torch.full_like(s[0], math.nan),), state, 0.0, 1.0, 1e-9)


def mixture(dim, n, seed, separation=1.5):
    """Two Gaussians of variance 1 around +-separation along the diagonal: draws and their exact log-density."""
    generator = torch.Generator().manual_seed(seed)
    centre = separation * torch.ones(dim) / math.sqrt(dim)
    sign = 2.0 * torch.randint(2, (n, 1), generator=generator) - 1
    z = sign * centre + torch.randn(n, dim, generator=generator)
    parts = [-0.5 * (z - s * centre).square().sum(-1) - 0.5 * dim * math.log(2 * math.pi) for s in (-1.0, 1.0)]
    return z, torch.logaddexp(*parts) - math.log(2)


@pytest.mark.parametrize("dim", [2, pytest.param(16, marks=pytest.mark.slow)])
def test_the_density_is_that_of_a_known_mixture(dim):
    """Held-out mean within 0.05 nats of the truth, by the exact trace."""
    z, _ = mixture(dim, 20_000, 0)
    prior = priors.create("flow_matching", latent_dim=dim, hidden_features=64 if dim == 2 else 256)
    prior.fit(z, std=torch.zeros_like(z), max_steps=1_000 if dim == 2 else 3_000)
    z, exact = mixture(dim, 4_000, 1)
    with torch.no_grad():
        found = prior.log_prob(z)
    assert prior.density == "exact"
    assert abs((found - exact).mean().item()) < 0.05
    drawn = prior.sample(20_000, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(drawn.std(0), z.std(0), rtol=0.05, atol=0)


def test_steps_too_few_for_the_density_are_said(monkeypatch):
    monkeypatch.setattr(flow_matching, "TOLERANCE", 1e-9)
    monkeypatch.setattr(flow_matching, "MOST_STEPS", 16)
    z, _ = mixture(2, 500, 0, separation=3.0)
    prior = priors.create("flow_matching", latent_dim=2, hidden_features=16)
    with pytest.warns(ReliabilityWarning, match="only approximate"):
        prior.fit(z, std=torch.full_like(z, 0.1), max_steps=100)
    assert prior.density == "approximate"


def test_a_large_spatial_latent_is_shown_and_never_ranked():
    from latentfit import VAEModule
    from latentfit.errors import CapabilityError
    from latentfit.evaluation.codes import Codes
    from latentfit.evaluation.gap import prior_gap

    shape = (2, 6, 6)
    prior = priors.create("flow_matching", latent_dim=shape, hidden_features=8)
    assert prior.density == "approximate"
    mean = torch.randn(100, *shape, generator=torch.Generator().manual_seed(0))
    std = torch.full_like(mean, 0.5)
    prior.fit(mean, std=std, max_steps=20)
    moved(prior.velocity, size=0.1).float()
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        a, b = prior.log_prob(mean), prior.log_prob(mean)
    assert torch.isfinite(a).all()
    assert not torch.equal(a, b)
    with pytest.raises(CapabilityError, match="'approximate'"):
        prior_gap(prior, priors.create("standard", latent_dim=shape), Codes(mean, std))
    vae = VAEModule(torch.nn.Identity(), torch.nn.Identity(), prior)
    with pytest.raises(CapabilityError, match="only approximate"):
        require_density(vae)


@pytest.mark.slow
def test_a_context_moves_the_samples():
    generator = torch.Generator().manual_seed(3)
    context = 2.0 * torch.randint(2, (2_000, 1), generator=generator) - 1
    mean = 2 * context + 0.3 * torch.randn(2_000, 1, generator=generator)
    prior = priors.create("flow_matching", latent_dim=1, hidden_features=32, context_features=1)
    prior.fit(mean, std=torch.full_like(mean, 0.2), context=context, max_steps=400)
    for value in (-1.0, 1.0):
        drawn = prior.sample(1_000, torch.tensor([value]), torch.Generator().manual_seed(4))
        assert drawn.mean().item() == pytest.approx(2 * value, abs=0.2)
    with pytest.raises(InputError, match="needs a context"):
        prior.sample(3)


def test_trained_jointly_the_error_of_its_steps_is_unknown_until_it_is_measured():
    prior = priors.create("flow_matching", latent_dim=2, hidden_features=16)
    assert prior.density == "exact"  # F = 0
    moved(prior.velocity, size=0.05).float()
    z = torch.randn(1, 10, 2, generator=torch.Generator().manual_seed(0))
    prior.eval().training_log_prob(z)
    assert prior.density == "exact"
    prior.train().training_log_prob(z)
    assert prior.density == "approximate"
    prior.eval().freeze()
    assert math.isfinite(prior.step_error)
    assert prior.density == "exact"
    assert int(prior.steps) >= 8
