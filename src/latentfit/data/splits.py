"""Which rows train, stop, choose and test. Related rows (`groups`) are never separated."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from latentfit.errors import DataWarning, InputError

#: train, validation (early stopping, component numbers), selection (ranking), test (opened once)
FRACTIONS = (0.6, 0.1, 0.1, 0.2)
#: 50,000 / 5,000 / 5,000 / 10,000, as the MNIST literature trains
MNIST_FRACTIONS = (5 / 7, 1 / 14, 1 / 14, 1 / 7)
MIN_ROWS = 50
PARTS = ("train", "validation", "selection", "test")
#: groups of each part, at least: errors of what is measured on a part are between its groups
MIN_GROUPS = (3, 1, 2, 2)


@dataclass(frozen=True, slots=True)
class Splits:
    """Row numbers of the four parts, each (n,) int64, ascending; disjoint, and together all rows."""

    train: np.ndarray
    validation: np.ndarray
    selection: np.ndarray
    test: np.ndarray

    def sizes(self) -> dict[str, int]:
        """Number of rows of each part, by name."""
        return {part: len(getattr(self, part)) for part in PARTS}

    def __str__(self) -> str:
        return ", ".join(f"{size:,} {part}" for part, size in self.sizes().items())


def split_rows(
    n: int,
    *,
    groups: Any = None,
    is_test: Any = None,
    fractions: Sequence[float] = FRACTIONS,
    random_state: int = 0,
) -> Splits:
    """Split n rows into train, validation, selection and test.

    Sizes are the fractions of n, rounded by largest remainder. With `groups`, whole groups go to the part
    that lacks most, so sizes are as near as the groups allow; selection and test get two at least.

    Args:
        n: number of rows, at least 50.
        groups: (n,) labels of related rows, or None.
        is_test: (n,) bool, the data set's own test rows, or None. The rest is then split by the first three
            fractions, renormalised.
        fractions: of train, validation, selection, test; they sum to 1.
        random_state: seed.

    Raises:
        InputError: too few rows or groups, fractions that do not sum to 1, a group on both sides of
            `is_test`.

    Example:
        >>> print(split_rows(1797))
        1,078 train, 180 validation, 180 selection, 359 test
    """
    shares = np.asarray(fractions, dtype=np.float64)
    if shares.shape != (4,) or not (shares > 0).all() or abs(shares.sum() - 1) > 1e-6:
        raise InputError(
            f"fractions must be four positive numbers that sum to 1 (train, validation, selection, test), "
            f"got {tuple(float(s) for s in shares.ravel())}."
        )
    _require_rows(n, MIN_ROWS, "to split into train, validation, selection and test")
    rng = np.random.default_rng(random_state)
    codes = _group_codes(groups, n)
    if is_test is None:
        return Splits(*_parts(np.arange(n), codes, shares, MIN_GROUPS, rng))
    marked = _test_mask(is_test, n)
    if codes is not None:
        if np.ptp(codes[marked]) == 0:
            raise InputError("All test rows are in one group, so nothing can be said beyond it; leave out groups.")
        both = np.intersect1d(codes[marked], codes[~marked])
        if both.size:
            raise InputError(f"{both.size} groups have rows both in the test set and outside it; give other groups.")
    rest = np.flatnonzero(~marked)
    _require_rows(rest.size, MIN_ROWS, "besides the test rows")
    inner = None if codes is None else codes[rest]
    train, validation, selection = _parts(rest, inner, shares[:3] / shares[:3].sum(), MIN_GROUPS[:3], rng)
    return Splits(train, validation, selection, np.flatnonzero(marked))


def cross_fit(
    n: int, n_folds: int = 2, *, groups: Any = None, random_state: int = 0
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pairs (fit on, score on) of row numbers: each row is scored once, by what was fitted without its group.

    Args:
        n: number of rows, at least `n_folds`.
        n_folds: number of pairs, at least 2.
        groups: (n,) labels of related rows, or None.
        random_state: seed.

    Example:
        >>> [(len(a), len(b)) for a, b in cross_fit(10, 5)]
        [(8, 2), (8, 2), (8, 2), (8, 2), (8, 2)]
    """
    if n_folds < 2:
        raise InputError(f"n_folds must be at least 2, got {n_folds}.")
    _require_rows(n, n_folds, f"for {n_folds} folds")
    rng = np.random.default_rng(random_state)
    folds = _parts(np.arange(n), _group_codes(groups, n), np.full(n_folds, 1 / n_folds), (1,) * n_folds, rng)
    everything = np.arange(n)
    return [(np.setdiff1d(everything, fold, assume_unique=True), fold) for fold in folds]


