"""How often the certificate claims more than the truth, and how often it sees what is there.

    python benchmarks/coverage.py --processes 2 --time-limit 3600     # goes on where it stopped

Every cell is a population of codes whose mismatch KL(q(z) || N(0, I)) is known by quadrature. A repeat draws N
rows of it, climbs the ladder and asks whether the 95 % interval's lower end (corrected for the number of rungs)
exceeds the truth. That may happen in 2.5 % of the repeats. Fits are short (`MAX_STEPS`): a bound must hold however
well r fits. Beside the interval that the library gives (Student's t) stand two that need no normal approximation,
because log ratios to p are bounded below (`bernstein`, `betting`): what they would have claimed.

`--out` (results/coverage by default) gets a line per repeat in repeats.csv and the table in summary.json. Repeats of
other machines are taken in where their file lies beside it as repeats-ANYTHING.csv.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import csv
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from _pool import share_out
from _timing import RESULTS, one_thread

from latentfit.data.synthetic import kl_mixture_from_normal
from latentfit.evaluation import Codes, climb, cross_fit
from latentfit.priors import StandardNormalPrior
from latentfit.saving import write_atomic

CHEAP = ("learned_gaussian", "mixture")
#: iterations of EM, gradient steps of a flow
MAX_STEPS, FLOW_STEPS = 6, 300
REPEATS, FLOW_REPEATS = 200, 50
#: draws that judge a rung, at most, as in `diagnose_latents`
MOST_DRAWS = 120_000
#: repeats of a cell before its neighbours have their turn
ROUND = 20
#: a line of repeats.csv: the number, the value of T and the lower ends
COLUMNS = ("cell", "seed", "value", "student", "bernstein", "betting")


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

    def must_see(self) -> bool:
        """Whether the bound is to be above zero: a nat at least, and fifty rows per dimension and nat."""
        return self.truth >= 1 and self.n >= 50 * self.dim * self.truth

    @lru_cache(maxsize=1)  # noqa: B019 - cells live as long as the program
    def tails(self) -> tuple[float, float, float]:
        """Share of rare rows, standard deviation of the common and of the rare ones, for the truth wanted."""
        share, rare = (2 / self.n, 1.0) if self.shape == "rare rows" else (0.1, 2.0)
        narrow = bisect(lambda s: -radial_mismatch(share, s, rare, self.dim), -self.truth, 0.02, 0.999)
        return share, narrow, rare


@lru_cache
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
    """All of them, the cheap ones first."""
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
        if n == 5_000:
            for truth in (0.0, 1.0):
                yield Cell("clusters", truth, 2, 1_000, flow=True)


def repeat(cell: Cell, seed: int) -> tuple[float, float, float, float]:
    """T and its lower ends (Student, Bernstein, betting) in one repeat, nats."""
    one_thread()
    rungs = (*CHEAP, "realnvp") if cell.flow else CHEAP
    p = StandardNormalPrior(cell.dim)
    options = {
        "rungs": rungs,
        "random_state": seed,
        "max_steps": FLOW_STEPS if cell.flow else MAX_STEPS,
        "n_draws": max(1, min(4, MOST_DRAWS // cell.n)),
    }
    codes = cell.codes(cell.n, seed)
    if cell.separate:
        other = cell.codes(cell.n, seed + 1_000_000)
        cut = cell.n // 10
        ladder = climb(other[slice(cut, None)], other[slice(0, cut)], codes, p, **options)
    else:
        ladder = cross_fit(codes, p, **options)
    gap, best = ladder.prior_gap, ladder.best
    if best is ladder.nothing:
        return 0.0, 0.0, 0.0, 0.0
    alpha = 0.025 / len(rungs)
    y, low, high = truncated(best.per_row, seed)
    return gap.value, gap.interval[0], bernstein(y, low, high, alpha), betting(y, low, high, alpha)


def truncated(values: np.ndarray, seed: int) -> tuple[np.ndarray, float, float]:
    """Values cut off above where a tenth of them suggests (which is then left out), and their range.

    Log ratios of a defensive mixture are at least log(1 - w) >= log 0.01, and nothing bounds them above; cut values
    have a smaller mean, so a lower bound of theirs is one of T.
    """
    order = np.random.default_rng([seed, 7]).permutation(len(values))
    pilot, rest = values[order[: len(values) // 10]], values[order[len(values) // 10 :]]
    low, high = math.log(0.01), float(pilot.max() + 0.1 * (pilot.max() - pilot.min()) + 1e-6)
    return np.clip(rest, low, high), low, high


def bernstein(y: np.ndarray, low: float, high: float, alpha: float) -> float:
    """Lower bound of the mean of y in [low, high] (Maurer & Pontil 2009, arXiv:0907.3740)."""
    n, log_term = len(y), math.log(2 / alpha)
    return float(y.mean() - math.sqrt(2 * y.var(ddof=1) * log_term / n) - 7 * (high - low) * log_term / (3 * (n - 1)))


def betting(y: np.ndarray, low: float, high: float, alpha: float) -> float:
    """Lower bound of the mean of y in [low, high] by a bettor's capital (Waudby-Smith & Ramdas 2023, arXiv:2010.09686).

    Who bets lambda_t (y_t - m), lambda_t known beforehand, on a mean above m multiplies his capital by 1 / alpha with
    probability alpha at most if it is not: the largest m at which he does is the bound.
    """
    x, n = (y - low) / (high - low), len(y)
    count = np.arange(1, n + 1)
    mean = (0.5 + np.cumsum(x)) / (count + 1)
    variance = (0.25 + np.cumsum((x - mean) ** 2)) / (count + 1)
    bets = np.sqrt(2 * math.log(1 / alpha) / (n * np.concatenate(([0.25], variance[:-1]))))

    def capital(m: float) -> float:
        return float(np.log1p(np.minimum(bets, 0.75 / max(m, 1e-9)) * (x - m)).sum())

    if capital(0.0) < math.log(1 / alpha):
        return low
    return low + (high - low) * bisect(lambda m: -capital(m), -math.log(1 / alpha), 0.0, float(x.mean()))


def stored(out: Path) -> dict[tuple[str, int], list[float]]:
    """(cell, seed) -> the numbers of the repeats done so far, here or elsewhere."""
    found = {}
    for path in sorted(out.glob("repeats*.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                found[row["cell"], int(row["seed"])] = [float(row[name]) for name in COLUMNS[2:]]
    return found


def wanted(done: set[tuple[str, int]], arguments: argparse.Namespace) -> Iterator[tuple[Cell, int]]:
    """Repeats that are missing: cells with few rows first, `ROUND` of each in turn."""
    chosen = [cell for cell in cells() if cell.n <= arguments.most_rows and arguments.cells in str(cell)]
    for size in dict.fromkeys((cell.n, cell.flow) for cell in chosen):
        some = [cell for cell in chosen if (cell.n, cell.flow) == size]
        for start in range(0, max(cell.repeats for cell in some), ROUND):
            for cell in some:
                seeds = range(start, min(cell.repeats, start + ROUND))
                yield from ((cell, seed) for seed in seeds if (str(cell), seed) not in done)


def run(arguments: argparse.Namespace) -> None:
    """Repeats until all are done or the time is; each is written as it comes."""
    path = arguments.out / "repeats.csv"
    todo = wanted(set(stored(arguments.out)), arguments)
    new = not path.exists() or not path.stat().st_size
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(COLUMNS)
        options = {"processes": arguments.processes, "time_limit": arguments.time_limit}
        for (cell, seed), numbers in share_out(repeat, todo, **options, kind=lambda c, _: (c.n, c.dim, c.flow)):
            writer.writerow([str(cell), seed, *(f"{x:.4f}" for x in numbers)])
            file.flush()


def summary(out: Path) -> dict:
    """Counts of repeats by cell, and what the bounds say on average."""
    found, table = stored(out), {}
    for cell in cells():
        rows = np.array([numbers for (name, _), numbers in found.items() if name == str(cell)])
        if not len(rows):
            continue
        table[str(cell)] = {
            **asdict(cell),
            "n_repeats": len(rows),
            "must_see": cell.must_see(),
            "mean_kl": round(float(cell.codes(2_000, 0).kl_to_standard_normal().mean()), 2),
            "log_n": round(math.log(cell.n), 2),
            "mean_gap": round(float(rows[:, 0].mean()), 4),
            "bounds": {
                name: {
                    "above_truth": int((lower > cell.truth).sum()),
                    "above_zero": int((lower > 0).sum()),
                    "mean": round(float(lower.mean()), 4),
                }
                for name, lower in zip(COLUMNS[3:], rows[:, 1:].T, strict=True)
            },
        }
    return {"torch": torch.__version__, "max_steps": {"em": MAX_STEPS, "flow": FLOW_STEPS}, "cells": table}


def main() -> None:
    """Run for a while and store what there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--time-limit", type=float, default=3600, metavar="SECONDS")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS / "coverage")
    parser.add_argument("--most-rows", type=int, default=50_000, help="leave out cells with more rows")
    parser.add_argument("--cells", default="", metavar="TEXT", help="only those with it in their name, such as 'flow'")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    run(arguments)
    result = summary(arguments.out)
    write_atomic(arguments.out / "summary.json", json.dumps(result, indent=1) + "\n")
    for name, found in result["cells"].items():
        says = (f"{kind} {b['above_truth']}/{b['above_zero']}" for kind, b in found["bounds"].items())
        print(f"{name:62} {found['n_repeats']:4} repeats  T {found['mean_gap']:.3f}  above truth/0: {', '.join(says)}")


if __name__ == "__main__":
    main()
