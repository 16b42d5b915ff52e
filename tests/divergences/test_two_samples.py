"""Sliced Wasserstein, the classifier test, precision and recall against what is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from latentfit.divergences import classifier_test, precision_recall_density_coverage, sliced_wasserstein
from latentfit.divergences.classifier import _upper_tail
from latentfit.divergences.wasserstein import squared_differences
from latentfit.errors import InputError

from .conftest import normal


@pytest.mark.parametrize(("n", "m"), [(20, 20), (20, 35), (12, 18)])
def test_one_dimension_is_the_integral_of_quantile_differences(n, m):
    """Both samples repeated up to a common number of rows have the same quantile functions."""
    a, b = normal(n, 1, 0), normal(m, 1, 1, 0.7)
    common = math.lcm(n, m)
    u, v = (np.repeat(np.sort(x.flatten().numpy()), common // len(x)) for x in (a, b))
    assert sliced_wasserstein(a, b) == pytest.approx(np.sqrt(np.mean((u - v) ** 2)), rel=1e-5)


def test_a_shift_is_its_length_over_the_root_of_the_dimension():
    """W_2^2 along u is (u'd)^2, whose mean over the sphere is |d|^2 / D; 3 % at 4,000 projections."""
    a = normal(200, 5, 0)
    d = torch.tensor([1.0, -2.0, 0.5, 0.0, 1.0])
    found = sliced_wasserstein(a, a + d, n_projections=4_000)
    assert found == pytest.approx((d.square().sum() / 5).sqrt().item(), rel=0.03)


@pytest.mark.parametrize("m", [9, 14])
def test_the_gradient_of_the_projections(m):
    z, t = normal(9, 3, 0, dtype=torch.float64).requires_grad_(), normal(m, 3, 1, dtype=torch.float64)
    directions = torch.nn.functional.normalize(normal(4, 3, 2, dtype=torch.float64), dim=1)
    assert torch.autograd.gradcheck(lambda x: squared_differences(x, t, directions), z)


def test_the_tail_is_scipys():
    from scipy.stats import hypergeom

    for hits, called, n, m in ((60, 100, 90, 110), (0, 10, 20, 20), (20, 20, 20, 30), (35, 80, 40, 50)):
        wanted = hypergeom.sf(hits - 1, n + m, n, called)
        assert _upper_tail(hits, called, n, m) == pytest.approx(wanted, rel=1e-9)


def test_the_classifier_holds_its_level_and_sees_a_bend():
    """60 nulls: at most 10 rejections at 5 % with probability 0.9997; a ring against a Gaussian of its moments."""
    nulls = [
        classifier_test(normal(40, 2, 2 * i), normal(60, 2, 2 * i + 1), max_steps=10, random_state=i) for i in range(60)
    ]
    assert sum(test.p_value <= 0.05 for test in nulls) <= 10
    inside = [low <= test.statistic <= high for test in nulls for low, high in [test.null_interval]]
    assert np.mean(inside) > 0.85
    assert all(0.05 < high - low < 0.6 for low, high in (test.null_interval for test in nulls))  # 100 rows: 0.2
    ring = torch.nn.functional.normalize(normal(600, 2, 0), dim=1) * math.sqrt(2)
    found = classifier_test(ring, normal(600, 2, 1), max_steps=300)
    assert found.statistic > 0.8
    assert found.p_value < 1e-6


def test_precision_and_recall_are_the_definition():
    a, b = normal(60, 3, 0), normal(50, 3, 1, 0.5)
    k = 3
    d = {key: torch.cdist(x.double(), y.double()) for key, (x, y) in {"aa": (a, a), "bb": (b, b), "ab": (a, b)}.items()}
    radius_a, radius_b = (d[key].kthvalue(k + 1, dim=1).values for key in ("aa", "bb"))
    inside = d["ab"] < radius_a[:, None]
    found = precision_recall_density_coverage(a, b, k)
    assert found.precision == pytest.approx(inside.any(0).double().mean().item())
    assert found.recall == pytest.approx((d["ab"] < radius_b).any(1).double().mean().item())
    assert found.density == pytest.approx(inside.double().sum(0).mean().item() / k)
    assert found.coverage == pytest.approx((d["ab"].min(1).values < radius_a).double().mean().item())


def test_too_few_rows_are_refused():
    with pytest.raises(InputError, match="k must be at least 1 and below"):
        precision_recall_density_coverage(normal(5, 2, 0), normal(9, 2, 1))
    with pytest.raises(InputError, match="at least 8 rows"):
        classifier_test(normal(5, 2, 0), normal(9, 2, 1))
    with pytest.raises(InputError, match="n_projections"):
        sliced_wasserstein(normal(5, 2, 0), normal(9, 2, 1), n_projections=0)