def _parts(
    rows: np.ndarray,
    codes: np.ndarray | None,
    shares: np.ndarray,
    min_groups: Sequence[int],
    rng: np.random.Generator,
) -> list[np.ndarray]:
    """`rows` in parts of the given shares; `codes` are the group numbers of those rows."""
    targets = _apportion(rows.size, shares)
    if codes is None:
        cuts = np.cumsum(targets)[:-1]
        return [np.sort(part) for part in np.split(rng.permutation(rows), cuts)]
    labels, members, sizes = np.unique(codes, return_inverse=True, return_counts=True)
    if labels.size < sum(min_groups):
        two = ", two of them for each that errors are measured on" if max(min_groups) > 1 else ""
        raise InputError(
            f"{labels.size} groups cannot be split into {shares.size} parts without cutting one; "
            f"at least {sum(min_groups)} groups are needed{two}, or leave out groups."
        )
    part_of = _assign_groups(sizes, targets, min_groups, rng)[members]
    parts = [rows[part_of == k] for k in range(shares.size)]
    short = [
        f"{part.size} instead of {target}"
        for part, target in zip(parts, targets, strict=True)
        if 2 * part.size < target
    ]
    if short:
        warnings.warn(
            f"The groups are so unequal that a part of the data has {short[0]} rows; its numbers are weak.",
            DataWarning,
            stacklevel=3,
        )
    return parts


def _assign_groups(
    sizes: np.ndarray, targets: np.ndarray, min_groups: Sequence[int], rng: np.random.Generator
) -> np.ndarray:
    """The part of each group: the largest first, each to the part that lacks most rows.

    Groups that differ by less than a factor of 2 come in the seed's order: by exact size it would decide nothing.
    """
    shuffled = rng.permutation(sizes.size)
    order = shuffled[np.argsort(-np.floor(np.log2(sizes[shuffled])), kind="stable")]
    lacking = targets.astype(np.float64)
    owed = np.array(min_groups)
    part_of = np.empty(sizes.size, dtype=np.int64)
    for position, group in enumerate(order):
        # the last groups are kept for parts that have too few
        must_fill = sizes.size - position <= owed.sum()
        part = int(np.argmax(np.where(owed > 0, lacking, -np.inf) if must_fill else lacking))
        part_of[group] = part
        lacking[part] -= sizes[group]
        owed[part] = max(0, owed[part] - 1)
    return part_of


def _apportion(n: int, shares: np.ndarray) -> np.ndarray:
    """Integers nearest to n * shares that sum to n, none of them 0 (largest remainder)."""
    exact = n * shares
    counts = np.floor(exact + 1e-9).astype(np.int64)
    # rounding keeps equal shares equal where float noise would order their remainders
    remainders = np.round(exact - counts, 9)
    counts[np.argsort(-remainders, kind="stable")[: n - counts.sum()]] += 1
    while (counts == 0).any():
        counts[counts.argmax()] -= 1
        counts[counts.argmin()] += 1
    return counts


def is_missing(labels: np.ndarray) -> np.ndarray:
    """Which labels (n,) are None, NaN or pandas' NA."""
    import pandas as pd

    return np.asarray(pd.isna(labels))


def refuse_missing(marks: np.ndarray, what: str = "groups", mark: str = "group") -> None:
    """Every row needs its group, or its label.

    Raises:
        InputError: marks (n,) of which some are missing, with the first such row.
    """
    missing = is_missing(marks)
    if missing.any():
        raise InputError(
            f"{what}: {int(missing.sum()):,} of {len(marks):,} rows lack a {mark}, first row {int(missing.argmax())} "
            "(from 0)."
        )


def _group_codes(groups: Any, n: int) -> np.ndarray | None:
    if groups is None:
        return None
    labels = np.asarray(groups)
    if labels.shape != (n,):
        raise InputError(f"groups has shape {labels.shape}; expected one label for each of the {n} rows.")
    refuse_missing(labels)
    if labels.dtype.kind == "O":
        labels = labels.astype(str)
    return np.unique(labels, return_inverse=True)[1].reshape(n)


def _test_mask(is_test: Any, n: int) -> np.ndarray:
    marked = np.asarray(is_test)
    if marked.shape != (n,) or marked.dtype != bool:
        raise InputError(f"is_test must be {n} booleans, got {marked.dtype} of shape {marked.shape}.")
    if not marked.any():
        raise InputError("is_test marks no row; leave it out to draw test rows.")
    return marked


def _require_rows(n: int, least: int, purpose: str) -> None:
    if n < least:
        raise InputError(f"{n} rows are too few {purpose}: at least {least} are needed.")
