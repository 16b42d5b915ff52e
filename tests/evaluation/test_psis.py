"""Pareto-k against weights whose tail is known."""

from __future__ import annotations

import pytest
import torch

from latentfit.evaluation import pareto_k


@pytest.mark.parametrize("k", [0.2, 0.5, 0.7, 1.0])
def test_k_of_pareto_weights(k):
    generator = torch.Generator().manual_seed(0)
    # log of a Pareto(1 / k) variable is k times an exponential one
    log_w = k * torch.empty(4000, 200, dtype=torch.float64).exponential_(generator=generator)
    found = pareto_k(log_w)
    assert found.shape == (200,)
    # the prior of ten observations at 0.5 among 190 draws the mean toward 0.5 by a twentieth
    expected = (190 * k + 10 * 0.5) / 200
    assert abs(float(found.mean()) - expected) < 4 * float(found.std()) / 200**0.5 + 0.02


def test_bounded_weights_have_a_short_tail():
    generator = torch.Generator().manual_seed(1)
    w = torch.rand(4000, 50, generator=generator, dtype=torch.float64)
    assert float(pareto_k(w.log()).max()) < 0


def test_narrow_normal_proposals_are_caught_and_wide_ones_pass():
    # target N(0, 1), proposal N(0, s^2): weights have k = 1 - s^2 for s < 1, and are bounded for s > 1
    generator = torch.Generator().manual_seed(2)
    eps = torch.randn(5000, 100, generator=generator, dtype=torch.float64)

    def k(s):
        return float(pareto_k(0.5 * eps.square() - 0.5 * (s * eps).square()).mean())

    assert k(0.3) > 0.7
    assert 0.15 < k(0.8) < 0.55
    assert k(1.3) < 0.1


def test_shifts_change_nothing_and_other_dimensions_are_kept():
    log_w = torch.randn(3, 500, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    k = pareto_k(log_w, dim=1)
    assert k.shape == (3, 4)
    torch.testing.assert_close(pareto_k(log_w - 1e4, dim=1), k, rtol=0, atol=1e-6)


def test_equal_weights_are_no_tail_and_few_draws_no_answer():
    assert float(pareto_k(torch.zeros(100))) == 0
    assert bool(pareto_k(torch.randn(24)).isnan())
    assert bool(pareto_k(torch.randn(25)).isfinite())


def test_weights_of_zero_are_allowed():
    log_w = torch.full((100, 1), -torch.inf)
    log_w[:60] = torch.randn(60, 1, generator=torch.Generator().manual_seed(4))
    assert bool(pareto_k(log_w).isfinite().all())
