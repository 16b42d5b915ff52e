"""How often the certificate claims more than the truth, and how often it sees what is there.

    python benchmarks/coverage.py --seconds 3600  # goes on where it stopped; results/coverage.json

Every cell is a population of codes whose mismatch KL(q(z) || N(0, I)) is known by quadrature. A repeat draws N
rows of it, climbs the ladder and asks whether the 95 % interval's lower end (corrected for the number of rungs)
exceeds the truth. That may happen in 2.5 % of the repeats. Rounds go over all cells, so an unfinished result is
as far everywhere; `n_repeats` says how far. Fits are short (`MAX_STEPS`): a bound must hold however well r fits.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
import torch
from _timing import RESULTS, one_thread

from latentfit.data.synthetic import kl_mixture_from_normal
from latentfit.evaluation import Codes, climb, cross_fit
from latentfit.priors import StandardNormalPrior
from latentfit.saving import write_atomic

CHEAP = ("learned_gaussian", "mixture")
#: iterations of EM, gradient steps of a flow
MAX_STEPS, FLOW_STEPS = 6, 300
REPEATS, FLOW_REPEATS = 200, 50
#: repeats of a cell in one round
ROUND = 5
PATH = RESULTS / "coverage.json"


@dataclass(frozen=True)
class Cell:
    """A population, a number of rows, and how they are judged.

    Attributes:
        shape: "clusters" (some coordinates have two modes, variance 1, the others are standard), "rare rows" (few
            rows in N rows lie in p's bulk, the others in a narrow Gaussian: log r - log p then has a left tail)
            or "wide rows" (one row in ten comes from a Gaussian wider than p: a right tail).
        truth: KL(q(z) || N(0, I)), nats.
        dim: D.
        n: N, rows judged.
        kl: mean KL(q(z given x) || N(0, I)) below or above log N, as far as the mismatch leaves a choice.
        separate: whether the priors are fitted on other rows (N of them), not on the other half.
        flow: whether the ladder has a flow.
    """

    shape: str
    truth: float
    dim: int
    n: int
    kl: str = "above"
    separate: bool = False
    flow: bool = False

    def __str__(self) -> str:
        how = ", train=" if self.separate else ""
        rungs = ", flow" if self.flow else ""
        return f"{self.shape}, {self.truth:g} nats, D={self.dim}, N={self.n:,}, KL {self.kl} log N{how}{rungs}"

    @property
    def repeats(self) -> int:
        """How many are wanted."""
        return FLOW_REPEATS if self.flow else REPEATS

    def noise_share(self) -> float:
        """Standard deviation of a code as a share of its component's: what sets the mutual information."""
        wanted = (0.6 if self.kl == "below" else 1.5) * math.log(self.n) - self.truth
        return min(0.95, math.exp(-wanted / self.dim))

    def codes(self, n: int, seed: int) -> Codes:
        """n rows of the population."""
        rng = np.random.default_rng([seed, n, self.dim])
        if self.shape == "clusters":
            modes, centre, scale = two_modes(self.truth, self.dim)
            scales = np.where(np.arange(self.dim) < modes, scale, 1.0)
            centres = np.where(np.arange(self.dim) < modes, centre, 0.0) * rng.choice((-1.0, 1.0), (n, self.dim))
        else:
            share, narrow, other = self.tails()
            scales = np.where(rng.random(n) < share, other, narrow)[:, None] * np.ones(self.dim)
            centres = 0.0
        c = self.noise_share()
        mean = centres + math.sqrt(1 - c**2) * scales * rng.standard_normal((n, self.dim))
        std = np.broadcast_to(c * scales, mean.shape)
        return Codes.of(mean.astype(np.float32), std=std.astype(np.float32))

    def tails(self) -> tuple[float, float, float]:
        """Share of rare rows, standard deviation of the common and of the rare ones, for the truth wanted."""
        share, rare = (2 / self.n, 1.0) if self.shape == "rare rows" else (0.1, 2.0)
        narrow = bisect(lambda s: -radial_mismatch(share, s, rare, self.dim), -self.truth, 0.02, 0.999)
        return share, narrow, rare


def two_modes(truth: float, dim: int) -> tuple[int, float, float]:
    """How many coordinates have two modes, their centres +- m and scale s with m^2 + s^2 = 1."""
    if truth == 0:
        return 0, 0.0, 1.0
    modes = min(dim, max(1, round(truth / 2.5)))

    def mismatch(s: float) -> float:
        m = math.sqrt(1 - s**2)
        return -modes * kl_mixture_from_normal(np.array([0.5, 0.5]), np.array([-m, m]), np.array([s, s]))

    scale = bisect(mismatch, -truth, 1e-3, 0.9999)
    return modes, math.sqrt(1 - scale**2), scale


def radial_mismatch(share: float, narrow: float, rare: float, dim: int) -> float:
    """KL((1 - share) N(0, narrow^2 I) + share N(0, rare^2 I) || N(0, I)) by an integral over the radius, nats."""
    top = max(narrow, rare) * (math.sqrt(dim) + 12)
    r = np.linspace(0, top, 40_001)[1:]
    log_area = math.log(2) + 0.5 * dim * math.log(math.pi) - math.lgamma(0.5 * dim)

    def log_normal(s: float) -> np.ndarray:
        return -0.5 * (r / s) ** 2 - dim * (math.log(s) + 0.5 * math.log(2 * math.pi))

    log_q = np.logaddexp(math.log1p(-share) + log_normal(narrow), math.log(share) + log_normal(rare))
    density = np.exp(log_area + (dim - 1) * np.log(r) + log_q)
    return float((density * (log_q - log_normal(1.0))).sum() * (r[1] - r[0]))


def bisect(increasing, wanted: float, low: float, high: float) -> float:
    """The argument at which an increasing function is `wanted`."""
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if increasing(middle) < wanted else (low, middle)
    return 0.5 * (low + high)


def cells() -> Iterator[Cell]:
    """All of them, the small ones first."""
    for n in (1_000, 5_000, 50_000):
        for dim in (2, 16, 40):
            for truth in (0.0, 0.1, 1.0, 10.0):
                for kl in ("below", "above"):
                    yield Cell("clusters", truth, dim, n, kl)
        if n == 50_000:
            continue
        for dim in (2, 16):
            yield Cell("rare rows", 1.0, dim, n)
            yield Cell("wide rows", 1.0, dim, n)
        for truth in (0.0, 1.0):
            yield Cell("clusters", truth, 16, n, separate=True)
    for truth in (0.0, 1.0):
        yield Cell("clusters", truth, 2, 1_000, flow=True)


def repeat(cell: Cell, seed: int) -> tuple[float, float]:
    """The certificate's value and lower end in one repeat, nats."""
    rungs = (*CHEAP, "realnvp") if cell.flow else CHEAP
    p = StandardNormalPrior(cell.dim)
    options = {"rungs": rungs, "random_state": seed, "max_steps": FLOW_STEPS if cell.flow else MAX_STEPS}
    codes = cell.codes(cell.n, seed)
    if cell.separate:
        other = cell.codes(cell.n, seed + 1_000_000)
        cut = cell.n // 10
        ladder = climb(other[slice(cut, None)], other[slice(0, cut)], codes, p, **options)
    else:
        ladder = cross_fit(codes, p, **options)
    return ladder.prior_gap.value, ladder.prior_gap.interval[0]


def go_on(cell: Cell, found: dict) -> dict:
    """`found` after one more round."""
    done = found.get("n_repeats", 0)
    news = [repeat(cell, seed) for seed in range(done, min(cell.repeats, done + ROUND))]
    values, lower = (found.get(key, []) + [round(x[i], 4) for x in news] for i, key in enumerate(("values", "lower")))
    return {**asdict(cell), "n_repeats": len(lower), **judged(cell, values, lower), "values": values, "lower": lower}


def judged(cell: Cell, values: list[float], lower: list[float]) -> dict:
    """Counts of repeats, and what the certificate says on average."""
    return {
        "mean_kl": round(float(cell.codes(2_000, 0).kl_to_standard_normal().mean()), 2),
        "log_n": round(math.log(cell.n), 2),
        "lower_bound_above_truth": sum(x > cell.truth for x in lower),
        "lower_bound_above_zero": sum(x > 0 for x in lower),
        "mean_gap": round(float(np.mean(values)), 4),
        "mean_lower_bound": round(float(np.mean(lower)), 4),
    }


def main() -> None:
    """Run for a while and store what there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--most-rows", type=int, default=50_000, help="leave out cells with more rows")
    arguments = parser.parse_args()
    one_thread()
    stop = time.monotonic() + arguments.seconds
    result = json.loads(PATH.read_text(encoding="utf-8")) if PATH.exists() else {"cells": {}}
    wanted = [cell for cell in cells() if cell.n <= arguments.most_rows]
    while time.monotonic() < stop:
        left = [c for c in wanted if result["cells"].get(str(c), {}).get("n_repeats", 0) < c.repeats]
        if not left:
            break
        fewest = min(result["cells"].get(str(c), {}).get("n_repeats", 0) for c in left)
        for cell in left:
            found = result["cells"].get(str(cell), {})
            if found.get("n_repeats", 0) > fewest:
                continue
            result["cells"][str(cell)] = go_on(cell, found)
            result["torch"] = torch.__version__
            result["max_steps"] = {"em": MAX_STEPS, "flow": FLOW_STEPS}
            write_atomic(PATH, json.dumps(result) + "\n")
            if time.monotonic() > stop:
                break
    for name, found in result["cells"].items():
        n, bad, seen = (found[k] for k in ("n_repeats", "lower_bound_above_truth", "lower_bound_above_zero"))
        print(f"{name:62} {n:4} repeats  above truth {bad:3}  above zero {seen:4}  mean gap {found['mean_gap']:.3f}")


if __name__ == "__main__":
    main()
