"""Free bits, capacity and GECO against their formulae, and what they refuse."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import latentfit as lf
from latentfit.errors import CapabilityError, InputError
from latentfit.model import kl_terms
from latentfit.registry import registry
from latentfit.saving import load_component, save_component

kls = st.lists(st.floats(0, 20), min_size=6, max_size=6)
zero = torch.zeros(())


def vae(prior="standard", posterior="diagonal", latent=4) -> lf.VAEModule:
    torch.manual_seed(0)
    q = registry.create("posterior", posterior, latent_dim=latent)
    prior = prior if not isinstance(prior, str) else lf.priors.create(prior, latent_dim=latent)
    likelihood = lf.likelihoods.create("normal", scale=0.5)
    return lf.VAEModule(nn.Linear(3, q.n_parameters), nn.Linear(latent, 3), prior, q, likelihood).double()


@pytest.fixture
def x():
    return torch.randn(40, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def terms(objective, model, x, step=0):
    return objective(model, x, step, torch.Generator().manual_seed(0))


@given(kls, st.floats(0.01, 5))
def test_free_bits_is_its_formula(kl, nats):
    kl = torch.tensor(kl, dtype=torch.float64)
    by_unit = sum(max(nats, v) for v in kl.tolist())
    by_three = sum(max(nats, sum(kl[i : i + 2].tolist())) for i in (0, 2, 4))
    assert float(kl_terms.free_bits(nats)(kl, zero, 0)) == pytest.approx(by_unit)
    assert float(kl_terms.free_bits(nats, groups=3)(kl, zero, 0)) == pytest.approx(by_three)
    assert float(kl_terms.free_bits(nats, groups="all")(kl.sum()[None], zero, 0)) == pytest.approx(
        max(nats, kl.sum().item())
    )


@given(st.floats(0, 50), st.floats(0, 30), st.integers(1, 100), st.integers(0, 200))
def test_capacity_is_its_formula(kl, nats, steps, step):
    term = kl_terms.capacity(nats, steps)
    expected = abs(kl - nats * min(1.0, step / steps))
    assert float(term(torch.tensor([kl], dtype=torch.float64), zero, step)) == pytest.approx(expected)
    assert term.settled_at == steps


def test_soft_free_bits_move_each_weight_toward_the_floor():
    term = kl_terms.free_bits(nats=1.0, soft=True)
    kl = torch.tensor([0.5, 1.02, 3.0])
    for _ in range(10):
        value = term(kl, zero, 0)
    assert float(value) == pytest.approx(0.5 * 1.01**-10 + 1.02 + 3.0, rel=1e-5)
    for _ in range(4):
        value = term(torch.tensor([2.0, 1.0, 1.0]), zero, 0)
    assert float(value) == pytest.approx(2.0 * 1.01**-6 + 1.0 + 1.0, rel=1e-5)
    before = term.log_weight.clone()
    term.eval()(kl, zero, 0)
    assert torch.equal(term.log_weight, before)


def test_geco_is_its_formula():
    term = kl_terms.geco(distortion=10.0, rate=0.1, decay=0.9)
    average, log_multiplier = None, 0.0
    for distortion in (14.0, 12.0, 9.0, 5.0):
        c = distortion - 10.0
        average = c if average is None else 0.9 * average + 0.1 * c
        log_multiplier += 0.1 * average
        value = term(torch.tensor([2.0]), torch.tensor(distortion), 0)
        assert float(value) == pytest.approx(2.0 * math.exp(-log_multiplier), rel=1e-5)


@pytest.mark.parametrize("kl", ["analytic", "monte_carlo"])
def test_units_sum_to_the_whole(x, kl):
    """A floor that never binds leaves the plain KL, per unit, in groups and over all; closed and by draws."""
    for prior in ("standard", lf.priors.create("learned_gaussian", latent_dim=4, covariance="diagonal")):
        model = vae(prior)
        plain = terms(lf.ELBO(kl=kl), model, x)
        for groups in ("unit", 2, "all"):
            floor = lf.ELBO(kl=kl, kl_term=kl_terms.free_bits(1e-9, groups))
            # by draws a single unit's mean may be below the floor
            torch.testing.assert_close(
                terms(floor, model, x)["loss"], plain["loss"], atol=0.05 * (kl != "analytic"), rtol=1e-9
            )


@pytest.mark.parametrize(
    "term",
    [
        kl_terms.free_bits(2.0),
        kl_terms.free_bits(2.0, groups=2),
        kl_terms.free_bits(3.0, groups="all"),
        kl_terms.free_bits(2.0, soft=True),
        kl_terms.capacity(7.0),
        kl_terms.geco(1.0),
    ],
    ids=lambda term: str(term.config()["args"]),
)
def test_every_term_changes_the_loss_and_only_the_loss(x, term):
    model = vae()
    plain, changed = (terms(lf.ELBO(kl_term=t), model, x) for t in (None, term))
    assert abs(plain["loss"] - changed["loss"]) > 1e-4
    torch.testing.assert_close(plain["elbo"], changed["elbo"])
    torch.testing.assert_close(changed["loss"], -changed["log_likelihood"] + changed["kl_term"])
    torch.testing.assert_close(
        terms(lf.ELBO(0.5, kl_term=registry.build("kl_term", term.config())), model, x)["loss"],
        -changed["log_likelihood"] + 0.5 * changed["kl_term"],
    )


@pytest.mark.parametrize(
    ("prior", "posterior", "reason"),
    [
        ("mixture", "diagonal", "units of the prior 'mixture' are not independent"),
        ("standard", "full", "depend on one"),
    ],
)
def test_single_units_are_refused_with_the_reason_where_there_are_none(x, prior, posterior, reason):
    model = vae(prior, posterior)
    with pytest.raises(CapabilityError, match=reason):
        lf.ELBO(kl_term=kl_terms.free_bits())(model, x)
    lf.ELBO(kl_term=kl_terms.free_bits(groups="all"))(model, x)
    lf.ELBO(kl_term=kl_terms.capacity())(model, x)


def test_units_that_do_not_split_are_refused(x):
    with pytest.raises(InputError, match="4 units do not split into 3"):
        lf.ELBO(kl_term=kl_terms.free_bits(groups=3))(vae(), x)


def test_the_state_is_saved_with_the_objective(x, tmp_path):
    objective = lf.ELBO(lf.schedules.cyclical(100), kl_term=kl_terms.free_bits(5.0, soft=True))
    for step in range(5):
        terms(objective, vae(), x, step)
    save_component(objective, tmp_path / "objective")
    again = load_component(tmp_path / "objective")
    objective.eval()
    torch.testing.assert_close(terms(again, vae(), x, 7), terms(objective, vae(), x, 7))
    assert again.kl_term.log_weight.tolist() == pytest.approx([-5 * math.log(1.01)] * 4)


def test_a_target_that_the_run_would_not_reach_is_refused():
    objective = lf.ELBO(kl_term=kl_terms.capacity(5.0, steps=300))
    with pytest.raises(InputError, match=r"warm-up \(300 steps\).*never be held at what Capacity asks for"):
        lf.fit(vae().float(), torch.randn(50, 3), objective=objective, max_steps=100)


def small(x, objective, **settings):
    model = vae().float()
    return model, lf.fit(model, x.float(), objective=objective, max_steps=500, learning_rate=1e-2, **settings)


def test_geco_meets_its_constraint():
    x = torch.randn(400, 3, generator=torch.Generator().manual_seed(0))  # 6.7 nats where z says nothing
    model, _ = small(x, lf.ELBO(kl_term=kl_terms.geco(distortion=4.0, rate=0.01, decay=0.9)), schedule="constant")
    with torch.no_grad():
        reached = terms(lf.ELBO(), model, x)
    plain, _ = small(x, lf.ELBO())
    with torch.no_grad():
        free = terms(lf.ELBO(), plain, x)
    assert -reached["log_likelihood"].item() == pytest.approx(4.0, abs=0.4)
    assert abs(-free["log_likelihood"].item() - 4.0) > 0.5


def test_what_cannot_be_compared_keeps_the_last_weights():
    x = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
    _, result = small(x, lf.ELBO(kl_term=kl_terms.geco(distortion=4.0)), patience=1, validate_every=10)
    assert (result.best_value, result.best_step, result.stopped) == (None, 500, "max_steps")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: kl_terms.free_bits(0.0), "nats must be positive"),
        (lambda: kl_terms.free_bits(groups=0), "at least 1"),
        (lambda: kl_terms.capacity(-1.0), "must not be negative"),
        (lambda: kl_terms.geco(1.0, decay=1.0), "decay in"),
    ],
)
def test_impossible_settings_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()
