"""When does it pay to be Bayesian? Few rows, and rows unlike the training's.

    python benchmarks/when_bayesian.py --data-dir data            # resumable: finished runs are kept

Few rows: each method trained on 1,000 rows of digits and of MNIST (binarised), three seeds, log p(x) of 300 test rows
none saw, paired by row and seed with the deterministic VAE; `apart` is a list of five VAEs trained from five
seeds, and `mixture`, a learned prior with certain weights, is what else could be done. Of each what importance sampling
may have missed (`doubling`), and what more draws of the weights would add at least (`bias`). Unlike rows: trained on
5,000 images of Fashion-MNIST (binarised), AUROC of telling 300 of its test images from 300 of MNIST, by the score fixed
in advance (disagreement) and by all others, plain log p(x) among them; `unlike-60000` is the same with all training
images, for five VAEs from five seeds and one seed in all. Default recipes, one thread. Stored in
benchmarks/results/when_bayesian.json.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch

import latentfit as lf
from latentfit.comparison.rank import Candidate, rank
from latentfit.data import load
from latentfit.evaluation import log_likelihood, score_ood

RESULTS = Path(__file__).parent / "results" / "when_bayesian.json"
METHODS = ("standard", "ensemble", "swag", "mc_dropout", "bnn", "sgld")
FEW = (*METHODS, "mixture", "apart")
APART = 5
SEEDS = (0, 1, 2)
N_TRAIN, N_TEST = 1000, 300
#: training images of Fashion-MNIST, the methods and the seeds
UNLIKE = {
    "unlike": (5_000, (*METHODS, "apart"), SEEDS),
    "unlike-60000": (60_000, ("standard", "apart"), (0,)),
}
#: of log p(x), for each draw
SCORING = {"n_importance_samples": 100, "refinement_steps": 40, "random_state": 0}


def rows(name: str, data_dir: Path | None, n_train: int) -> tuple[np.ndarray, np.ndarray]:
    """Training and test rows, drawn once."""
    source = load(name, data_dir)
    rng = np.random.default_rng(0)
    if source.is_test is None:
        order = rng.permutation(len(source.x))
        return source.x[order[:n_train]], source.x[order[n_train : n_train + N_TEST]]
    test, train = np.flatnonzero(source.is_test), np.flatnonzero(~source.is_test)
    return source.x[rng.permutation(train)[:n_train]], source.x[rng.permutation(test)[:N_TEST]]


def trained(method: str, X: np.ndarray, seed: int, binary: bool) -> lf.VAE:
    return lf.VAE(method=method, likelihood="bernoulli" if binary else None, random_state=seed).fit(X)


def few_rows(data: str, data_dir: Path | None, method: str, seed: int) -> dict[str, Any]:
    X, X_test = rows(data, data_dir, N_TRAIN)
    if data == "mnist":
        X, X_test = binarised(X), binarised(X_test)
    started = time.perf_counter()
    if method == "apart":
        vaes = [trained("standard", X, 1000 * (seed + 1) + s, data == "mnist") for s in range(APART)]
    else:
        vaes = [trained(method, X, seed, data == "mnist")]
    seconds = time.perf_counter() - started
    scored = log_likelihood(
        [vae.module_ for vae in vaes],
        torch.as_tensor(vaes[0]._rows(X_test)),
        proposal=proposals(vaes),
        **SCORING,
    )
    over = scored.over_models
    return {
        "seconds": round(seconds, 1),
        "doubling": round(scored.doubling, 4),
        "bias": None if over is None else round(over.bias, 3),
        "log_px": [round(float(value), 4) for value in scored.values],
    }


def proposals(vaes: list[lf.VAE]) -> Any:
    """One for all draws of a VAE, which share its encoder, or one for each of several VAEs."""
    return vaes[0]._proposal if len(vaes) == 1 else [vae._proposal for vae in vaes]


def unlike_rows(n_train: int, data_dir: Path | None, method: str, seed: int) -> dict[str, Any]:
    X, inside = (binarised(x) for x in rows("fashion-mnist", data_dir, n_train))
    outside = binarised(rows("mnist", data_dir, 1)[1])
    if method == "apart":
        vaes = [trained("standard", X, 1000 * (seed + 1) + s, True) for s in range(APART)]
        model: Any = [vae.module_ for vae in vaes]
        proposal: Any = [vae._proposal for vae in vaes]
    else:
        vae = trained(method, X, seed, True)
        model, proposal = vae.module_, vae._proposal
    found = {}
    if method == "standard":
        values = [
            log_likelihood(model, torch.as_tensor(x), proposal=proposal, n_importance_samples=50).values
            for x in (inside, outside)
        ]
        return {"auroc": {"log_p": auroc(-values[0], -values[1])}}
    near, far = (score_ood(model, torch.as_tensor(x), proposal=proposal) for x in (inside, outside))
    for name, sign in (("disagreement", 1), ("log_p", -1), ("expected", -1), ("waic", -1), ("effective_draws", -1)):
        found[name] = auroc(sign * getattr(near, name), sign * getattr(far, name))
    return {"auroc": found}


def binarised(x: np.ndarray) -> np.ndarray:
    return (x > 127).astype(np.float32)


def auroc(inside: np.ndarray, outside: np.ndarray) -> float:
    """P(score of an unlike row > score of a like one), ties counted half."""
    difference = outside[:, None] - inside[None, :]
    return round(float((difference > 0).mean() + 0.5 * (difference == 0).mean()), 4)


def summary(runs: dict[str, Any]) -> dict[str, Any]:
    """Paired gains over the deterministic VAE, and AUROC by score, mean and range over seeds."""
    found: dict[str, Any] = {}
    for data in ("digits", "mnist"):
        everything = [m for m in FEW if any(f"{data}/{m}/{s}" in runs for s in SEEDS)]
        seeds = [s for s in SEEDS if everything and all(f"{data}/{method}/{s}" in runs for method in everything)]
        if not seeds:
            continue
        values = {method: np.array([runs[f"{data}/{method}/{s}"]["log_px"] for s in seeds]) for method in everything}
        ranked = rank({method: Candidate(array, "jointly") for method, array in values.items()})
        found[data] = {"n_seeds": len(seeds), "standard": {"log_px": round(float(values["standard"].mean()), 3)}} | {
            method: {"gain": round(gain.value, 3), "interval": [round(end, 3) for end in gain.interval]}
            for method, gain in ranked.gains.items()
        }
    for data, (n_train, tried, seeds) in UNLIKE.items():
        for method in tried:
            scores = [runs[key]["auroc"] for s in seeds if (key := f"{data}/{method}/{s}") in runs]
            if scores:
                found.setdefault(f"auroc, {n_train:,} training images", {})[method] = {
                    name: {
                        "mean": round(float(np.mean([s[name] for s in scores])), 3),
                        "seeds": [s[name] for s in scores],
                    }
                    for name in scores[0]
                }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=None)
    parser.add_argument("--only", choices=("digits", "mnist", *UNLIKE), default=None)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    stored = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"runs": {}}
    runs = stored["runs"]
    for seed in SEEDS:
        for data in ("digits", "mnist", *UNLIKE):
            if options.only not in (None, data):
                continue
            n_train, tried, seeds = UNLIKE.get(data, (N_TRAIN, FEW, SEEDS))
            for method in tried if seed in seeds else ():
                key = f"{data}/{method}/{seed}"
                if key in runs:
                    continue
                started = time.perf_counter()
                if data in UNLIKE:
                    runs[key] = unlike_rows(n_train, options.data_dir, method, seed)
                else:
                    runs[key] = few_rows(data, options.data_dir, method, seed)
                print(f"{key}  {time.perf_counter() - started:.0f} s", flush=True)
                RESULTS.write_text(json.dumps({"summary": summary(runs), "runs": runs}) + "\n")
    RESULTS.write_text(json.dumps({"summary": summary(runs), "runs": runs}) + "\n")
    print(json.dumps(summary(runs), indent=1))


if __name__ == "__main__":
    main()
