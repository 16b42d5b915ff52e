"""Laws of the ranking: equals have no winner, gains are found, intervals cover, the smallest is chosen."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentfit.comparison.rank import (
    Candidate,
    SeedVariance,
    is_smaller,
    paired_gain,
    rank,
    seed_variances,
)
from latentfit.errors import InputError
from latentfit.evaluation.estimate import Estimate


def _benchmark() -> Any:
    path = Path(__file__).parents[2] / "benchmarks" / "ranking_of_equals.py"
    spec = importlib.util.spec_from_file_location("ranking_of_equals", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


benchmark = _benchmark()


def scores(rng: np.random.Generator, **gains: float) -> dict[str, Candidate]:
    """3 seeds, 500 rows, little noise beside the rows' difficulty; names ending in _ph are post hoc."""
    difficulty = 5 * rng.standard_normal((1, 500))
    found = {"standard": Candidate(difficulty + 0.02 * rng.standard_normal((3, 500)), "jointly")}
    for i, (key, gain) in enumerate(gains.items()):
        values = difficulty + gain + 0.02 * rng.standard_normal((3, 500))
        found[key] = Candidate(values, "post hoc" if key.endswith("_ph") else "jointly", 100 * (i + 1))
    return found


# --- the three laws


@pytest.mark.parametrize("n_rows", [180, 5000])
def test_equals_have_a_winner_in_at_most_a_tenth_of_comparisons(n_rows: int) -> None:
    assert benchmark.false_winners(200, n_rows, random_state=11)["a winner"] <= 0.10


def test_equals_stay_equal_when_one_method_is_erratic() -> None:
    share = benchmark.false_winners(100, 500, random_state=12, seed_std={"realnvp": 0.75})
    assert share["a winner"] <= 0.10


def test_pooling_pairs_as_iid_would_break_that_law() -> None:
    assert benchmark.pooled_as_iid(60, 500, random_state=13) > 0.4


@pytest.mark.parametrize("key", ["realnvp", "mixture@standard"])
def test_two_nats_are_found_with_three_seeds(key: str) -> None:
    assert benchmark.power(50, 5000, 2.0, key, random_state=14) >= 0.9


@pytest.mark.parametrize(
    ("n_seeds", "seed", "row", "residual"),
    [(3, 0.35, 1.4, 0.3), (3, 0.1, 1.4, 0.3), (3, 0.0, 1.4, 0.5), (3, 1.0, 0.5, 0.5), (5, 0.2, 1.0, 1.0)],
)
def test_intervals_cover(n_seeds: int, seed: float, row: float, residual: float) -> None:
    share = benchmark.coverage(500, n_seeds, 180, seed=seed, row=row, residual=residual, random_state=15)
    assert 0.92 <= share <= 0.98


def test_intervals_cover_with_one_seed() -> None:
    share = benchmark.coverage(500, 1, 180, seed=0.0, row=1.4, residual=0.5, random_state=16)
    assert 0.92 <= share <= 0.98


def test_grouped_rows_are_covered_only_with_groups() -> None:
    options = {"seed": 0.0, "row": 1.0, "residual": 0.3, "random_state": 17, "group_size": 10}
    assert 0.92 <= benchmark.coverage(500, 3, 600, **options) <= 0.98
    rng = np.random.default_rng(0)
    groups = np.arange(600) // 10
    d = np.repeat(rng.standard_normal((1, 60)), 10, axis=1) + 0.01 * rng.standard_normal((3, 600))
    plain, robust = paired_gain(d, 0 * d), paired_gain(d, 0 * d, groups=groups)
    assert plain.value == pytest.approx(robust.value)
    assert robust.std_error == pytest.approx(math.sqrt(10) * plain.std_error, rel=0.05)


# --- paired_gain


def test_the_error_of_a_balanced_table_is_the_anova_identity() -> None:
    rng = np.random.default_rng(1)
    d = rng.standard_normal((4, 1)) + 2 * rng.standard_normal((1, 30)) + 0.5 * rng.standard_normal((4, 30))
    cell, row, mean = d.mean(1), d.mean(0), d.mean()
    ms_seed, ms_row = 30 * cell.var(ddof=1), 4 * row.var(ddof=1)
    ms_residual = ((d - cell[:, None] - row + mean) ** 2).sum() / (3 * 29)
    got = paired_gain(d, np.zeros_like(d))
    assert got.value == pytest.approx(mean)
    assert got.std_error == pytest.approx(math.sqrt((ms_seed + ms_row - ms_residual) / 120))


