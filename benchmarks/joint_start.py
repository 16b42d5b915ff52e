"""What it wins that a mixture trained jointly starts at the codes, on digits: the same runs with and without.

    python benchmarks/joint_start.py            # two minutes; results/joint_start.json

The recipe of every method, 16 units, 1,500 steps, two seeds; the ELBO and log p(x) of held-out rows, nats.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import warnings

import numpy as np
from _timing import one_thread, store

import latentfit as lf
from latentfit.data import load
from latentfit.model import fitting

SEEDS = (0, 1)


def scored(method: str, seed: int) -> dict[str, float]:
    """One training on four fifths of digits, judged on the rest."""
    x = np.asarray(load("digits").x)
    x = x[np.random.default_rng(0).permutation(len(x))]
    n = int(0.8 * len(x))
    vae = lf.VAE(method=method, latent_dim=16, max_steps=1_500, random_state=seed).fit(x[:n])
    return {
        "elbo": round(float(vae.elbo(x[n:]).mean()), 3),
        "log_px": round(vae.score(x[n:]), 3),
        "steps": vae.n_steps_,
    }


def main() -> None:
    """Every method with the start, and without it."""
    one_thread()
    warnings.simplefilter("ignore")
    starts, found = fitting._PRIOR_STARTS, {}
    for method in ("standard", "mixture", "dp_mixture"):
        for name, shares in (("without", ()), ("with", starts)):
            if method == "standard" and name == "with":
                continue
            fitting._PRIOR_STARTS = shares
            found[f"{method}, {name}"] = [scored(method, seed) for seed in SEEDS]
            print(method, name, found[f"{method}, {name}"], flush=True)
    store("joint_start", {"starts": starts, "arms": found})


if __name__ == "__main__":
    main()
