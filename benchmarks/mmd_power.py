"""The power of `mmd_test` beside the published aggregated test's, on that paper's own examples.

    python benchmarks/mmd_power.py [--d {1,2}] [--repeats N]    # d = 1: five minutes of one core, d = 2: an hour

Perturbed uniforms (Schrab et al. 2023, section 5.4): U(0, 1)^d against a density with P bumps up and down along each
side, their signs drawn anew in every repeat; 500 rows of each in one dimension, 2,000 in two, level 0.05, 500
permutations. `ours` is `mmd_test` with its defaults. `published` are the authors' stored results of their test with
permutations and a Gaussian kernel over the bandwidths 2^-4..2^0, 500 repeats: with uniform weights, which favour no
bandwidth, and with the centred ones, which favour the middle of the range. Stored in results/mmd_power.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math

import torch
from _timing import RESULTS, one_thread, store
from torch import Generator, Tensor

from latentfit.evaluation import mmd_test

LEVEL, PERMUTATIONS, REPEATS = 0.05, 500, 500
ROWS = {1: 500, 2: 2_000}
#: c_d of the paper: the density stays positive with one bump
HEIGHT = {1: 2.7, 2: 7.3}
#: (d, P): uniform weights, centred weights; github.com/antoninschrab/mmdagg-paper, paper/raw/results.csv
PUBLISHED = {
    (1, 1): (1.000, 1.000),
    (1, 2): (0.976, 1.000),
    (1, 3): (0.348, 0.446),
    (1, 4): (0.032, 0.070),
    (2, 1): (1.000, 1.000),
    (2, 2): (0.772, 0.872),
    (2, 3): (0.002, 0.012),
}


def bump(t: Tensor) -> Tensor:
    """Up on (0, 1/2), down on (1/2, 1), smooth: the paper's G, shifted."""

    def hill(u: Tensor) -> Tensor:
        inside = (1 - u.square()).clamp_min(0)
        return torch.where(inside > 0, (-1 / inside).exp(), 0.0)

    return hill(4 * t - 1) - hill(4 * t - 3)


def perturbed(n: int, d: int, bumps: int, generator: Generator) -> Tensor:
    """1 + c_d / P sum_v theta_v prod_i G(P x_i - v_i) on the cube, by rejection: (n, d)."""
    signs = torch.randint(2, (bumps,) * d, generator=generator) * 2.0 - 1
    scale = HEIGHT[d] / bumps
    highest = 1 + scale * math.exp(-d)
    kept: list[Tensor] = []
    while sum(map(len, kept)) < n:
        x = torch.rand(2 * n, d, generator=generator)
        cell = (bumps * x).long().clamp_max(bumps - 1)
        density = 1 + scale * signs[tuple(cell.T)] * bump(bumps * x - cell).prod(1)
        kept.append(x[highest * torch.rand(2 * n, generator=generator) <= density])
    return torch.cat(kept)[:n]


def power(d: int, bumps: int, repeats: int, device: str) -> float:
    """The share of repeats that are rejected."""
    rejected = 0
    for repeat in range(repeats):
        generator = Generator().manual_seed(1_000_000 * d + 10_000 * bumps + repeat)
        x = torch.rand(ROWS[d], d, generator=generator).to(device)
        y = perturbed(ROWS[d], d, bumps, generator).to(device)
        rejected += mmd_test(x, y, n_permutations=PERMUTATIONS, random_state=repeat).p_value <= LEVEL
    return rejected / repeats


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--d", type=int, choices=(1, 2), nargs="*", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    one_thread()
    path = RESULTS / "mmd_power.json"
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"] if path.exists() else {}
    for d, bumps in itertools.product(options.d, (1, 2, 3, 4)):
        if (d, bumps) not in PUBLISHED:
            continue
        ours = power(d, bumps, options.repeats, options.device)
        uniform, centred = PUBLISHED[d, bumps]
        cells[f"d={d}, P={bumps}"] = {
            "ours": round(ours, 3),
            "std_error": round(math.sqrt(ours * (1 - ours) / options.repeats), 3),
            "repeats": options.repeats,
            "published, uniform weights": uniform,
            "published, centred weights": centred,
            "device": options.device,
        }
        print(d, bumps, cells[f"d={d}, P={bumps}"], flush=True)
        store("mmd_power", {"level": LEVEL, "permutations": PERMUTATIONS, "cells": cells})


if __name__ == "__main__":
    main()
