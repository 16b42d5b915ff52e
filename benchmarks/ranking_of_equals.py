"""How often the ranking is wrong: winners among equals, gains it misses, intervals that miss the truth.

    python benchmarks/ranking_of_equals.py  # three minutes; stores results/ranking_of_equals.json beside it

Scores are simulated: a row's difficulty (sd 5 nats, common to all), what suits a row to a method (sd 1), the
luck of each training (sd 0.25), the dependence of a post hoc gain on its VAE (sd 0.03, half of its variance
shared by all post hoc candidates), a residual (sd 0.3).
"""

from __future__ import annotations

import json
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np

from latentfit.comparison.rank import Candidate, paired_gain, rank

RESULTS = Path(__file__).parent / "results" / "ranking_of_equals.json"
TRAINED = ("standard", "annealed", "mixture", "realnvp", "nsf")
POST_HOC = ("learned_gaussian@standard", "mixture@standard", "realnvp@standard", "nsf@standard")


def simulate(
    rng: np.random.Generator,
    n_rows: int,
    *,
    n_seeds: int = 3,
    gains: dict[str, float] | None = None,
    seed_std: float | dict[str, float] = 0.25,
) -> dict[str, Candidate]:
    """Eight candidates and the null; true gains on it are `gains`, 0 where not named."""
    gains = gains or {}
    difficulty = 5.0 * rng.standard_normal((1, n_rows))
    shared = 0.02 * rng.standard_normal((n_seeds, 1))
    values: dict[str, np.ndarray] = {}
    for key in TRAINED + POST_HOC:
        own = rng.standard_normal((1, n_rows)) + 0.3 * rng.standard_normal((n_seeds, n_rows))
        if key in POST_HOC:
            base = values["standard"] + shared
            luck = 0.02
        else:
            base = difficulty
            luck = seed_std if isinstance(seed_std, float) else seed_std.get(key, 0.25)
        values[key] = base + own + luck * rng.standard_normal((n_seeds, 1)) + gains.get(key, 0.0)
    return {
        key: Candidate(y, "post hoc" if key in POST_HOC else "jointly", 1000 * i)
        for i, (key, y) in enumerate(values.items())
    }


def false_winners(n: int, n_rows: int, *, random_state: int, **options: Any) -> dict[str, float]:
    """Share of n comparisons of equals that name a winner, and that recommend a change."""
    rng = np.random.default_rng(random_state)
    found = [rank(simulate(rng, n_rows, **options)) for _ in range(n)]
    return {
        "a winner": float(np.mean([bool(r.winners) for r in found])),
        "verdict use": float(np.mean([r.verdict == "use" for r in found])),
    }


def pooled_as_iid(n: int, n_rows: int, *, random_state: int) -> float:
    """The same share when seeds x rows pairs are pooled as if i.i.d., at the same corrected level."""
    from scipy.stats import norm

    rng = np.random.default_rng(random_state)
    critical = norm.ppf(1 - 0.025 / (len(TRAINED) + len(POST_HOC) - 1))
    declared = 0
    for _ in range(n):
        candidates = simulate(rng, n_rows)
        null = np.asarray(candidates["standard"].values)
        d = np.stack([np.asarray(c.values) - null for key, c in candidates.items() if key != "standard"])
        error = d.std(axis=(1, 2), ddof=1) / np.sqrt(null.size)
        declared += bool((d.mean(axis=(1, 2)) > critical * error).any())
    return declared / n


def power(n: int, n_rows: int, gain: float, key: str, *, random_state: int) -> float:
    """Share of n comparisons in which `key`, truly better by `gain` nats, is a winner and is recommended."""
    rng = np.random.default_rng(random_state)
    found = [rank(simulate(rng, n_rows, gains={key: gain})) for _ in range(n)]
    return float(np.mean([key in r.winners and r.key == key for r in found]))


def coverage(
    n: int,
    n_seeds: int,
    n_rows: int,
    *,
    seed: float,
    row: float,
    residual: float,
    random_state: int,
    group_size: int = 1,
) -> float:
    """Share of n data sets whose 95 % interval of `paired_gain` holds the true gain of 1 nat.

    With `group_size` above 1 a row's effect is its group's.
    """
    rng = np.random.default_rng(random_state)
    groups = np.arange(n_rows) // group_size
    covered = 0
    for _ in range(n):
        d = 1.0 + seed * rng.standard_normal((n_seeds, 1)) + residual * rng.standard_normal((n_seeds, n_rows))
        d += row * rng.standard_normal((1, groups[-1] + 1))[:, groups]
        base = 5.0 * rng.standard_normal((1, n_rows)) * np.ones((n_seeds, 1))
        low, high = paired_gain(base + d, base, groups=groups if group_size > 1 else None).interval
        covered += low <= 1.0 <= high
    return covered / n


def main() -> None:
    """Run everything and store it."""
    started = time.perf_counter()
    n = 1000
    erratic = {"realnvp": 0.75}
    result: dict[str, Any] = {
        "repeats": n,
        "equals": {
            "180 rows, 3 seeds": false_winners(n, 180, random_state=0),
            "5,000 rows, 3 seeds": false_winners(n, 5000, random_state=1),
            "180 rows, 2 seeds": false_winners(n, 180, random_state=2, n_seeds=2),
            "5,000 rows, 3 seeds, one method three times as erratic": false_winners(
                n, 5000, random_state=3, seed_std=erratic
            ),
        },
        "equals, pairs pooled as i.i.d.": {
            "180 rows, 3 seeds": pooled_as_iid(n, 180, random_state=4),
            "5,000 rows, 3 seeds": pooled_as_iid(n, 5000, random_state=5),
        },
        "power": {
            f"{gain} nats, {rows:,} rows, {key}": power(n // 4, rows, gain, key, random_state=6)
            for key in ("mixture", "mixture@standard")
            for rows in (180, 5000)
            for gain in (0.5, 1.0, 2.0)
        },
        "coverage of paired_gain at 95 %": {
            f"{seeds} seeds, 180 rows, sd seed {a}, row {b}, residual {c}": coverage(
                n, seeds, 180, seed=a, row=b, residual=c, random_state=7
            )
            for seeds in (2, 3, 5)
            for a in (0.0, 0.05, 0.2, 0.35, 1.0)
            for b, c in ((1.4, 0.5), (1.0, 1.0), (0.3, 1.0))
        }
        | {
            "3 seeds, 60 groups of 10 rows, sd seed 0.2, group 1.0, residual 0.5": coverage(
                n, 3, 600, seed=0.2, row=1.0, residual=0.5, random_state=8, group_size=10
            )
        },
    }
    result["seconds"] = round(time.perf_counter() - started, 1)
    result["versions"] = {"python": platform.python_version(), "numpy": np.__version__}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
