"""What holds for every posterior: one line in the table, all the laws below."""

from __future__ import annotations

import json
import math

import pytest
import torch

import latentfit.posteriors  # noqa: F401  # fills the registry
from latentfit.data.batch import Batch
from latentfit.errors import CapabilityError, InputError
from latentfit.posteriors.flow import MOMENT_PAIRS
from latentfit.registry import registry

#: networks this small keep the laws fast
SMALL = {"context_features": 5, "hidden_features": (16,)}
POSTERIORS = {
    "diagonal": lambda d: registry.create("posterior", "diagonal", latent_dim=d),
    "full": lambda d: registry.create("posterior", "full", latent_dim=d),
    "planar": lambda d: registry.create("posterior", "planar", latent_dim=d, context_features=5),
    "sylvester": lambda d: registry.create("posterior", "sylvester", latent_dim=d, columns=2, context_features=5),
    "sylvester, householder": lambda d: registry.create(
        "posterior", "sylvester", latent_dim=d, kind="householder", columns=2, context_features=5
    ),
    "iaf": lambda d: registry.create("posterior", "iaf", latent_dim=d, transforms=3, **SMALL),
    "realnvp_posterior": lambda d: registry.create("posterior", "realnvp_posterior", latent_dim=d, **SMALL),
}
EVENTS = [1, 3, (2, 1, 2)]


def make(name, event, n=6, dtype=torch.float64):
    torch.manual_seed(0)
    posterior = POSTERIORS[name](event).to(dtype)
    generator = torch.Generator().manual_seed(0)
    # away from a start at which gradients vanish; networks that start bent need less to be as far
    noise = 0.05 if name == "realnvp_posterior" else 0.2
    with torch.no_grad():
        for weight in posterior.parameters():
            weight.add_(noise * torch.randn(weight.shape, generator=generator, dtype=dtype))
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
    if q.can_score:
        torch.testing.assert_close(q.log_prob(z), log_q, rtol=1e-10, atol=1e-10)
    else:
        with pytest.raises(CapabilityError, match="can only score its own draws"):
            q.log_prob(z)


@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("name", POSTERIORS)
def test_integrates_to_one_by_its_own_draws(name, dim):
    """E_q[phi(z) / q(z)] = 1 for any density phi: a false alarm in 5 standard errors of 20,000 draws."""
    n = 20_000
    posterior, parameters = make(name, dim)
    with torch.no_grad():
        q = posterior(parameters)
        mean, variance = q.moments()
        z, log_q = q.rsample_with_log_prob(n, torch.Generator().manual_seed(3))
        phi = torch.distributions.Normal(mean, 0.5 * variance.sqrt())  # narrower than q: the weights are tame
        weight = (phi.log_prob(z).sum(-1) - log_q).exp()  # (S, N)
    error = weight.std(0) / math.sqrt(n)
    assert (error < 0.1).all()
    assert ((weight.mean(0) - 1).abs() < 5 * error).all()


@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("name", POSTERIORS)
def test_integrates_to_one_on_a_grid(name, dim):
    posterior, parameters = make(name, dim, n=2)
    with torch.no_grad():
        q = posterior(parameters)
        if not q.can_score:
            pytest.skip("scores its own draws only")
        mean, variance = q.moments()
        axis = torch.linspace(-12, 12, 401, dtype=torch.float64)
        cells = torch.cartesian_prod(*[axis] * dim).view(-1, 1, dim)
        z = mean + variance.sqrt() * cells  # (S, N, D)
        volume = variance.sqrt().prod(-1) * (axis[1] - axis[0]) ** dim
        total = q.log_prob(z).exp().sum(0) * volume
    assert ((total - 1).abs() < 1e-3).all()


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("name", POSTERIORS)
def test_moments_are_those_of_the_draws(name, event):
    """Within 5 standard errors of 40,000 draws each, and of the moments' own draws where they have no closed form."""
    n = 40_000
    posterior, parameters = make(name, event)
    with torch.no_grad():
        q = posterior(parameters)
        z, _ = q.rsample_with_log_prob(n, generator=torch.Generator().manual_seed(2))
        mean, variance = q.moments()
    noise = 1 / n + (0.5 / MOMENT_PAIRS if "parameters" in q.cache() else 0)
    assert ((z.mean(0) - mean).abs() < 5 * (noise * z.var(0)).sqrt()).all()
    assert ((variance / z.var(0) - 1).abs() < 5 * math.sqrt(2 * noise)).all()


@pytest.mark.parametrize("name", POSTERIORS)
def test_moments_are_the_rows_own(name):
    posterior, parameters = make(name, 3)
    with torch.no_grad():
        both, again = posterior(parameters).moments(), posterior(parameters).moments()
        alone = posterior(parameters[2:3]).moments()
    for part, same, row in zip(both, again, alone, strict=True):
        assert torch.equal(part, same)
        torch.testing.assert_close(part[2:3], row, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", POSTERIORS)
def test_draws_are_reparameterised(name):
    posterior, parameters = make(name, 3)
    z, log_q = posterior(parameters).rsample_with_log_prob(2)
    (z.square().sum() - log_q.sum()).backward()
    assert torch.isfinite(parameters.grad).all()
    assert (parameters.grad != 0).all()
    for key, weight in posterior.named_parameters():
        assert torch.isfinite(weight.grad).all(), key
        assert (weight.grad != 0).any(), key


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", POSTERIORS)
def test_dtype(name, dtype):
    posterior, parameters = make(name, 3, dtype=dtype)
    q = posterior(parameters)
    assert {t.dtype for t in (*q.rsample_with_log_prob(2), *q.moments(), *q.cache().values())} == {dtype}


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
    q = posterior(torch.zeros(2, posterior.n_parameters))
    z, log_q = q.rsample_with_log_prob(2)
    torch.testing.assert_close(log_q, torch.distributions.Normal(0, 1).log_prob(z).sum(-1))
    mean, variance = q.moments()
    torch.testing.assert_close(mean, torch.zeros(2, 3), rtol=0, atol=1e-6)
    torch.testing.assert_close(variance, torch.ones(2, 3), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", POSTERIORS)
def test_it_starts_as_the_diagonal_posterior(name):
    """The i-th of the encoder's means is the i-th latent's, also where a flow permutes on its way."""
    posterior = POSTERIORS[name](3)
    parameters = torch.zeros(2, posterior.n_parameters)
    parameters[:, :6] = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
    diagonal = POSTERIORS["diagonal"](3)(parameters[:, :6])
    for part, wanted in zip(posterior(parameters).moments(), diagonal.moments(), strict=True):
        torch.testing.assert_close(part, wanted, rtol=1e-5, atol=1e-5)


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
    known = {name.partition(",")[0] for name in POSTERIORS}
    assert set(registry.names("posterior")) == known | elsewhere
