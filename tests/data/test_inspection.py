from __future__ import annotations

import numpy as np
import pytest

from latentfit.data.inspection import inspect, suggest_likelihood
from latentfit.data.sources import load
from latentfit.errors import InputError

rng = np.random.default_rng(0)
LIKERT = rng.choice(np.arange(1, 6), p=[0.3, 0.3, 0.2, 0.18, 0.02], size=(500, 8))
COUNTS = rng.negative_binomial(2, 0.05, (300, 20))

CASES = {
    "0/1 integers": (rng.integers(0, 2, (50, 4)), None, "binary", "bernoulli"),
    "0/1 floats": (rng.integers(0, 2, (50, 4)).astype(float), None, "binary", "bernoulli"),
    "booleans": (rng.random((50, 4)) < 0.3, None, "binary", "bernoulli"),
    "8-bit images": (
        rng.integers(0, 256, (20, 8, 8), dtype=np.uint8),
        None,
        "grey",
        "discretised_logistic(256)",
    ),
    "8-bit floats": (
        np.append(rng.integers(0, 256, 99), 255.0).reshape(2, 50),
        None,
        "grey",
        "discretised_logistic(256)",
    ),
    "dark 8-bit images": (
        rng.integers(0, 200, (20, 8, 8), dtype=np.uint8),
        None,
        "grey",
        "discretised_logistic(256)",
    ),
    "mnist": (rng.integers(0, 256, (20, 28, 28), dtype=np.uint8), "mnist", "grey", "bernoulli"),
    "bounded": (rng.binomial(16, 0.8, (200, 6)), None, "bounded_counts", "binomial(16)"),
    "a rating scale with few fives": (LIKERT, None, "bounded_counts", "binomial(5)"),
    "overdispersed counts": (COUNTS, None, "counts", "negative_binomial"),
    "small Poisson counts": (rng.poisson(2.0, (300, 5)), None, "counts", "negative_binomial"),
    "sparse counts": (rng.poisson(0.1, (500, 50)), None, "counts", "negative_binomial"),
    "unit interval": (rng.random((50, 4)), None, "unit", "normal"),
    "pictures in the unit interval": (rng.random((50, 4, 4)), None, "unit", "continuous_bernoulli"),
    "pixels as columns": (rng.random((50, 9)).clip(0.2, 0.9) / 0.7 - 2 / 7, None, "unit", "continuous_bernoulli"),
    "small reals": (1e-6 * rng.random((50, 4)), None, "real", "normal"),
    "reals too large for float32 to tell their fractions": (1e9 * rng.random((50, 4)), None, "real", "normal"),
    "whole numbers beyond float32": (rng.integers(0, 10**9, (50, 4)), None, "real", "normal"),
    "reals": (rng.standard_normal((50, 4)), None, "real", "normal"),
    "negative integers": (rng.integers(-5, 6, (50, 4)), None, "integers", "normal"),
}


@pytest.mark.parametrize("case", CASES, ids=list(CASES))
def test_kind_and_likelihood_follow_the_numbers(case):
    x, name, kind, likelihood = CASES[case]
    assert inspect(x).kind == kind
    suggestion = suggest_likelihood(x, name)
    assert str(suggestion) == likelihood
    assert suggestion.binarise == (name == "mnist")
    assert suggestion.reason


def test_digits_are_counts_of_16():
    suggestion = suggest_likelihood(load("digits").x, "digits")
    assert (suggestion.likelihood, suggestion.args) == ("binomial", {"n": 16})
    assert suggestion.reason == "counts of 0..16"
    assert suggestion.alternatives == ["discretised_logistic", "categorical", "normal"]


def test_what_is_seen_is_told():
    seen = inspect(np.array([[[0, 2], [4, 0]]] * 3))
    assert (seen.minimum, seen.maximum, seen.integral, seen.is_image, seen.zero_share) == (
        0,
        4,
        True,
        True,
        0.5,
    )


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((0, 3)), "Expected an array of numbers"),
        (np.array([["a"]]), "Expected an array of numbers"),
        (np.array([[np.nan, 1.0]]), "NaN or infinite entries"),
        (np.array([[np.inf, 1.0]]), "NaN or infinite entries"),
    ],
)
def test_no_numbers_no_suggestion(x, message):
    with pytest.raises(InputError, match=message):
        suggest_likelihood(x)
