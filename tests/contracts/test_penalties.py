"""What holds for every penalty: one line in the table, all the laws below."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import latentfit as lf
from latentfit import penalties
from latentfit.data import Batch
from latentfit.errors import CapabilityError, InputError
from latentfit.registry import registry
from latentfit.saving import load_component, save_component

PENALTIES = {
    "mmd": lambda **kw: penalties.create("mmd", **kw),
    "mmd, rbf": lambda **kw: penalties.create("mmd", kernel="rbf", bandwidths=[1.0, 2.0], unbiased=False, **kw),
    "sliced_wasserstein": lambda **kw: penalties.create("sliced_wasserstein", **kw),
    "energy": lambda **kw: penalties.create("energy", **kw),
    "adversarial": lambda **kw: penalties.create("adversarial", latent_dim=4, hidden=[16], **kw),
    "total_correlation": lambda **kw: penalties.create("total_correlation", **kw),
}
MATCHING = [name for name in PENALTIES if name != "total_correlation"]


def vae(prior="standard") -> lf.VAEModule:
    torch.manual_seed(0)
    given = {"latent_dim": 4} if isinstance(prior, str) else {}
    return lf.VAEModule(nn.Linear(3, 8), nn.Linear(4, 3), prior, likelihood=lf.likelihoods.create("normal"), **given)


@pytest.fixture
def x():
    return torch.randn(60, 3, generator=torch.Generator().manual_seed(1))


def value(penalty, model, x, seed=0, n_samples=1):
    """The term of an objective at KL weight 0, with the critic in its training mode."""
    objective = lf.ELBO(0.0, [penalty], n_samples=n_samples)
    objective.n_train = 200
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(0)
    return objective(model, x, 0, generator)[penalty.name]


@pytest.mark.parametrize("name", PENALTIES)
def test_a_scalar_with_a_gradient_for_the_encoder(name, x):
    model = vae()
    term = value(PENALTIES[name](), model, x, n_samples=2)
    assert term.shape == ()
    term.backward()
    gradient = model.encoder.weight.grad
    assert torch.isfinite(gradient).all()
    assert gradient.abs().max() > 0


@pytest.mark.parametrize("name", PENALTIES)
def test_the_value_is_proportional_to_the_weight(name, x):
    one, three, none = (value(PENALTIES[name](weight=w), vae(), x).item() for w in (1.0, 3.0, 0.0))
    assert three == pytest.approx(3 * one, rel=1e-5)
    assert none == 0.0


@pytest.mark.parametrize("name", PENALTIES)
def test_a_weight_that_presses_away_is_refused(name):
    with pytest.raises(InputError, match="presses q"):
        PENALTIES[name](weight=-1.0)
    assert PENALTIES[name]().weight > 0


@pytest.mark.parametrize("name", PENALTIES)
def test_the_random_state_is_the_generators(name, x):
    penalty, model = PENALTIES[name](), vae()
    before = torch.get_rng_state()
    objective = lf.ELBO(0.0, [penalty])
    objective.n_train = 200
    a, b = (objective(model, x, 0, torch.Generator().manual_seed(0))["loss"] for _ in range(2))
    assert torch.equal(a, b)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", PENALTIES)
def test_rebuilt_from_its_configuration_and_saved_with_the_objective(name, x, tmp_path):
    penalty, model = PENALTIES[name](weight=2.5), vae()
    again = registry.build("penalty", json.loads(json.dumps(penalty.config())))
    again.load_state_dict(penalty.state_dict(), strict=True)
    assert torch.equal(value(again, model, x), value(penalty, model, x))
    save_component(lf.ELBO(0.0, [penalty]), tmp_path / "objective")
    (loaded,) = load_component(tmp_path / "objective").penalties
    assert value(loaded, model, x).item() == pytest.approx(value(penalty, model, x).item(), rel=1e-6)


@pytest.mark.parametrize("name", PENALTIES)
def test_row_weights_are_refused(name, x):
    with pytest.raises(CapabilityError, match="row weights"):
        value(PENALTIES[name](), vae(), Batch(x, weight=torch.ones(60)))


@pytest.mark.parametrize("name", PENALTIES)
def test_one_row_is_no_error(name, x):
    assert torch.isfinite(value(PENALTIES[name](), vae(), x[:1]))


@pytest.mark.parametrize("name", MATCHING)
def test_another_target_is_refused_beside_a_kl(name, x):
    target = lf.priors.create("standard", latent_dim=4)
    penalty = PENALTIES[name](target=target)
    model = vae("mixture")
    with pytest.raises(CapabilityError, match="toward its own target"):
        lf.ELBO(penalties=[penalty])(model, x)
    with pytest.raises(CapabilityError, match="its own target"):
        lf.ELBO(lf.schedules.linear(10), [penalty])(model, x)
    lf.ELBO(0.0, [penalty])(model, x)
    model.prior = target
    lf.ELBO(penalties=[penalty])(model, x)


@pytest.mark.parametrize("name", MATCHING)
def test_a_learned_prior_learns_by_its_own_term_only(name, x):
    model = vae("mixture")
    value(PENALTIES[name](), model, x).backward()
    assert all(p.grad is None for p in model.prior.parameters())


@pytest.mark.parametrize("name", MATCHING)
def test_codes_far_from_the_target_are_pulled_to_it(name, x):
    """A step along minus the gradient lowers the distance of the mean from the target's."""
    target = lf.priors.EmpiricalPrior(4, lambda n: 0.1 * torch.randn(n, 4))
    z = (3 + torch.randn(64, 4, generator=torch.Generator().manual_seed(0))).requires_grad_()
    penalty = PENALTIES[name]()
    t = target.sample(64)
    if name == "adversarial":  # a critic that knows which way the target lies
        optimiser = torch.optim.Adam(penalty.critic.parameters(), 1e-2)
        for _ in range(100):
            optimiser.zero_grad()
            penalty.divergence(z.detach(), t).backward()
            optimiser.step()
    penalty.divergence(z, t).backward()
    assert (z.grad.mean(0) > 0).all()


def test_every_registered_penalty_is_in_the_table():
    assert set(penalties.names()) <= {name.split(",")[0] for name in PENALTIES}


def test_near_misses_are_answered():
    with pytest.raises(InputError, match="calls it 'mmd'"):
        penalties.create("infovae")
    with pytest.raises(InputError, match="calls it 'total_correlation'"):
        penalties.create("tc")
