"""Holes: the share's interval, where q(z), r and p are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

from latentfit.diagnosis.verdicts import holes_finding
from latentfit.evaluation import Codes, prior_holes
from latentfit.priors import LearnedGaussianPrior, StandardNormalPrior


def gaussian(std: float) -> LearnedGaussianPrior:
    prior = LearnedGaussianPrior(1).double()
    prior.log_diagonal.data.fill_(-math.log(std))
    return prior


def codes(n: int, seed: int, groups: int = 0, tied: float = 0.7) -> Codes:
    """Rows whose aggregate is N(0, 1); in groups a share `tied` of the variance is common to a group."""
    rng = np.random.default_rng(seed)
    mean, label = np.sqrt(1 - 0.01) * rng.normal(size=n), None
    if groups:
        label = np.arange(n) % groups
        mean = np.sqrt(tied) * rng.normal(size=groups)[label] + np.sqrt(1 - tied - 0.01) * rng.normal(size=n)
    return Codes.of(mean[:, None], std=np.full((n, 1), 0.1), groups=label)


def true_share(std: float) -> float:
    return 2 * (1 - norm.cdf(norm.ppf(0.995) / std))


@pytest.mark.parametrize(("n", "std"), [(200, 1.5), (1000, 1.5), (1000, 1.0)])
def test_the_interval_covers_the_true_share(n, std):
    """95 % of intervals do, or more: 60 runs miss more than 7 times in fewer than 1 of 100 trials."""
    missed = 0
    for seed in range(60):
        low, high = prior_holes(StandardNormalPrior(1), gaussian(std), codes(n, seed), random_state=seed).share.interval
        missed += not low <= true_share(std) <= high
    assert missed <= 7


def test_the_interval_heeds_groups():
    """Of 30 groups of 30 tied rows; with the groups ignored 32 of 60 intervals miss."""
    missed = {True: 0, False: 0}
    for seed in range(60):
        given = codes(900, seed, groups=30)
        for heeded in missed:
            held_out = given if heeded else Codes(given.mean, given.std)
            share = prior_holes(StandardNormalPrior(1), gaussian(1.5), held_out, random_state=seed).share
            missed[heeded] += not share.interval[0] <= true_share(1.5) <= share.interval[1]
    assert missed[True] <= 9  # binomial(60, 0.07): 1 trial in 100
    assert missed[False] >= 15


def test_few_rows_do_not_find_holes_where_there_are_none():
    """With 10 rows the smallest stands for the 1 % quantile, and some 9 % of q(z) itself lies below it."""
    p = StandardNormalPrior(1)
    shares = [prior_holes(p, p, codes(10, seed), random_state=seed) for seed in range(30)]
    assert np.mean([float(holes.share) for holes in shares]) > 0.05
    assert all(holes.share.interval[0] == 0 for holes in shares)
    assert {holes_finding(holes.share, holes.n_rows).status for holes in shares} <= {"ok", "know"}
    wide = prior_holes(p, gaussian(3.0), codes(1000, 0))
    assert holes_finding(wide.share, wide.n_rows).status == "improve"


def test_samples_and_codes_are_drawn_apart():
    """The same noise in both would make a sample of N(0, 1) the code of a row at 0."""
    p = StandardNormalPrior(1)
    held_out = Codes(torch.zeros(500, 1), torch.ones(500, 1))
    holes = prior_holes(p, p, held_out, n_samples=500)
    assert not np.isin(holes.log_r_samples, holes.log_r_codes).any()
