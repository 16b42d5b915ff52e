"""Exact MMD^2 of 10,000 x 40 against 10,000 x 40: against the arithmetic it needs, and against scikit-learn's kernel.

    python benchmarks/mmd_speed.py  # a minute; needs a C++ compiler for the limit; results/mmd_speed.json

The limit is measured in the same rounds: the Gram products of all blocks by the faster library in torch, and the
exponentials with their sums by a compiled kernel, each symmetric block once. Memory is the growth of the process's
peak, in a process of its own. One thread; CPU seconds; medians of the rounds' ratios.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import timeit
from pathlib import Path
from typing import Any

import torch
from _timing import interleave, one_thread, store

from latentfit.divergences import mmd2, mmd_test
from latentfit.divergences.kernels import Kernel
from latentfit.divergences.mmd import BLOCK
from latentfit.divergences.samples import slices
from latentfit.networks.products import _one_dnn_is_faster, dense

N, DIM, ROUNDS = 10_000, 40, 2
#: what the limit was made of
FOUND: dict[str, str] = {}
FIVE = [6.0 * 2 ** (k / 2) for k in (2, 1, 0, -1, -2)]


def samples() -> tuple[torch.Tensor, torch.Tensor]:
    """Two Gaussians, the second shifted a little."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(N, DIM, generator=generator), torch.randn(N, DIM, generator=generator) + 0.05


def limit(x: torch.Tensor, y: torch.Tensor) -> Any:
    """A function that does the arithmetic and nothing else."""
    kernel = Kernel.of("rbf", 6.0)
    (left_x, right_x), (left_y, right_y) = kernel.sides(x), kernel.sides(y)
    block = dense(left_x[:BLOCK], right_x[:BLOCK])
    # the fastest of what there is: which base a compiler vectorises better is its own affair
    ways = {
        "compiled exp": torch.compile(lambda e: torch.exp(e).sum()),
        "compiled exp2": torch.compile(lambda e: torch.exp2(e).sum()),
        "exp2": lambda e: torch.exp2(e).sum(),
    }
    seconds = {name: min(timeit.repeat(lambda way=way: way(block), number=3, repeat=8)) for name, way in ways.items()}
    FOUND["exponential of the limit"] = min(seconds, key=seconds.__getitem__)
    exp_sum = ways[FOUND["exponential of the limit"]]
    last = slice(N // BLOCK * BLOCK, N)  # compiled once for each shape of a block
    for rows in (slice(0, BLOCK), last):
        for columns in (slice(0, BLOCK), last):
            exp_sum(dense(left_x[rows], right_x[columns]))

    def run() -> int:
        for name, left, right in (("xx", left_x, right_x), ("yy", left_y, right_y), ("xy", left_x, right_y)):
            for rows in slices(N, BLOCK):
                for columns in slices(N, BLOCK):
                    if name == "xy" or columns.start >= rows.start:
                        exp_sum(dense(left[rows], right[columns]))
        return 1

    return run


def scikit_learn(x: torch.Tensor, y: torch.Tensor) -> float:
    """The same number with its kernel, in its own blocks."""
    from sklearn.metrics.pairwise import rbf_kernel

    a, b, gamma = x.numpy(), y.numpy(), 1 / (2 * 6.0**2)
    xx, yy, xy = (float(rbf_kernel(u, v, gamma=gamma).sum(dtype="float64")) for u, v in ((a, a), (b, b), (a, b)))
    return (xx - N) / (N * (N - 1)) + (yy - N) / (N * (N - 1)) - 2 * xy / N**2


def memory() -> float:
    """MB by which the peak grows in one call, in a fresh process (Linux)."""
    code = (
        "import re, torch\nfrom latentfit.divergences import mmd2\nimport mmd_speed\n"
        "x, y = mmd_speed.samples()\nmmd_speed._one_dnn_is_faster()\n"  # the libraries are loaded
        "open('/proc/self/clear_refs', 'w').write('5')\n"  # the peak starts anew from what is held now
        "read = lambda key: int(re.search(key + r':\\s+(\\d+)', open('/proc/self/status').read())[1])\n"
        "before = read('VmRSS')\nmmd2(x, y, 6.0)\nprint((read('VmHWM') - before) / 1024)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=Path(__file__).parent
    )
    return round(float(done.stdout), 1)


def main() -> None:
    """Time everything in the same rounds and store the ratios."""
    one_thread()
    x, y = samples()
    values = {"latentfit": mmd2(x, y, 6.0), "scikit-learn": scikit_learn(x, y)}
    arms = {
        "limit": limit(x, y),
        "mmd2": lambda: bool(mmd2(x, y, 6.0)) or 1,
        "mmd2, 5 bandwidths": lambda: bool(mmd2(x, y, FIVE)) or 1,
        "mmd_test, 500 permutations": lambda: bool(mmd_test(x, y, 6.0)) or 1,
        "scikit-learn's kernel": lambda: bool(scikit_learn(x, y)) or 1,
    }
    seconds = interleave(arms, rounds=ROUNDS, warmup=1)

    def ratio(name: str, to: str) -> float:
        return round(statistics.median(a / b for a, b in zip(seconds[name], seconds[to], strict=True)), 2)

    result = {
        "values": values,
        **FOUND,
        "one_dnn": _one_dnn_is_faster(),
        "mmd2 / limit": ratio("mmd2", "limit"),
        "scikit-learn / mmd2": ratio("scikit-learn's kernel", "mmd2"),
        "5 bandwidths / 1": ratio("mmd2, 5 bandwidths", "mmd2"),
        "500 permutations / mmd2": ratio("mmd_test, 500 permutations", "mmd2"),
        "extra_mb": memory(),
        "seconds": {name: round(statistics.median(values), 3) for name, values in seconds.items()},
    }
    store("mmd_speed", result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
