"""Rank candidates scored on the same rows with the same noise: which one wins, is it worth it, is it certain.

Two runs trained apart differ by the luck of two runs; a prior fitted post hoc shares its VAE's, and only
the small dependence of its gain on the VAE is left. So the seed variances of both kinds are estimated apart
(`seed_variances`), each pooled over its kind, because three seeds alone say little.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike

from latentfit.comparison.paired import (
    Gain,
    Matrix,
    SeedVariance,
    as_matrix,
    check_baseline,
    check_level,
    gain_of,
    group_index,
    paired_gain,
    shared_df,
)
from latentfit.comparison.result import Fitted, Verdict
from latentfit.errors import InputError
from latentfit.evaluation.ladder import WORTHWHILE

__all__ = [
    "Candidate",
    "Gain",
    "Ranking",
    "SeedVariance",
    "is_smaller",
    "paired_gain",
    "rank",
    "seed_variances",
    "size",
]

#: goals whose score is better when lower (a distance)
LOWER_IS_BETTER = frozenset({"samples"})


@dataclass(frozen=True, eq=False)
class Candidate:
    """What is ranked.

    Attributes:
        values: (S, R) log p(x) in nats, seeds by rows, the same seeds and rows for all candidates.
        fitted: "jointly" (trained anew for each seed) or "post hoc" (on the null model of the same seed).
        added_parameters: beyond those of the null model.
        network_calls: per sample of z.
    """

    values: ArrayLike
    fitted: Fitted
    added_parameters: int = 0
    network_calls: int = 0


@dataclass(frozen=True)
class Ranking:
    """What `rank` found.

    Attributes:
        verdict: "use", "change_nothing" or "no_clear_winner".
        key: the recommended candidate; the null unless the verdict is "use".
        best_key: the highest mean, significant or not.
        gains: key -> gain on the null, its interval at the level asked, for this candidate alone.
        simultaneous: key -> interval that holds for all candidates at once; a winner's lies above 0.
        winners: those that beat the null, best first.
        sufficient: those within max(1 standard error, 0.1 nat) of the best winner (of the best without
            one), smallest first.
        without_training: the smallest sufficient winner that needs no retraining.
        other_goals: every other goal -> its choice, which is `key` where that suffices; None where nothing is decided.
        this_run_only: one seed: what is said holds for these training runs, not for the methods.
    """

    verdict: Verdict
    key: str
    best_key: str
    gains: dict[str, Gain]
    simultaneous: dict[str, tuple[float, float]]
    winners: list[str]
    sufficient: list[str]
    without_training: str | None
    this_run_only: bool
    other_goals: dict[str, str | None] = field(default_factory=dict)


def size(candidate: Candidate) -> tuple[bool, int, int]:
    """What orders candidates: retraining, then added parameters, then network calls per sample."""
    return candidate.fitted == "jointly", candidate.added_parameters, candidate.network_calls


def is_smaller(a: Candidate, b: Candidate) -> bool:
    """Whether a asks less than b: no retraining before retraining, then added parameters, then network calls.

    The null is not compared by this: it is there already, and comes before all others in a ranking.

    >>> is_smaller(Candidate([[0.0]], "post hoc", 90_000), Candidate([[0.0]], "jointly", 10))
    True
    """
    return size(a) < size(b)


def seed_variances(candidates: Mapping[str, Candidate], null: str) -> dict[Fitted, SeedVariance | None]:
    """The seed variance of one jointly trained model and of one post hoc gain, each pooled over its kind.

    Jointly: Var_s of the mean over rows of y[j, s, :], averaged over the k trained methods, the null among
    them: k (S - 1) degrees of freedom, where a single difference has S - 1. Two models trained apart differ
    by twice that. It assumes that trainings are independent and that methods depend on their seed alike.
    What all runs of a seed have in common makes it too large (the careful side); a method much more erratic
    than the rest is judged too kindly.

    Post hoc: Var_s of the mean over rows of y[j, s, :] - y[null, s, :]. These share the VAE, so their gains
    move together and their degrees of freedom do not add up: (S - 1) tr(C)^2 / tr(C^2) by moments, C their
    covariance over seeds (k, k), kept within S - 1 and k (S - 1). A prior that equals the null to the bit
    says nothing and is left out.

    Returns:
        None for a kind where there is nothing to estimate from: one seed, or no candidate.
    """
    base = as_matrix(candidates[null].values, null)
    cells: dict[Fitted, list[Matrix]] = {"jointly": [], "post hoc": []}
    for key, candidate in candidates.items():
        y = as_matrix(candidate.values, key)
        if not np.isfinite(y).all():
            continue
        if candidate.fitted == "jointly":
            cells["jointly"].append(y.mean(1))
        elif not np.array_equal(y, base):
            cells["post hoc"].append((y - base).mean(1))
    n = base.shape[0] - 1
    if n == 0:
        return {"jointly": None, "post hoc": None}
    pooled: dict[Fitted, SeedVariance | None] = {}
    for kind, rows in cells.items():
        if not rows:
            pooled[kind] = None
            continue
        covariance = np.atleast_2d(np.cov(np.stack(rows)))  # (k, k)
        df = n * len(rows) if kind == "jointly" else shared_df(covariance, n)
        pooled[kind] = SeedVariance(float(np.diagonal(covariance).mean()), df)
    return pooled


def rank(
    candidates: Mapping[str, Candidate],
    *,
    null: str = "standard",
    goal: str = "likelihood",
    metrics: Mapping[str, Mapping[str, ArrayLike]] | None = None,
    groups: ArrayLike | None = None,
    level: float = 0.95,
) -> Ranking:
    """Which candidate to use in place of the null, if any.

    A candidate *wins* when its interval at level 1 - (1 - level) / m (Bonferroni over the m candidates)
    lies above 0. Recommended is the smallest winner (`is_smaller`) within max(1 standard error of the
    paired difference, 0.1 nat) of the best winner. The verdict is

    - "use": there is one, and the null is not itself that close to the best;
    - "change_nothing": the null is the best or that close to the best winner, or every simultaneous
      interval ends below 0.1 nat: a gain worth having is excluded;
    - "no_clear_winner": nothing is shown, and a gain worth having is not excluded. More rows or seeds may
      decide.

    Args:
        candidates: key -> candidate, the null among them.
        null: the key of the model to beat, trained jointly.
        goal: "likelihood", or a key of `metrics`; it decides.
        metrics: other goals -> key -> score: a number, one per seed (S,), or one per seed and row or part of the rows
            (S, P), without which errors come from the seeds alone and one seed decides nothing. "samples" is
            better when lower, all others when higher. Candidates without a score are left out of that goal.
            There is no smallest gain worth having.
        groups: (R,) labels of related rows, for errors robust to clusters.
        level: of the intervals, and of the family of winners.

    Raises:
        InputError: an unknown null or goal, arrays of different shapes, NaN or +inf, a null that gives a row
            probability 0.
    """
    check_level(level)
    if null not in candidates:
        raise InputError(f"rank: there is no candidate {null!r} to compare with. Known: {', '.join(candidates)}.")
    if candidates[null].fitted != "jointly":
        raise InputError(f"rank: the null {null!r} is the trained model itself, so its fitted must be 'jointly'.")
    tables: dict[str, dict[str, Candidate]] = {"likelihood": dict(candidates)}
    for name, scores in (metrics or {}).items():
        tables[name] = _metric_table(candidates, name, scores, null)
    if goal not in tables:
        raise InputError(f"rank: no scores for the goal {goal!r}. Known: {', '.join(tables)}.")
    rankings = {
        name: _rank(table, null, groups if _by_rows(table[null], groups) else None, level, name == "likelihood")
        for name, table in tables.items()
    }
    chosen = rankings.pop(goal)
    others = {name: _choice(other, chosen.key) for name, other in rankings.items()}
    return replace(chosen, other_goals=others)


def _choice(ranking: Ranking, key: str) -> str | None:
    """What a ranking would choose: `key` where it suffices, None where it decides nothing."""
    if ranking.verdict == "no_clear_winner":
        return None
    return key if key in ranking.sufficient else ranking.key


def _rank(candidates: dict[str, Candidate], null: str, groups: ArrayLike | None, level: float, nats: bool) -> Ranking:
    y = {key: as_matrix(candidate.values, key) for key, candidate in candidates.items()}
    base = y[null]
    for key, array in y.items():
        if array.shape != base.shape:
            raise InputError(f"rank: {key!r} is {array.shape}, {null!r} {base.shape}; score the same seeds and rows.")
    if nats and base.shape[1] < 2:
        raise InputError("rank: one row has no standard error; score at least 2 rows (better 100 and more).")
    check_baseline(base, f"the null {null!r}")
    index = group_index(groups, base.shape[1])
    pooled = seed_variances(candidates, null)
    tolerance = WORTHWHILE if nats else 0.0

    def gain(a: str, b: str) -> Gain:
        trained = (candidates[a].fitted == "jointly") + (candidates[b].fitted == "jointly")
        variance = _of_difference(trained, b == null, pooled)
        return gain_of(y[a], y[b], index, None if np.array_equal(y[a], y[b]) else variance, level)

    def sufficient_for(reference: str, keys: list[str]) -> list[str]:
        """Those of `keys` within max(1 standard error, tolerance) of the reference, in their order."""
        behind = {key: gain(reference, key) for key in keys if key != reference}
        near = {key for key, d in behind.items() if d.value <= tolerance or d.value <= d.std_error}
        return [key for key in keys if key == reference or key in near]

    others = [key for key in y if key != null]
    order = [null, *sorted(others, key=lambda key: size(candidates[key]))]
    gains = {key: gain(key, null) for key in others}
    strict = 1 - (1 - level) / max(len(others), 1)
    simultaneous = {key: gains[key].at(strict).interval for key in others}
    means = {null: 0.0} | {key: gains[key].value for key in others}
    best = max(means, key=lambda key: means[key])  # the null comes first, so it is the best among ties
    winners = sorted((key for key in others if simultaneous[key][0] > 0), key=lambda key: -means[key])

    sufficient = sufficient_for(winners[0] if winners else best, order)
    key, verdict = null, _verdict(winners, sufficient, best, null, simultaneous, tolerance)
    if verdict == "use":
        key = next(name for name in sufficient if name in winners)
    untrained = [name for name in winners if candidates[name].fitted == "post hoc" and means[name] > tolerance]
    without = None
    if key in untrained:
        without = key
    elif untrained:
        without = sufficient_for(untrained[0], [name for name in order if name in untrained])[0]
    return Ranking(
        verdict,
        key,
        best,
        gains,
        simultaneous,
        winners,
        sufficient,
        without,
        this_run_only=base.shape[0] == 1,
    )


def _verdict(
    winners: list[str],
    sufficient: list[str],
    best: str,
    null: str,
    simultaneous: dict[str, tuple[float, float]],
    tolerance: float,
) -> Verdict:
    if winners:
        return "change_nothing" if null in sufficient else "use"
    nothing_to_win = all(high < tolerance for _, high in simultaneous.values())
    return "change_nothing" if best == null or nothing_to_win else "no_clear_winner"


def _of_difference(n_trained: int, to_null: bool, pooled: dict[Fitted, SeedVariance | None]) -> SeedVariance | None:
    """The seed variance of a difference of candidates of which `n_trained` were trained jointly."""
    trained, post_hoc = pooled["jointly"], pooled["post hoc"]
    if n_trained == 0 or trained is None:
        return None  # two priors on the same VAE move together: their own difference knows best
    if n_trained == 1 and to_null:
        return post_hoc  # the null is the VAE this prior was fitted on
    apart = SeedVariance(2 * trained.value, trained.df)
    return apart if n_trained == 2 or post_hoc is None else apart + post_hoc


def _metric_table(
    candidates: Mapping[str, Candidate], name: str, scores: Mapping[str, ArrayLike], null: str
) -> dict[str, Candidate]:
    unknown = [key for key in scores if key not in candidates]
    if unknown or null not in scores:
        wrong = f"scores {unknown[0]!r}, no candidate" if unknown else f"does not score the null {null!r}"
        raise InputError(f"rank: the goal {name!r} {wrong}. Candidates: {', '.join(candidates)}.")
    sign = -1.0 if name in LOWER_IS_BETTER else 1.0
    table = {}
    for key in candidates:
        if key in scores:
            given = np.atleast_1d(np.asarray(scores[key], dtype=np.float64))
            table[key] = replace(candidates[key], values=sign * (given if given.ndim == 2 else given[:, None]))
    return table


def _by_rows(candidate: Candidate, groups: ArrayLike | None) -> bool:
    """Whether the scores are of the rows that `groups` labels: not of seeds alone, nor of parts of the rows."""
    values = np.asarray(candidate.values)
    return groups is not None and values.ndim == 2 and values.shape[1] == len(np.asarray(groups))