def test_one_seed_is_the_paired_t_interval_and_says_so() -> None:
    d = np.random.default_rng(2).standard_normal(50)
    got, expected = paired_gain(d, np.zeros(50)), Estimate.of(d)
    assert got.interval == pytest.approx(expected.interval)
    assert got.this_run_only
    assert not paired_gain(np.stack([d, d + 1]), np.zeros((2, 50))).this_run_only


def test_groups_of_one_change_nothing() -> None:
    d = np.random.default_rng(3).standard_normal((3, 40))
    plain, grouped = paired_gain(d, 0 * d), paired_gain(d, 0 * d, groups=np.arange(40))
    assert grouped.interval == pytest.approx(plain.interval)


def test_a_gain_restated_at_its_own_level_is_itself_and_wider_at_a_higher_one() -> None:
    d = np.random.default_rng(4).standard_normal((3, 40))
    gain = paired_gain(d, 0 * d)
    assert gain.at(0.95) == gain
    assert gain.at(0.99).interval[0] < gain.interval[0] < gain.interval[1] < gain.at(0.99).interval[1]


def test_swapping_the_pair_flips_the_sign_only() -> None:
    a, b = np.random.default_rng(5).standard_normal((2, 3, 40))
    forward, backward = paired_gain(a, b), paired_gain(b, a)
    assert forward.value == pytest.approx(-backward.value)
    assert forward.interval == pytest.approx((-backward.interval[1], -backward.interval[0]))


def test_a_row_of_probability_zero_loses_and_is_no_baseline() -> None:
    y = np.zeros((2, 10))
    y[1, 3] = -math.inf
    assert paired_gain(y, np.zeros((2, 10))).value == -math.inf
    with pytest.raises(InputError, match="gives probability 0 to 1 of 10 rows"):
        paired_gain(np.zeros((2, 10)), y)


