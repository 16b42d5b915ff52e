"""The prior gap against mismatches that are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from latentfit.data.synthetic import gaussian_mixture_latents
from latentfit.errors import CapabilityError
from latentfit.evaluation import (
    Codes,
    Estimate,
    climb,
    cross_fit,
    defensive_weight,
    plug_in_mismatch,
    prior_gap,
    prior_gap_per_row,
)
from latentfit.evaluation.gap import log_ratios, mixture_log_prob
from latentfit.model.contracts import Prior
from latentfit.priors import EmpiricalPrior, MixturePrior, StandardNormalPrior


class Known(Prior):
    """The exact q(z) of synthetic latents."""

    def __init__(self, latents):
        super().__init__(len(latents.rotation))
        self.latents = latents

    def log_prob(self, z, context=None):
        return self.latents.log_q(z)

    def sample(self, n, context=None, generator=None):
        return self.latents.sample(n)


def no_mismatch(n: int, dim: int, std: float, seed: int) -> Codes:
    """Codes whose q(z) is N(0, I) exactly."""
    rng = np.random.default_rng(seed)
    mean = math.sqrt(1 - std**2) * rng.standard_normal((n, dim))
    return Codes.of(mean.astype(np.float32), std=np.full((n, dim), std, np.float32))


def test_with_the_true_density_the_gap_is_the_mismatch():
    latents = gaussian_mixture_latents(4000, 3, rotate=True, dtype=torch.float64)
    codes = Codes.of(latents.mean, std=latents.std)
    gap = prior_gap(Known(latents), StandardNormalPrior(3), codes, random_state=1)
    assert abs(gap.value - latents.mismatch) < 4 * gap.std_error
    assert gap.std_error < 0.03


def test_the_prior_itself_has_a_gap_of_zero():
    codes = no_mismatch(50, 2, 0.5, 0)
    assert prior_gap(StandardNormalPrior(2), StandardNormalPrior(2), codes).value == 0


def test_the_error_counts_rows_not_draws():
    latents = gaussian_mixture_latents(200, 2, dtype=torch.float64)
    codes = Codes.of(latents.mean, std=0.01 * latents.std)
    args = Known(latents), StandardNormalPrior(2), codes
    few, many = (prior_gap(*args, n_draws=n).std_error for n in (1, 16))
    assert many == pytest.approx(few, rel=0.05)
    assert prior_gap_per_row(*args, n_draws=3).shape == (200,)


def test_copied_rows_are_no_news_when_they_are_grouped():
    latents = gaussian_mixture_latents(100, 2, dtype=torch.float64)
    r, p = Known(latents), StandardNormalPrior(2)
    mean = latents.mean.repeat_interleave(6, 0)
    std = 1e-6 * torch.ones_like(mean)
    labels = np.repeat(np.arange(100), 6)
    grouped = prior_gap(r, p, Codes.of(mean, std=std, groups=labels))
    once = prior_gap(r, p, Codes.of(latents.mean, std=std[:100]))
    assert grouped.std_error == pytest.approx(once.std_error, rel=1e-3)
    assert prior_gap(r, p, Codes.of(mean, std=std)).std_error < 0.5 * once.std_error


def test_draws_one_after_the_other_are_those_of_sample():
    codes = no_mismatch(37, 3, 0.5, 0)
    together = codes.sample(3, torch.Generator().manual_seed(4))
    first = codes.sample(1, torch.Generator().manual_seed(4))
    assert torch.equal(together[:1], first)
    r, p = Shifted(3, 0.5), StandardNormalPrior(3)
    expected = (r.log_prob(together) - p.log_prob(together)).double().numpy()
    np.testing.assert_allclose(log_ratios(r, p, codes, n_draws=3, random_state=4), expected, atol=1e-6)


def test_inexact_densities_have_no_certificate():
    sampler = EmpiricalPrior(2, lambda n, generator=None: torch.zeros(n, 2))
    with pytest.raises(CapabilityError, match="an exact or an unbiased density; that of 'empirical' is 'none'"):
        prior_gap(sampler, StandardNormalPrior(2), no_mismatch(10, 2, 0.5, 0))


class Shifted(StandardNormalPrior):
    """N(shift, I)."""

    def __init__(self, latent_dim: int, shift: float) -> None:
        super().__init__(latent_dim)
        self.shift = shift

    def log_prob(self, z, context=None):
        return super().log_prob(z - self.shift)


def test_the_defensive_weight_is_the_mixing_proportion():
    # half of the rows come from r, half from p: the best weight is a half
    rng = np.random.default_rng(0)
    mean = rng.standard_normal((20_000, 1)) + 3.0 * (np.arange(20_000) % 2)[:, None]
    codes = Codes.of(mean, std=np.full_like(mean, 1e-6))
    assert defensive_weight(Shifted(1, 3.0), StandardNormalPrior(1), codes) == pytest.approx(0.5, abs=0.02)


def test_the_weight_reaches_both_ends():
    codes = no_mismatch(2000, 2, 0.5, 1)
    assert defensive_weight(Shifted(2, 5.0), StandardNormalPrior(2), codes) == 0
    assert defensive_weight(StandardNormalPrior(2), Shifted(2, 5.0), codes) == 0.99


def test_the_plug_in_number_invents_a_mismatch_and_says_that_it_is_saturated():
    codes = no_mismatch(5000, 40, math.sqrt(0.3), 0)
    p = StandardNormalPrior(40)
    plug_in = plug_in_mismatch(codes, p)
    assert plug_in.value == pytest.approx(15.6, abs=0.3)
    assert plug_in.saturated
    train, validation, selection = (codes[slice(*part)] for part in ((0, 3000), (3000, 3500), (3500, 5000)))
    ladder = climb(train, validation, selection, p, rungs=("learned_gaussian", "mixture"), max_steps=10)
    assert ladder.prior_gap.interval[0] <= 0
    assert ladder.chosen is ladder.nothing


def test_the_plug_in_number_is_right_where_it_can_be():
    latents = gaussian_mixture_latents(4000, 1, code_std=0.5, dtype=torch.float64)
    plug_in = plug_in_mismatch(Codes.of(latents.mean, std=latents.std), StandardNormalPrior(1))
    assert plug_in.value == pytest.approx(latents.mismatch, abs=0.05)
    assert not plug_in.saturated


def test_the_mixture_by_matrix_products_is_the_mixture():
    rng = np.random.default_rng(0)
    z, mean, std = (torch.from_numpy(rng.random((n, 3)) + 0.1) for n in (7, 5, 5))
    direct = torch.distributions.Normal(mean, std).log_prob(z[:, None]).sum(-1).logsumexp(1) - math.log(5)
    torch.testing.assert_close(mixture_log_prob(z, mean, std), direct)


def false_alarms(repeats: int, rungs: tuple[str, ...], n: int) -> tuple[int, int]:
    """How often a 95 % bound claims more than the mismatch there is: with a mixture's, and with none."""
    above = invented = 0
    for seed in range(repeats):
        latents = gaussian_mixture_latents(3 * n, 2, random_state=seed)
        codes = Codes.of(latents.mean, std=latents.std)
        parts = [codes[slice(*part)] for part in ((0, n), (n, n + n // 2), (n + n // 2, 3 * n))]
        ladder = climb(*parts, StandardNormalPrior(2), rungs=rungs, random_state=seed, max_steps=30)
        above += ladder.prior_gap.interval[0] > latents.mismatch
        null = no_mismatch(3 * n, 2, 0.3, seed)
        parts = [null[slice(*part)] for part in ((0, n), (n, n + n // 2), (n + n // 2, 3 * n))]
        ladder = climb(*parts, StandardNormalPrior(2), rungs=rungs, random_state=seed, max_steps=30)
        invented += ladder.prior_gap.interval[0] > 0
    return above, invented


def test_the_certificate_keeps_its_level():
    above, invented = false_alarms(40, ("learned_gaussian",), 200)
    # binomial(40, 0.025) exceeds 4 in fewer than 1 of 200 runs
    assert above <= 4
    assert invented <= 4


@pytest.mark.slow
def test_the_certificate_keeps_its_level_in_200_repeats():
    above, invented = false_alarms(200, ("learned_gaussian", "mixture"), 400)
    # binomial(200, 0.025) exceeds 11 in fewer than 1 of 100 runs
    assert above <= 11
    assert invented <= 11


def test_all_rungs_are_tried_judged_on_the_same_draws_and_the_smallest_sufficient_is_chosen():
    latents = gaussian_mixture_latents(2000, 2, component_std=0.2)
    codes = Codes.of(latents.mean, std=latents.std)
    parts = [codes[slice(*part)] for part in ((0, 1000), (1000, 1300), (1300, 2000))]
    seen = []
    ladder = climb(
        *parts,
        StandardNormalPrior(2),
        max_steps=60,
        progress=lambda name, step, steps: seen.append(name),
    )
    sizes = [rung.n_parameters for rung in ladder.candidates]
    assert sizes == sorted(sizes)
    assert ladder.candidates[0] is ladder.nothing
    assert {"mixture", "realnvp"} <= set(seen)
    assert all(rung.per_row.shape == (700,) for rung in ladder.rungs)
    # the first two moments of q(z) are N(0, I)'s plus a little: only the shape can be won
    assert ladder["mixture"].gap.value > ladder["learned_gaussian"].gap.value + 0.2
    assert ladder.chosen.name == "mixture"
    short = Estimate.of(ladder.best.per_row - ladder.chosen.per_row)
    assert short.value <= max(short.std_error, 0.1)
    low, high = ladder.best.gap.interval
    assert ladder.prior_gap.interval[0] < low
    assert ladder.prior_gap.interval[1] > high


def test_a_flow_stands_on_the_mixture_below_it():
    latents = gaussian_mixture_latents(900, 2, component_std=0.2)
    codes = Codes.of(latents.mean, std=latents.std)
    parts = [codes[slice(*part)] for part in ((0, 500), (500, 600), (600, 900))]
    ladder = climb(*parts, StandardNormalPrior(2), rungs=("mixture", "realnvp"), max_steps=8)
    mixture, flow = (ladder[name].prior.base for name in ("mixture", "realnvp"))
    assert isinstance(flow.base, MixturePrior)
    assert flow.base.n_components == mixture.n_components
    assert ladder["realnvp"].gap.value > ladder["mixture"].gap.value - 0.1
    alone = climb(*parts, StandardNormalPrior(2), rungs=("realnvp",), max_steps=2)
    assert isinstance(alone["realnvp"].prior.base.base, StandardNormalPrior)


def test_defensive_rungs_never_lose_more_than_the_anchor_allows():
    codes = no_mismatch(900, 5, 0.3, 0)
    parts = [codes[slice(*part)] for part in ((0, 30), (30, 400), (400, 900))]
    ladder = climb(*parts, StandardNormalPrior(5), rungs=("learned_gaussian",))
    rung = ladder["learned_gaussian"]
    assert rung.per_row.min() >= math.log1p(-rung.weight) - 1e-6
    assert rung.gap.value > -0.1  # thirty rows overfit badly without p beside


def test_cross_fitting_judges_every_row_by_the_other_half_and_keeps_groups_together():
    latents = gaussian_mixture_latents(600, 2, component_std=0.2)
    labels = np.repeat(np.arange(150), 4)
    codes = Codes.of(latents.mean, std=latents.std, groups=labels)
    ladder = cross_fit(codes, StandardNormalPrior(2), rungs=("mixture",), max_steps=30)
    assert ladder.cross_fitted
    gap = ladder["mixture"].gap
    assert gap.value == pytest.approx(ladder["mixture"].per_row.mean())
    assert abs(gap.value - latents.mismatch) < 4 * gap.std_error + 0.15
