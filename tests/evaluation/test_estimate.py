"""Numbers with errors print, average and survive JSON as they should."""

from __future__ import annotations

import math

import numpy as np
import pytest

from latentfit.errors import InputError
from latentfit.evaluation import Estimate


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (1.57, 0.02, "1.57 ± 0.02"),
        (38.2, 0.6, "38.2 ± 0.6"),
        (0.41, 0.01, "0.41 ± 0.01"),
        (1.5678, 0.0961, "1.6 ± 0.1"),
        (-85.31, 1.24, "-85.3 ± 1.2"),
        (1.0, 1e-7, "1.0000 ± 0.0000"),
        (0.0, 0.0, "0.0 ± 0.0"),
        (3.21, math.nan, "3.2"),
    ],
)
def test_one_significant_figure_of_the_error_is_shown(value, error, text):
    assert str(Estimate(value, error, (value, value))) == text


def test_mean_error_and_interval_are_the_textbook_ones():
    from scipy.stats import sem, t

    values = np.random.default_rng(0).normal(size=50)
    e = Estimate.of(values)
    assert e.value == pytest.approx(values.mean())
    assert e.std_error == pytest.approx(sem(values))
    assert e.interval == pytest.approx(t.interval(0.95, 49, values.mean(), sem(values)))


def test_groups_of_one_change_nothing_and_copies_add_no_information():
    values = np.random.default_rng(1).normal(size=40)
    plain = Estimate.of(values)
    assert Estimate.of(values, groups=np.arange(40)).std_error == pytest.approx(plain.std_error)
    copied = Estimate.of(np.repeat(values, 5), groups=np.repeat(np.arange(40), 5))
    assert copied.std_error == pytest.approx(plain.std_error)
    assert copied.interval == pytest.approx(plain.interval)


def test_equal_weights_change_nothing_and_zero_weights_drop_rows():
    values = np.random.default_rng(2).normal(size=30)
    assert Estimate.of(values, weights=np.full(30, 7.0)).std_error == pytest.approx(Estimate.of(values).std_error)
    weights = np.r_[np.ones(20), np.zeros(10)]
    assert Estimate.of(values, weights=weights).value == pytest.approx(values[:20].mean())


def test_json_and_float():
    e = Estimate.of([1.0, 2.0, 4.0])
    assert Estimate.from_dict(e.to_dict()) == e
    assert float(e) == e.value


def test_what_cannot_be_averaged_is_refused():
    with pytest.raises(InputError, match="no values"):
        Estimate.of([])
    with pytest.raises(InputError, match="groups has shape"):
        Estimate.of([1.0, 2.0], groups=[1])


def test_rows_of_weight_0_are_not_counted():
    values, weights = [1.0, 2.0, 4.0, 100.0, 7.0], [1.0, 2.0, 1.0, 0.0, 0.0]
    assert Estimate.of(values, weights=weights) == Estimate.of(values[:3], weights=weights[:3])
    groups = ["a", "b", "b", "c", "d"]
    assert Estimate.of(values, weights=weights, groups=groups) == Estimate.of(
        values[:3], weights=weights[:3], groups=groups[:3]
    )
    for wrong in ([0.0] * 5, [-1.0, 1, 1, 1, 1]):
        with pytest.raises(InputError, match="weights must be 0 or more"):
            Estimate.of(values, weights=wrong)


def test_small_numbers_keep_their_digits():
    assert str(Estimate(2e-6, 1e-7, (1.8e-6, 2.2e-6))) == "2.0e-06 ± 1e-07"
    assert str(Estimate(0.0, 0.0, (0.0, 0.0))) == "0.0 ± 0.0"
    assert str(Estimate(1.5, 1e-7, (1.5, 1.5))) == "1.5000 ± 0.0000"
