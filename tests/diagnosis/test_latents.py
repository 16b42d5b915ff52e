"""What N(0, I) costs, from latents alone."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from latentfit.data.synthetic import gaussian_mixture_latents
from latentfit.diagnosis.latents import diagnose_latents
from latentfit.errors import InputError


def latents(n: int = 800, seed: int = 0):
    return gaussian_mixture_latents(n, 2, component_std=0.2, random_state=seed)


def test_the_gap_is_a_lower_bound_close_to_the_mismatch():
    test, train = latents(1500, 0), latents(1500, 1)
    dx = diagnose_latents(test.mean, std=test.std, train=(train.mean, train.std), depth="quick")
    assert not dx.cross_fitted
    assert dx.prior_gap.interval[0] < test.mismatch
    assert abs(dx.prior_gap.value - test.mismatch) < 0.1 + 4 * dx.prior_gap.std_error
    assert dx.kl.value > dx.prior_gap.value
    assert int(dx.active_units) == 2
    assert [f.code for f in dx.findings][:2] == ["LF-COLLAPSE-01", "LF-PRIOR-01"]


def test_without_training_latents_halves_are_swapped_and_it_is_said():
    data = latents()
    dx = diagnose_latents(data.mean, std=data.std, depth="quick", max_steps=40)
    assert dx.cross_fitted
    assert dx.n_rows == len(dx.ladder.best.per_row) == 800
    prior = next(f for f in dx.findings if f.code.startswith("LF-PRIOR"))
    assert prior.parameters["cross_fitted"] is True


def test_all_spreads_say_the_same():
    data = latents(200)
    mean, std = data.mean.numpy(), data.std.numpy()
    results = [
        diagnose_latents(mean, **spread, depth="quick", max_steps=5).prior_gap.value
        for spread in ({"std": std}, {"var": std**2}, {"logvar": 2 * np.log(std)})
    ]
    assert results == pytest.approx([results[0]] * 3, abs=1e-3)


def test_nothing_is_found_where_there_is_nothing_and_dead_units_are():
    rng = torch.Generator().manual_seed(0)
    mean = torch.randn(600, 4, generator=rng) * torch.tensor([0.8, 0.0, 0.0, 0.0])
    std = torch.tensor([0.6, 1.0, 1.0, 1.0]).expand(600, 4)
    dx = diagnose_latents(mean, std=std, depth="quick", max_steps=20)
    codes = {f.code: f.status for f in dx.findings}
    assert codes["LF-PRIOR-02"] == "ok"
    assert codes["LF-COLLAPSE-01"] == "know"
    assert dx.prior_gap.interval[0] <= 0


def test_the_summary_speaks_both_languages_and_json_is_json():
    data = latents(200)
    for lang, word in (("en", "active"), ("vi", "chiều")):
        dx = diagnose_latents(data.mean, std=data.std, depth="quick", max_steps=5, lang=lang)
        assert word in dx.summary()
        assert "mixture" in str(dx)
    facts = json.loads(json.dumps(dx.to_dict(), allow_nan=False))
    assert facts["n_rows"] == 200
    assert facts["findings"][0]["parameters"]["active"] == facts["active_units"]  # the evidence too
    assert facts["notes"] == []


def test_a_log_variance_is_not_taken_for_a_standard_deviation():
    mean = torch.zeros(100, 2)
    with pytest.raises(InputError, match="looks like a log-variance"):
        diagnose_latents(mean, std=-torch.ones(100, 2))
    with pytest.raises(InputError, match=r"exactly one of std, var, logvar \(got std and var\)"):
        diagnose_latents(mean, std=torch.ones(100, 2), var=torch.ones(100, 2))
    with pytest.raises(InputError, match="got none"):
        diagnose_latents(mean)
    with pytest.raises(InputError, match="depth must be"):
        diagnose_latents(mean, std=torch.ones(100, 2), depth="deep")
    with pytest.raises(InputError, match="they must agree"):
        diagnose_latents(mean, std=torch.ones(100, 2), train=(torch.zeros(50, 3), torch.ones(50, 3)))
