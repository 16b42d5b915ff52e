"""Tables in [0, 1]: a normal with a scale for each column, or a continuous Bernoulli? Held-out log p(x).

    python benchmarks/unit_tables.py

scikit-learn's tables, min-max scaled on the training rows and clipped; three quarters train, one quarter is scored,
`lf.VAE` with 4 units and 600 steps. Both are densities of the same numbers, so their nats compare. The mean of each of
three splits goes to benchmarks/results/unit_tables.json; their test rows overlap, so no error is given.
"""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris, load_wine
from sklearn.preprocessing import MinMaxScaler

import latentfit as lf
from latentfit.errors import LatentfitWarning
from latentfit.saving import write_atomic

RESULTS = Path(__file__).parent / "results" / "unit_tables.json"
TABLES = {"breast_cancer": load_breast_cancer, "wine": load_wine, "diabetes": load_diabetes, "iris": load_iris}
LIKELIHOODS = ("continuous_bernoulli", "normal")
SPLITS = 3


def log_px(x: np.ndarray, likelihood: str, seed: int) -> float:
    order = np.random.default_rng(seed).permutation(len(x))
    train, test = np.split(x[order], [3 * len(x) // 4])
    scale = MinMaxScaler(clip=True).fit(train)
    vae = lf.VAE(latent_dim=4, likelihood=likelihood, max_steps=600, random_state=seed)
    return vae.fit(scale.transform(train)).score(scale.transform(test))


def main() -> None:
    warnings.simplefilter("ignore", LatentfitWarning)
    table = {}
    for name, load in TABLES.items():
        x = load().data
        table[name] = {each: [log_px(x, each, seed) for seed in range(SPLITS)] for each in LIKELIHOODS}
        print(name, table[name], flush=True)
    write_atomic(RESULTS, json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
