"""What holds for every posterior: one line in the table, all the laws below."""

from __future__ import annotations

import json
import math

import pytest
import torch

import latentfit.posteriors  # noqa: F401  # fills the registry
from latentfit.data.batch import Batch
from latentfit.errors import InputError
from latentfit.registry import registry

POSTERIORS = {
    "diagonal": lambda d: registry.create("posterior", "diagonal", latent_dim=d),
    "full": lambda d: registry.create("posterior", "full", latent_dim=d),
}
EVENTS = [1, 3, (2, 1, 2)]


def make(name, event, n=6, dtype=torch.float64):
    posterior = POSTERIORS[name](event).to(dtype)
    generator = torch.Generator().manual_seed(0)
    parameters = 0.7 * torch.randn(n, posterior.n_parameters, generator=generator, dtype=dtype)
    return posterior, parameters.requires_grad_()


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("name", POSTERIORS)
def test_shapes(name, event):
    posterior, parameters = make(name, event)
    q = posterior(parameters, Batch(torch.zeros(6, 1)))
    z, log_q = q.rsample_with_log_prob(4)
    assert z.shape == (4, 6, *posterior.event_shape)
    assert log_q.shape == (4, 6)
    assert all(m.shape == (6, *posterior.event_shape) for m in q.moments())
    cache = q.cache()
    assert {"mean", "std"} <= set(cache)
    assert all(len(value) == 6 for value in cache.values())
    torch.testing.assert_close(cache["std"].square(), q.moments()[1])


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("name", POSTERIORS)
def test_the_log_prob_of_its_own_draws(name, event):
    posterior, parameters = make(name, event)
    q = posterior(parameters)
    z, log_q = q.rsample_with_log_prob(5, generator=torch.Generator().manual_seed(1))
    assert q.can_score
    torch.testing.assert_close(q.log_prob(z), log_q, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("name", POSTERIORS)
def test_moments_are_those_of_the_draws(name, event):
    """Within 5 standard errors of 40,000 draws each."""
    n = 40_000
    posterior, parameters = make(name, event)
    with torch.no_grad():
        q = posterior(parameters)
        z, _ = q.rsample_with_log_prob(n, generator=torch.Generator().manual_seed(2))
        mean, variance = q.moments()
    assert ((z.mean(0) - mean).abs() < 5 * (variance / n).sqrt()).all()
    assert ((z.var(0) / variance - 1).abs() < 5 * math.sqrt(2 / n)).all()


@pytest.mark.parametrize("name", POSTERIORS)
def test_draws_are_reparameterised(name):
    posterior, parameters = make(name, 3)
    z, log_q = posterior(parameters).rsample_with_log_prob(2)
    (z.square().sum() - log_q.sum()).backward()
    assert torch.isfinite(parameters.grad).all()
    assert (parameters.grad != 0).all()


@pytest.mark.parametrize("name", POSTERIORS)
def test_randomness_is_the_generators(name):
    posterior, parameters = make(name, 3)
    q = posterior(parameters)
    before = torch.get_rng_state()
    a, b, c = (q.rsample_with_log_prob(2, torch.Generator().manual_seed(s))[0] for s in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("value", [-1e6, 1e6])
@pytest.mark.parametrize("name", POSTERIORS)
def test_a_runaway_log_variance_stays_finite(name, value):
    posterior = POSTERIORS[name](2)
    parameters = torch.zeros(3, posterior.n_parameters)
    parameters[:, 2:4] = value
    z, log_q = posterior(parameters).rsample_with_log_prob(2)
    assert torch.isfinite(z).all()
    assert torch.isfinite(log_q).all()


@pytest.mark.parametrize("name", POSTERIORS)
def test_zero_parameters_are_the_standard_normal(name):
    posterior = POSTERIORS[name](3)
    mean, variance = posterior(torch.zeros(2, posterior.n_parameters)).moments()
    assert (mean == 0).all()
    assert (variance == 1).all()


@pytest.mark.parametrize("name", POSTERIORS)
def test_a_wrong_width_is_named(name):
    posterior = POSTERIORS[name](3)
    with pytest.raises(InputError, match=rf"needs \(N, {posterior.n_parameters}\) numbers"):
        posterior(torch.zeros(2, posterior.n_parameters + 1))


@pytest.mark.parametrize("name", POSTERIORS)
def test_rebuilt_from_its_configuration(name):
    posterior, parameters = make(name, (2, 1, 2))
    again = registry.build("posterior", json.loads(json.dumps(posterior.config()))).double()
    again.load_state_dict(posterior.state_dict(), strict=True)
    a, b = (p(parameters).rsample_with_log_prob(2, torch.Generator().manual_seed(0)) for p in (posterior, again))
    assert torch.equal(a[0], b[0])
    assert torch.equal(a[1], b[1])


def test_aliases_are_answered():
    with pytest.raises(InputError, match="calls it 'diagonal'"):
        registry.create("posterior", "gaussian", latent_dim=2)


def test_every_registered_posterior_is_in_the_table():
    elsewhere = {"support"}  # no law over all of R^D: tests/posteriors/test_support.py
    assert set(registry.names("posterior")) == set(POSTERIORS) | elsewhere
