"""A learned sigma that lags: the held-out ELBO before and after it is moved to the training residuals' own.

    python benchmarks/learned_scale.py

scikit-learn's tables, 4 units, 70 % of the rows train, the others are scored; three splits, the same training in both
arms. `lf.fit` moves sigma where its own held-out rows gain. To benchmarks/results/learned_scale.json.
"""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from unittest.mock import patch

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine
from sklearn.model_selection import train_test_split

import latentfit as lf
from latentfit.errors import LatentfitWarning
from latentfit.saving import write_atomic

RESULTS = Path(__file__).parent / "results" / "learned_scale.json"
TABLES = {"breast_cancer": load_breast_cancer, "wine": load_wine, "diabetes": load_diabetes}
STEPS, SPLITS = (200, 1_000, 2_000), 3


def elbo(x: np.ndarray, steps: int, seed: int, settled: bool) -> float:
    train, test = train_test_split(x.astype(np.float32), test_size=0.3, random_state=seed)
    vae = lf.VAE(latent_dim=4, max_steps=steps, random_state=seed)
    if settled:
        return float(vae.fit(train).elbo(test).mean())
    with patch("latentfit.model.fitting._settle_scale", lambda module, data, prepare, result, validate: result):
        return float(vae.fit(train).elbo(test).mean())


def main() -> None:
    warnings.simplefilter("ignore", LatentfitWarning)
    table: dict[str, dict[str, list[list[float]]]] = {}
    for name, load in TABLES.items():
        for steps in STEPS:
            pairs = [[elbo(load().data, steps, seed, settled) for settled in (False, True)] for seed in range(SPLITS)]
            table.setdefault(name, {})[str(steps)] = pairs
            print(name, steps, [round(after - before, 2) for before, after in pairs], flush=True)
    write_atomic(RESULTS, json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