@pytest.mark.parametrize(
    ("values", "baseline", "options", "message"),
    [
        ([[math.nan, 1.0]], [[0.0, 0.0]], {}, r"log p\(x\) is nan in 1 of 2 values \(first: seed 0, row 0\)"),
        ([[0.0, math.inf]], [[0.0, 0.0]], {}, r"log p\(x\) is inf in 1 of 2 values \(first: seed 0, row 1\)"),
        ([[0.0, 1.0]], [[0.0, 0.0, 0.0]], {}, r"values are \(1, 2\), baseline \(1, 3\)"),
        ([[1.0]], [[0.0]], {}, "one row has no standard error"),
        (np.zeros((1, 1, 2)), [[0.0, 0.0]], {}, r"shape \(1, 1, 2\); expected \(seeds, rows\)"),
        ([[0.0, 1.0]], [[0.0, 0.0]], {"groups": [1]}, "one label for each of the 2 rows"),
        ([[0.0, 1.0]], [[0.0, 0.0]], {"groups": [1, 1]}, "all rows are in one group"),
        ([[0.0, 1.0]], [[0.0, 0.0]], {"level": 95}, "level is a probability between 0 and 1, got 95"),
    ],
)
def test_impossible_scores_are_refused(values: Any, baseline: Any, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        paired_gain(values, baseline, **options)
    assert "\n" not in str(caught.value)


# --- seed variances


def test_seed_variances_recover_both_kinds_without_bias() -> None:
    rng = np.random.default_rng(6)
    found = [seed_variances(benchmark.simulate(rng, 200), "standard") for _ in range(300)]
    trained = np.mean([v["jointly"].value for v in found])
    post_hoc = np.mean([v["post hoc"].value for v in found])
    # one training: 0.25^2 + 0.3^2 / 200; a post hoc gain: 0.02^2 + 0.02^2 + 0.3^2 / 200
    assert trained == pytest.approx(0.25**2 + 0.09 / 200, rel=0.08)
    assert post_hoc == pytest.approx(2 * 0.02**2 + 0.09 / 200, rel=0.12)
    assert {v["jointly"].df for v in found} == {10}
    assert all(2 <= v["post hoc"].df <= 8 for v in found)


def test_gains_that_move_together_earn_no_degrees_of_freedom() -> None:
    rng = np.random.default_rng(7)
    null = rng.standard_normal((6, 100))
    shared = rng.standard_normal((6, 1))
    together = {f"p{i}": Candidate(null + shared, "post hoc") for i in range(5)}
    got = seed_variances({"standard": Candidate(null, "jointly")} | together, "standard")["post hoc"]
    assert got is not None
    assert got.df == pytest.approx(5, rel=0.05)


def test_a_prior_that_changes_nothing_does_not_shrink_the_pool() -> None:
    candidates = scores(np.random.default_rng(8), a_ph=1.0)
    before = seed_variances(candidates, "standard")
    same = Candidate(candidates["standard"].values, "post hoc")
    assert seed_variances(candidates | {"same_ph": same}, "standard") == before


def test_independent_variances_add_with_satterthwaite() -> None:
    total = SeedVariance(1.0, 4) + SeedVariance(1.0, 4)
    assert (total.value, total.df) == (2.0, 8.0)


# --- rank


def test_smaller_is_no_retraining_then_parameters_then_calls() -> None:
    y = np.zeros((1, 2))
    ordered = [
        Candidate(y, "post hoc", 10, 5),
        Candidate(y, "post hoc", 20, 1),
        Candidate(y, "post hoc", 20, 2),
        Candidate(y, "jointly", 0, 0),
        Candidate(y, "jointly", 5, 0),
    ]
    for i, a in enumerate(ordered):
        for j, b in enumerate(ordered):
            assert is_smaller(a, b) == (i < j)


def test_the_smallest_within_a_tenth_of_a_nat_is_recommended() -> None:
    got = rank(scores(np.random.default_rng(9), small_ph=0.95, large_ph=1.0, joint=1.02))
    assert (got.verdict, got.key, got.best_key) == ("use", "small_ph", "joint")
    assert got.sufficient == ["small_ph", "large_ph", "joint"]
    assert got.without_training == "small_ph"


def test_a_real_difference_beats_size_and_the_post_hoc_choice_is_still_named() -> None:
    got = rank(scores(np.random.default_rng(10), small_ph=0.5, large_ph=0.55, joint=2.0))
    assert (got.verdict, got.key, got.without_training) == ("use", "joint", "small_ph")
    assert got.winners == ["joint", "large_ph", "small_ph"]


def test_a_sure_gain_below_a_tenth_of_a_nat_changes_nothing() -> None:
    got = rank(scores(np.random.default_rng(11), tiny_ph=0.05))
    assert got.gains["tiny_ph"].interval[0] > 0
    assert (got.verdict, got.key, got.best_key) == ("change_nothing", "standard", "tiny_ph")
    assert got.without_training is None


@pytest.mark.parametrize(
    ("mean", "spread", "verdict"), [(0.003, 0.1, "change_nothing"), (0.3, 10.0, "no_clear_winner")]
)
def test_a_gain_worth_having_is_excluded_or_stays_open(mean: float, spread: float, verdict: str) -> None:
    rng = np.random.default_rng(12)
    null = rng.standard_normal((3, 400))
    noise = spread * rng.standard_normal((1, 400))
    other = Candidate(null + noise - noise.mean() + mean, "post hoc", 5)
    got = rank({"standard": Candidate(null, "jointly"), "mixture@standard": other})
    assert (got.verdict, got.key, got.best_key) == (verdict, "standard", "mixture@standard")


def test_simultaneous_intervals_hold_the_single_ones_and_decide() -> None:
    rng = np.random.default_rng(13)
    for _ in range(20):
        got = rank(benchmark.simulate(rng, 200, gains={"realnvp": 0.8}))
        for key, gain in got.gains.items():
            low, high = got.simultaneous[key]
            assert low < gain.interval[0] < gain.interval[1] < high
            assert (low > 0) == (key in got.winners)


def test_training_apart_is_less_certain_than_fitting_post_hoc() -> None:
    got = rank(benchmark.simulate(np.random.default_rng(14), 5000))
    assert got.gains["mixture"].std_error > 3 * got.gains["mixture@standard"].std_error


def test_alone_the_null_stays() -> None:
    got = rank({"standard": Candidate(np.zeros((3, 5)), "jointly")})
    assert (got.verdict, got.key, got.best_key) == ("change_nothing", "standard", "standard")
    assert got.gains == {}


def test_identical_scores_change_nothing() -> None:
    y = np.random.default_rng(15).standard_normal((3, 50))
    got = rank({k: Candidate(y, f) for k, f in (("standard", "jointly"), ("a", "jointly"), ("b", "post hoc"))})
    assert (got.verdict, got.key) == ("change_nothing", "standard")
    assert all(gain.interval == (0.0, 0.0) for gain in got.gains.values())


def test_one_seed_is_flagged() -> None:
    candidates = {
        k: Candidate(np.asarray(c.values)[:1], c.fitted)
        for k, c in scores(np.random.default_rng(16), joint=1.0).items()
    }
    got = rank(candidates)
    assert got.this_run_only
    assert got.gains["joint"].this_run_only
    assert got.key == "joint"


def test_a_row_of_probability_zero_is_never_recommended_nor_pooled() -> None:
    candidates = scores(np.random.default_rng(17), a=1.0)
    values = np.asarray(candidates["a"].values) + 5
    values[0, 0] = -math.inf
    got = rank(candidates | {"broken": Candidate(values, "post hoc")})
    assert got.gains["broken"].value == -math.inf
    assert (got.key, "broken" in got.winners, "broken" in got.sufficient) == ("a", False, False)
    assert got.gains["a"].std_error == rank(candidates).gains["a"].std_error


def test_another_goal_that_picks_another_winner_is_named() -> None:
    candidates = scores(np.random.default_rng(18), small_ph=1.0, joint=3.0)
    frechet = {"standard": [1.0, 1.1, 0.9], "small_ph": [0.2, 0.21, 0.19], "joint": [0.9, 1.0, 1.1]}
    knn = {"standard": 0.9, "small_ph": 0.9, "joint": [0.97, 0.97, 0.97]}
    knn = {key: np.full(3, value) if np.ndim(value) == 0 else value for key, value in knn.items()}
    got = rank(candidates, metrics={"samples": frechet, "embedding": knn})
    assert got.key == "joint"
    assert got.other_goals == {"samples": "small_ph", "embedding": "joint"}
    by_samples = rank(candidates, goal="samples", metrics={"samples": frechet})
    assert (by_samples.verdict, by_samples.key) == ("use", "small_ph")
    assert by_samples.other_goals == {"likelihood": "joint"}


def test_another_goal_that_decides_nothing_is_neither_the_same_nor_another_choice() -> None:
    candidates = scores(np.random.default_rng(18), small_ph=1.0, joint=3.0)
    noisy = {"standard": [1.0, 1.9, 0.2], "small_ph": [0.1, 0.9, 1.8], "joint": [1.9, 0.1, 0.9]}
    assert rank(candidates, metrics={"samples": noisy}).other_goals == {"samples": None}


def test_a_goal_scored_once_has_no_winner() -> None:
    candidates = {
        "standard": Candidate(np.zeros((1, 5)), "jointly"),
        "a": Candidate(np.zeros((1, 5)), "jointly"),
    }
    got = rank(candidates, goal="embedding", metrics={"embedding": {"standard": 0.5, "a": 0.9}})
    assert (got.verdict, got.key, got.best_key) == ("no_clear_winner", "standard", "a")


def test_one_seed_decides_another_goal_by_its_rows() -> None:
    """Paired: what a hard part of the rows adds to every distance cancels in their differences."""
    rng = np.random.default_rng(19)
    candidates = {
        key: Candidate(np.zeros((1, 40)), "post hoc" if key == "a" else "jointly") for key in ("standard", "a")
    }
    hard = 5 * rng.normal(size=(1, 10))
    frechet = {"standard": 20 + hard + 0.1 * rng.normal(size=(1, 10)), "a": 19 + hard + 0.1 * rng.normal(size=(1, 10))}
    got = rank(candidates, goal="samples", metrics={"samples": frechet})
    assert (got.verdict, got.key, got.this_run_only) == ("use", "a", True)
    assert got.gains["a"].value == pytest.approx(1.0, abs=0.2)
    groups = np.arange(40) // 4
    hits = {"standard": rng.random((1, 40)) < 0.5, "a": rng.random((1, 40)) < 0.6}
    by_groups = rank(candidates, goal="embedding", metrics={"embedding": hits}, groups=groups)
    assert by_groups.gains["a"].components[0][1] == 9.0  # ten groups, not forty rows


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"a": Candidate(np.zeros((2, 4)), "jointly")}, {}, r"'a' is \(2, 4\), 'standard' \(3, 5\)"),
        ({"a": Candidate(np.full((3, 5), np.nan), "jointly")}, {}, "a: log p\\(x\\) is nan in 15 of 15"),
        (
            {"standard": Candidate(np.full((3, 5), -np.inf), "jointly")},
            {},
            "'standard' gives probability 0 to 5",
        ),
        ({}, {"null": "plain"}, "no candidate 'plain' to compare with. Known: standard"),
        ({}, {"goal": "beauty"}, "no scores for the goal 'beauty'. Known: likelihood"),
        ({}, {"metrics": {"samples": {"a": 1.0}}}, "the goal 'samples' does not score the null 'standard'"),
        ({}, {"metrics": {"samples": {"standard": 1.0, "b": 1.0}}}, "scores 'b', no candidate"),
        ({"standard": Candidate(np.zeros((3, 5)), "post hoc")}, {}, "its fitted must be 'jointly'"),
    ],
)
def test_what_cannot_be_ranked_is_refused(change: dict, options: dict, message: str) -> None:
    candidates = {"standard": Candidate(np.zeros((3, 5)), "jointly")} | change
    if "metrics" in options:
        candidates["a"] = Candidate(np.zeros((3, 5)), "jointly")
    with pytest.raises(InputError, match=message) as caught:
        rank(candidates, **options)
    assert "\n" not in str(caught.value)
