"""The knee: its rule, and a run that finds it."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import latentfit as lf
from latentfit.comparison.tune import best, knee
from latentfit.errors import InputError
from latentfit.training.rng import isolated_rng


@given(st.lists(st.floats(0, 5), min_size=2, max_size=10))
def test_the_knee_is_after_the_least_gap_and_before_the_first_that_grew(gaps):
    at, least = knee(gaps), min(gaps)
    start = gaps.index(least)
    assert start <= at < len(gaps)
    assert all(gap <= least + 0.1 for gap in gaps[start : at + 1])
    assert at == len(gaps) - 1 or gaps[at + 1] > least + 0.1


def test_high_gaps_of_an_underfit_start_are_no_knee():
    assert knee([0.7, 0.55, 0.5, 0.55, 0.58, 0.7, 1.0]) == 4


def test_the_best_is_the_nearest_to_one_of_those_that_cannot_be_told_apart():
    rows = np.random.default_rng(0).normal(size=400)
    noise = np.random.default_rng(1).normal(size=400)
    noise -= noise.mean()
    elbos = [rows - 1, rows - 0.001 + 0.1 * noise, rows, rows - 0.5]
    assert best((4.0, 1.0, 0.5, 0.25), elbos) == 1
    assert best((4.0, 2.0, 0.5, 0.25), [rows - 1, rows - 0.1, rows, rows - 0.5]) == 2


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(500, 3, generator=generator) @ torch.randn(3, 8, generator=generator) + 0.3 * torch.randn(
        500, 8, generator=generator
    )


def vae():
    with isolated_rng(0):
        return lf.VAEModule(
            encoder=lf.networks.create("mlp", in_shape=8, out_shape=6, hidden=[16]),
            decoder=lf.networks.create("mlp", in_shape=3, out_shape=8, hidden=[16]),
            latent_dim=3,
            likelihood=lf.likelihoods.create("normal", scale=0.3),
        )


def test_a_run_leaves_the_model_and_the_random_state_alone(data):
    module, before = vae(), torch.get_rng_state()
    weights = [p.clone() for p in module.parameters()]
    a, b = (lf.tune_beta(module, data, betas=(4.0, 1.0, 0.1), max_steps=80) for _ in range(2))
    assert all(torch.equal(p, q) for p, q in zip(module.parameters(), weights, strict=True))
    assert torch.equal(before, torch.get_rng_state())
    assert (a.beta, a.knee, [g.value for g in a.gaps]) == (b.beta, b.knee, [g.value for g in b.gaps])
    assert a.steps == 80
    assert a.beta in a.betas
    assert str(a).count("\n") == 3
    assert a.knee in a.betas
    assert str(a).count("best") == 1
    assert str(a).count("knee") == a.found


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"betas": (1.0, 2.0)}, "positive and falling"),
        ({"betas": (1.0, 0.0)}, "positive and falling"),
        ({"max_steps": 5}, "too few"),
        ({"held_out_fraction": 1.0}, "between 0 and 1"),
    ],
)
def test_impossible_runs_are_refused(data, arguments, message):
    with pytest.raises(InputError, match=message):
        lf.tune_beta(vae(), data, **arguments)
