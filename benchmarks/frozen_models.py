"""Is the gain real? Twelve trained VAEs, each given a better prior without touching a weight.

    python benchmarks/frozen_models.py --data-dir data     # resumable: a model that is done is not done again
    python benchmarks/frozen_models.py --data-dir data --device cuda --threads 8 --only digits --time-limit 500

One file per model under `--out` (results/frozen_models), so that several processes may divide the models by `--only`.

MNIST and Fashion-MNIST (5,000 training images, binarised once, gated MLP 2 x 300, 40 latents) at KL weights 0.1,
1 and 4, and digits (16 latents, Normal) at the same weights with sigma fixed at 2 and with a learned sigma. Each is
trained with N(0, I), then `latentfit.retrofit` fits the ladder on its training rows. Stored for each: T(r) of the kept
prior on test rows, the held-out ELBO before and after with the same draws, and the paired gain of log p(x).

Must hold: T equals the ELBO gain to 1e-4; the interval of the paired gain of log p(x) excludes 0 wherever T exceeds
0.2 nats; where T's interval includes 0 nothing is sold.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch

import latentfit as lf
from latentfit import methods, saving
from latentfit.data import Batch, binarise_once, grey_to_unit, load
from latentfit.evaluation.codes import encode_rows
from latentfit.evaluation.gap import prior_gap_per_row
from latentfit.model import ELBO, VAEModule
from latentfit.model.schedules import Linear
from latentfit.training.rng import isolated_rng

RESULTS = Path(__file__).parent / "results" / "frozen_models"
WEIGHTS = (0.1, 1.0, 4.0)
STEPS = 3_000
TRAIN, TEST = 5_000, 2_000


@dataclass(frozen=True)
class Case:
    """One trained VAE."""

    data: str
    kl_weight: float
    scale: str | float | None = None

    @property
    def file_name(self) -> str:
        return re.sub("[^a-z0-9.]+", "-", self.name.lower()) + ".json"

    @property
    def name(self) -> str:
        sigma = "" if self.scale is None else f", sigma {self.scale}"
        return f"{self.data}, KL weight {self.kl_weight:g}{sigma}"


CASES = [Case(data, weight) for data in ("mnist", "fashion-mnist") for weight in WEIGHTS] + [
    Case("digits", weight, scale) for scale in (2.0, "learned") for weight in WEIGHTS
]


def rows(case: Case, data_dir: Path | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Training and test rows as the model takes them."""
    source = load(case.data, data_dir)
    if case.data == "digits":
        x = torch.as_tensor(np.asarray(source.x, dtype=np.float32)).flatten(1)
        order = torch.as_tensor(np.random.default_rng(0).permutation(len(x)))
        return x[order[:1_200]], x[order[1_200:]]
    x = torch.as_tensor(grey_to_unit(source.x)).flatten(1)
    test = torch.as_tensor(source.is_test)
    binary = binarise_once(torch.cat([x[~test][:TRAIN], x[test][:TEST]]), random_state=0)
    return binary[:TRAIN], binary[TRAIN:]


def train(case: Case, X: torch.Tensor, device: str) -> VAEModule:
    likelihood = {"name": "bernoulli", "args": {}}
    if case.scale is not None:
        likelihood = {"name": "normal", "args": {"scale": case.scale}}
    with isolated_rng(0):
        vae = methods.build(
            "standard",
            data_shape=(X.shape[1],),
            latent_dim=16 if case.data == "digits" else 40,
            likelihood=likelihood,
            network="mlp" if case.data == "digits" else "gated_mlp",
        )
    warmup = Linear(steps=STEPS // 10, end=case.kl_weight)
    lf.fit(vae, X, objective=ELBO(kl_weight=warmup), max_steps=STEPS, random_state=0, device=device)
    return vae


def measure(case: Case, data_dir: Path | None, device: str) -> dict:
    X, X_test = rows(case, data_dir)
    vae = train(case, X, device)
    fix = lf.retrofit(vae, X, X_test=X_test, random_state=0)
    codes = encode_rows(vae, Batch(X_test))
    per_row = prior_gap_per_row(fix.prior, vae.prior, codes) if fix.changed else np.zeros(len(codes))
    facts = {
        "kept": fix.kept.name,
        "gain": fix.gain.to_dict(),
        "elbo_gain_same_draws": elbo_gain(vae, fix.prior, X_test) if fix.changed else 0.0,
        "mean_of_rows": float(per_row.mean()),
        "log_px_gain": None if fix.log_px_gain is None else fix.log_px_gain.to_dict(),
        "k": fix.setting.k,
        "selection": {row.name: row.gap.to_dict() for row in fix.rows},
        "failed_guards": {row.name: list(row.failed) for row in fix.rows if row.failed},
        "holes": fix.holes,
        "kl": fix.kl.value,
        "weights_unchanged": fix.weights_unchanged,
        "seconds": round(fix.setting.seconds, 1),
        "device": vae.device.type,
        "torch": torch.__version__,
    }
    return facts | {"verdict": verdict(facts)}


@torch.inference_mode()
def elbo_gain(vae: VAEModule, prior, X: torch.Tensor) -> float:
    """ELBO with the new prior minus ELBO with the old one, by the same four draws per row, nats."""
    total = 0.0
    batch = Batch(X.to(vae.device))
    codes = encode_rows(vae, batch)
    z = codes.sample(4, torch.Generator(device=codes.mean.device).manual_seed(0))
    log_q = torch.distributions.Normal(codes.mean, codes.std).log_prob(z).sum(-1)
    log_p = vae.log_likelihood(batch, z)
    for p, sign in ((prior, 1.0), (vae.prior, -1.0)):
        total += sign * float((log_p + p.log_prob(z) - log_q).double().mean())
    return total


def verdict(facts: dict) -> str:
    low, high = facts["gain"]["interval"]
    if facts["kept"] == "nothing":
        return "nothing to win"
    if low <= 0 <= high:
        return "sold although T's interval includes 0"
    if abs(facts["mean_of_rows"] - facts["elbo_gain_same_draws"]) > 1e-4:
        return "T is not the ELBO gain"
    if facts["gain"]["value"] > 0.2 and not facts["log_px_gain"]["interval"][0] > 0:
        return "T above 0.2 nats, gain of log p(x) not above 0"
    return "real"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=None)
    parser.add_argument("--only", default="", help="cases whose name begins so")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--time-limit", type=float, default=float("inf"), metavar="SECONDS", help="begin no case that may end later"
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    began, longest = time.monotonic(), 0.0
    for case in CASES:
        path = arguments.out / case.file_name
        if path.exists() or not case.name.startswith(arguments.only):
            continue
        start = time.monotonic()
        if start - began + longest > arguments.time_limit:
            break
        facts = measure(case, arguments.data_dir, arguments.device)
        longest = max(longest, time.monotonic() - start)
        arguments.out.mkdir(parents=True, exist_ok=True)
        saving.write_atomic(path, json.dumps({"case": case.name, **facts}, indent=1) + "\n")
        print(f"{case.name}: {facts['kept']}, T {facts['gain']['value']:.3f}, {facts['verdict']}", flush=True)


if __name__ == "__main__":
    main()
