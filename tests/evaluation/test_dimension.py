"""Intrinsic dimension where it is known."""

from __future__ import annotations

import numpy as np
import pytest

from latentfit.errors import InputError
from latentfit.evaluation import Codes, intrinsic_dimension


def embedded(rows: np.ndarray) -> np.ndarray:
    """Rows (N, d) on a rotated plane in 20 dimensions."""
    basis = np.linalg.qr(np.random.default_rng(1).standard_normal((20, 20)))[0]
    return rows @ basis[: rows.shape[1]] + 3.0


@pytest.mark.parametrize(("neighbours", "spread"), [(2, 0.3), (20, 0.15)])
def test_a_plane_has_two_dimensions(neighbours, spread):
    found = intrinsic_dimension(embedded(np.random.default_rng(0).random((2000, 2))), neighbours=neighbours)
    assert found.value == pytest.approx(2, abs=spread)
    assert 0.005 < found.std_error < spread / 2


def test_a_cube_has_a_little_less_than_five_and_noise_in_many_dimensions_far_less():
    rng = np.random.default_rng(0)
    assert 4.2 < intrinsic_dimension(embedded(rng.random((2000, 5)))).value < 5.2
    high = intrinsic_dimension(rng.standard_normal((2000, 20)))
    assert 15 < high.value < 19  # the bias that the docstring states
    assert high.interval[1] < 20


def test_the_error_is_the_spread_over_data_sets():
    found = [intrinsic_dimension(np.random.default_rng(seed).standard_normal((400, 3))) for seed in range(60)]
    spread = np.std([estimate.value for estimate in found], ddof=1)
    error = np.sqrt(np.mean([estimate.std_error**2 for estimate in found]))
    # a standard deviation of 60 has a relative error of 0.09
    assert error == pytest.approx(spread, rel=0.35)


def test_of_codes_the_means_count_and_copies_do_not():
    rng = np.random.default_rng(0)
    mean = embedded(rng.random((500, 2)))
    alone = intrinsic_dimension(mean)
    assert intrinsic_dimension(Codes.of(mean, std=np.ones_like(mean))) == alone
    assert intrinsic_dimension(np.repeat(mean, 3, 0)) == alone


def test_what_has_no_dimension_is_refused():
    with pytest.raises(InputError, match="1 of them distinct"):
        intrinsic_dimension(np.ones((100, 3)))
    with pytest.raises(InputError, match="not finite"):
        intrinsic_dimension(np.full((100, 3), np.nan))
    with pytest.raises(InputError, match="neighbours must be between 2 and 39"):
        intrinsic_dimension(np.random.default_rng(0).random((100, 3)), neighbours=1)
