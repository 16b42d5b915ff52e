"""The Frechet distance against the matrix square root, and its laws."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch

from latentfit.divergences import frechet_distance
from latentfit.errors import InputError


def oracle(a, b):
    """The textbook formula with scipy's matrix square root."""
    a, b = a.numpy(), b.numpy()
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    root = scipy.linalg.sqrtm(cov_a @ cov_b)
    return np.square(a.mean(0) - b.mean(0)).sum() + np.trace(cov_a + cov_b - 2 * root.real)


def sample(n, dim, seed):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    return torch.randn(n, dim, generator=generator, dtype=torch.float64) @ mix + seed


@pytest.mark.parametrize(("n", "m", "dim"), [(50, 70, 5), (300, 200, 32)])
def test_agrees_with_sqrtm(n, m, dim):
    a, b = sample(n, dim, 1), sample(m, dim, 2)
    assert frechet_distance(a, b) == pytest.approx(oracle(a, b), rel=1e-8)


def test_fewer_rows_than_dimensions():
    """On a common line the distance is that of two scalar Gaussians, whatever the space around it."""
    a, b = sample(5, 1, 1), sample(6, 1, 2)
    direction = torch.nn.functional.normalize(torch.ones(1, 20, dtype=torch.float64))
    wanted = ((a.mean() - b.mean()).square() + (a.std() - b.std()).square()).item()
    assert frechet_distance(a @ direction, b @ direction) == pytest.approx(wanted, rel=1e-9)


def test_is_zero_to_itself_symmetric_and_quadratic_in_the_scale():
    a, b = sample(40, 6, 3), sample(30, 6, 4)
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-9)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-10)
    assert frechet_distance(3 * a, 3 * b) == pytest.approx(9 * frechet_distance(a, b), rel=1e-10)


@pytest.mark.parametrize("bad", [torch.zeros(5), torch.zeros(1, 3), torch.zeros(5, 2)])
def test_wrong_shapes_are_named(bad):
    with pytest.raises(InputError, match="two samples"):
        frechet_distance(bad, torch.zeros(5, 3))


def test_what_is_not_finite_is_refused():
    with pytest.raises(InputError, match="not finite"):
        frechet_distance(torch.full((5, 3), torch.nan), torch.zeros(5, 3))
