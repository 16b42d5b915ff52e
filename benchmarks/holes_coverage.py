"""How often the interval of the share of draws in holes covers the share, where it is known.

    python benchmarks/holes_coverage.py

q(z) = r = N(0, 1) in one dimension and p = N(0, s^2), so that the share is 2 (1 - Phi(z_0.995 / s)). 1,000 repetitions
of N rows, with a share of their variance common to a group where there are groups. To
benchmarks/results/holes_coverage.json.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
from scipy.stats import norm

from latentfit.evaluation import Codes, prior_holes
from latentfit.priors import LearnedGaussianPrior, StandardNormalPrior
from latentfit.saving import write_atomic

RESULTS = Path(__file__).parent / "results" / "holes_coverage.json"
REPETITIONS, CODE_STD = 1_000, 0.1
#: rows, groups (0: none), what a group shares, s
CASES = [(n, 0, 0.0, s) for s in (1.0, 1.5, 2.0) for n in (50, 200, 1_000, 5_000)]
CASES += [(1_000, 20, 0.7, 1.5), (900, 30, 0.7, 1.5), (1_000, 50, 0.7, 1.5), (5_000, 100, 0.7, 1.5)]


def codes(n: int, groups: int, shared: float, rng: np.random.Generator) -> Codes:
    label = np.arange(n) % groups if groups else None
    common = 0.0 if label is None else math.sqrt(shared) * rng.normal(size=groups)[label]
    mean = common + math.sqrt(1 - shared - CODE_STD**2) * rng.normal(size=n)
    return Codes.of(mean[:, None], std=np.full((n, 1), CODE_STD), groups=label)


def main() -> None:
    found = []
    for n, groups, shared, s in CASES:
        rng, p = np.random.default_rng(0), LearnedGaussianPrior(1).double()
        p.log_diagonal.data.fill_(-math.log(s))
        truth = 2 * (1 - norm.cdf(norm.ppf(0.995) / s))
        shares = [
            prior_holes(StandardNormalPrior(1), p, codes(n, groups, shared, rng), random_state=seed).share
            for seed in range(REPETITIONS)
        ]
        covered = float(np.mean([low <= truth <= high for low, high in (share.interval for share in shares)]))
        row = {"rows": n, "groups": groups, "s": s, "truth": truth, "covered": covered}
        found.append(row | {"mean_share": float(np.mean([share.value for share in shares]))})
        print(found[-1], flush=True)
    write_atomic(RESULTS, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
