from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentfit.data.splits import MNIST_FRACTIONS, PARTS, cross_fit, split_rows
from latentfit.errors import DataWarning, InputError


def parts(splits):
    return [getattr(splits, part) for part in PARTS]


def covers(pieces, n):
    joined = np.concatenate(pieces)
    return len(joined) == n and np.array_equal(np.sort(joined), np.arange(n))


def test_digits_are_split_as_published():
    assert str(split_rows(1797)) == "1,078 train, 180 validation, 180 selection, 359 test"


def test_mnist_keeps_its_test_rows():
    is_test = np.arange(70_000) >= 60_000
    splits = split_rows(70_000, is_test=is_test, fractions=MNIST_FRACTIONS)
    assert list(splits.sizes().values()) == [50_000, 5_000, 5_000, 10_000]
    assert np.array_equal(splits.test, np.arange(60_000, 70_000))


@given(
    n=st.integers(50, 400),
    raw=st.lists(st.floats(0.05, 1.0), min_size=4, max_size=4),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=60, deadline=None)
def test_parts_are_disjoint_cover_everything_and_have_their_share(n, raw, seed):
    fractions = np.array(raw) / sum(raw)
    splits = split_rows(n, fractions=fractions, random_state=seed)
    assert covers(parts(splits), n)
    for part, fraction in zip(parts(splits), fractions, strict=True):
        assert np.all(np.diff(part) > 0)
        assert abs(len(part) - fraction * n) < 2


@given(data=st.data(), n=st.integers(50, 300), n_groups=st.integers(8, 40), seed=st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_groups_are_never_cut(data, n, n_groups, seed):
    extra = data.draw(st.lists(st.integers(0, n_groups - 1), min_size=n - n_groups, max_size=n - n_groups))
    groups = np.array(list(range(n_groups)) + extra)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        splits = split_rows(n, groups=groups, random_state=seed)
        folds = cross_fit(n, 3, groups=groups, random_state=seed)
    assert covers(parts(splits), n)
    assert all(len(part) for part in parts(splits))
    homes = [set(groups[part]) for part in parts(splits)]
    assert sum(map(len, homes)) == len(set(groups))
    for fitted, scored in folds:
        assert not set(groups[fitted]) & set(groups[scored])


@given(n=st.integers(10, 200), n_folds=st.integers(2, 8), seed=st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_cross_fit_scores_each_row_once(n, n_folds, seed):
    folds = cross_fit(n, n_folds, random_state=seed)
    assert covers([scored for _, scored in folds], n)
    assert all(covers(pair, n) for pair in folds)
    sizes = [len(scored) for _, scored in folds]
    assert max(sizes) - min(sizes) <= 1


def test_many_small_groups_give_nearly_the_fractions():
    groups = np.repeat(np.arange(200), 5)
    sizes = split_rows(1000, groups=groups).sizes()
    assert sizes == {"train": 600, "validation": 100, "selection": 100, "test": 200}


@pytest.mark.parametrize("n_groups", [8, 9, 12, 20])
def test_parts_that_errors_are_measured_on_have_two_groups(n_groups):
    """With 12 groups one is nearest to a tenth of the rows: nothing could be said beyond it."""
    groups = np.arange(300) % n_groups
    splits = split_rows(300, groups=groups)
    counts = [len(np.unique(groups[part])) for part in parts(splits)]
    assert sum(counts) == n_groups
    assert min(counts[2:]) >= 2
    assert min(counts[:2]) >= 1


def test_own_test_rows_and_groups_together():
    groups = np.repeat(np.arange(50), 4)
    is_test = groups >= 40
    splits = split_rows(200, groups=groups, is_test=is_test)
    assert covers(parts(splits), 200)
    assert np.array_equal(splits.test, np.flatnonzero(is_test))
    assert not set(groups[splits.train]) & set(groups[splits.validation])


def test_the_seed_decides():
    assert np.array_equal(split_rows(100).train, split_rows(100).train)
    assert not np.array_equal(split_rows(100).train, split_rows(100, random_state=1).train)


def test_unequal_groups_are_said():
    with pytest.warns(DataWarning, match="groups are so unequal that a part of the data has 1 instead of 10 rows"):
        split_rows(100, groups=[0] * 93 + [1, 2, 3, 4, 5, 6, 7])


HALF = [True] * 50 + [False] * 50


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 49}, "49 rows are too few to split into train, validation, selection and test: at least 50"),
        ({"n": 100, "fractions": (0.5, 0.5, 0.1, 0.1)}, "four positive numbers that sum to 1"),
        ({"n": 100, "fractions": (0.8, 0.1, 0.1)}, "four positive numbers that sum to 1"),
        ({"n": 100, "fractions": (0.9, 0.1, 0.0, 0.0)}, "four positive numbers that sum to 1"),
        (
            {"n": 100, "groups": [1, 2]},
            r"groups has shape \(2,\); expected one label for each of the 100 rows",
        ),
        ({"n": 100, "groups": [0, 1] * 50}, "2 groups cannot be split into 4 parts without cutting one"),
        ({"n": 100, "groups": [0, 1, 2, 3, 4] * 20}, "at least 8 groups are needed, two of them for each that errors"),
        ({"n": 100, "is_test": HALF, "groups": [9] * 50 + [0, 1, 2, 3, 4] * 10}, "All test rows are in one group"),
        ({"n": 100, "groups": [float("nan")] * 100}, "groups: 100 of 100 rows lack a group, first row 0"),
        (
            {"n": 100, "groups": np.array([None, "a"] * 50, dtype=object)},
            "groups: 50 of 100 rows lack",
        ),
        ({"n": 100, "is_test": [0, 1] * 50}, "is_test must be 100 booleans, got int64"),
        ({"n": 100, "is_test": [False] * 100}, "is_test marks no row"),
        ({"n": 60, "is_test": [True] * 20 + [False] * 40}, "40 rows are too few besides the test rows"),
        (
            {"n": 100, "is_test": HALF, "groups": [0, 1, 2, 3] * 25},
            "4 groups have rows both in the test set and",
        ),
    ],
)
def test_what_cannot_be_split_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        split_rows(**arguments)


@pytest.mark.parametrize(
    ("n", "folds", "message"), [(10, 1, "n_folds must be at least 2"), (3, 5, "3 rows are too few")]
)
def test_impossible_folds_are_refused(n, folds, message):
    with pytest.raises(InputError, match=message):
        cross_fit(n, folds)
