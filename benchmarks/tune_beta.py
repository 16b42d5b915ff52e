"""`tune_beta` against a sweep of six full trainings.

    python benchmarks/tune_beta.py  # ten minutes of one core; stores results/tune_beta.json

Data: scikit-learn's digits, counts 0..16 and black and white, 1,400 rows for training and 397 held out. The sweep
trains at six strengths and scores log p(x) on the held-out rows; the strength that `tune_beta` found on the training
rows alone is trained and scored in the same way. Cost: gradient steps and CPU seconds of `tune_beta` over those of the
sweep's trainings.
"""

from __future__ import annotations

import json
import time

import numpy as np
import torch
from _timing import one_thread, store

import latentfit as lf
from latentfit.evaluation import log_likelihood
from latentfit.training.rng import isolated_rng

SWEEP, STEPS, LATENT_DIM = (4.0, 2.0, 1.0, 0.5, 0.25, 0.1), 1_200, 16
LIKELIHOODS = {"counts": {"name": "binomial", "args": {"n": 16}}, "black and white": {"name": "bernoulli"}}


def rows(kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Digits, shuffled."""
    from sklearn.datasets import load_digits

    x = load_digits().data.astype("float32")
    x = x if kind == "counts" else (x >= 8).astype("float32")
    x = torch.from_numpy(x[np.random.default_rng(0).permutation(len(x))])
    return x[:1_400], x[1_400:]


def build(kind: str) -> lf.VAEModule:
    """The untrained VAE."""
    with isolated_rng(0):
        return lf.methods.build(
            "standard",
            data_shape=(64,),
            latent_dim=LATENT_DIM,
            likelihood=LIKELIHOODS[kind],
            network_args={"hidden": [128]},
        )


def score(kind: str, beta: float) -> tuple[float, float]:
    """Held-out log p(x) of a full training at this strength, and its CPU seconds."""
    train, test = rows(kind)
    vae = build(kind)
    began = time.process_time()
    objective = lf.ELBO(lf.schedules.linear(STEPS // 10, end=beta))
    lf.fit(vae, train, objective=objective, max_steps=STEPS, patience=None)
    seconds = time.process_time() - began
    return log_likelihood(vae, test, X_train=train, n_importance_samples=200).estimate.value, seconds


def main() -> None:
    """Both data sets."""
    one_thread()
    result = {}
    for kind in LIKELIHOODS:
        began = time.process_time()
        found = lf.tune_beta(build(kind), rows(kind)[0], max_steps=STEPS)
        seconds = time.process_time() - began
        print(found, flush=True)
        sweep = {beta: score(kind, beta) for beta in SWEEP}
        at_found = sweep[found.beta] if found.beta in sweep else score(kind, found.beta)
        best = max(value for value, _ in sweep.values())
        result[kind] = {
            "beta": found.beta,
            "knee": found.knee,
            "gaps": [round(gap.value, 3) for gap in found.gaps],
            "elbos": [round(elbo.value, 3) for elbo in found.elbos],
            "log_px": round(at_found[0], 3),
            "best of the sweep": round(best, 3),
            "short of the best": round(best - at_found[0], 3),
            "cost": round(seconds / sum(s for _, s in sweep.values()), 3),
            "steps": round(found.steps / (STEPS * len(SWEEP)), 3),
            "sweep": {str(beta): round(value, 3) for beta, (value, _) in sweep.items()},
        }
        print(kind, json.dumps(result[kind]), flush=True)
        store("tune_beta", result)


if __name__ == "__main__":
    main()
