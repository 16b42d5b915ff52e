"""Does the error budget name the culprit? One fault at a time, injected into VAEs that are otherwise sound.

    python benchmarks/culprits.py          # resumable; ten repeats of each fault on digits

The sound VAE: digits as reals, 16 latents, a Normal decoder with a learned sigma, N(0, I), 3,000 steps. Faults:

    wrong variance       sigma replaced by three times the learned one
    crippled encoder     the posterior's standard deviation multiplied by four, its means kept
    displaced prior      N(0, I) replaced by N(1.5, I) in every unit
    unfinished warm-up   trained with a KL weight that only reaches 0.25

`latentfit.diagnose` sees the model, its test and training rows, and for the last fault the training's own facts.
Stored: which finding it names first, and every part of the budget; beside them the same for the sound VAE.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from torch import nn

import latentfit as lf
from latentfit import methods, saving
from latentfit.data import load
from latentfit.diagnosis.result import Diagnosis
from latentfit.likelihoods import Normal
from latentfit.model import ELBO, VAEModule
from latentfit.model.schedules import Linear
from latentfit.priors import LearnedGaussianPrior
from latentfit.training.rng import isolated_rng

RESULTS = Path(__file__).parent / "results" / "culprits.json"
STEPS, REPEATS = 3_000, 10
EXPECTED = {
    "wrong variance": "LF-DECODER-01",
    "crippled encoder": "LF-INFERENCE-01",
    "displaced prior": "LF-PRIOR-01",
    "unfinished warm-up": "LF-TRAIN-01",
}


class Widened(nn.Module):
    """An encoder whose standard deviations are multiplied by a factor."""

    def __init__(self, encoder: nn.Module, factor: float) -> None:
        super().__init__()
        self.encoder, self.factor = encoder, factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean, log_variance = self.encoder(x).chunk(2, dim=-1)
        return torch.cat([mean, log_variance + 2 * np.log(self.factor)], dim=-1)


class Foreign(nn.Module):
    """The VAE as a module of somebody else's, whose history only its owner knows."""

    def __init__(self, vae: VAEModule) -> None:
        super().__init__()
        self.encoder, self.decoder = vae.encoder, vae.decoder

    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean, log_variance = self.encoder(x).chunk(2, dim=-1)
        return mean, log_variance

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        return self.decoder(z)


def digits(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.as_tensor(np.asarray(load("digits").x, dtype=np.float32)).flatten(1)
    order = torch.as_tensor(np.random.default_rng(seed).permutation(len(x)))
    return x[order[:1_200]], x[order[1_200:]]


def sound(X: torch.Tensor, seed: int, kl_weight: float = 1.0) -> VAEModule:
    with isolated_rng(seed):
        vae = methods.build(
            "standard",
            data_shape=(64,),
            latent_dim=16,
            likelihood={"name": "normal", "args": {"scale": "learned"}},
        )
    objective = ELBO(kl_weight=Linear(steps=STEPS // 10, end=kl_weight))
    lf.fit(vae, X, objective=objective, max_steps=STEPS, random_state=seed)
    return vae


def wrong_variance(vae: VAEModule) -> VAEModule:
    sigma = float(vae.likelihood._scale(torch.zeros(1), None).detach())
    vae.likelihood = Normal(scale=3 * sigma)
    return vae


def crippled_encoder(vae: VAEModule) -> VAEModule:
    vae.encoder = Widened(vae.encoder, 4.0)
    return vae


def displaced_prior(vae: VAEModule) -> VAEModule:
    prior = LearnedGaussianPrior(16)
    mean = torch.full((5_000, 16), 1.5) + torch.randn(5_000, 16, generator=torch.Generator().manual_seed(0))
    prior.fit(mean, std=torch.full_like(mean, 1e-3))
    vae.prior = prior
    return vae


FAULTS: dict[str, Callable[[VAEModule], VAEModule]] = {
    "none": lambda vae: vae,
    "wrong variance": wrong_variance,
    "crippled encoder": crippled_encoder,
    "displaced prior": displaced_prior,
}


def measure(seed: int) -> dict[str, dict]:
    X, X_test = digits(seed)
    vae = sound(X, seed)
    found = {}
    for name, fault in FAULTS.items():
        found[name] = facts(lf.diagnose(fault(copy.deepcopy(vae)), X_test, X_train=X, depth="quick", random_state=seed))
    unfinished = sound(X, seed, kl_weight=0.25)
    adapted = lf.adapt(
        Foreign(unfinished), example=X_test, likelihood=unfinished.likelihood, kl_weight=0.25, reconstruction="nll"
    )
    found["unfinished warm-up"] = facts(lf.diagnose(adapted, X_test, X_train=X, depth="quick", random_state=seed))
    return found


def facts(dx: Diagnosis) -> dict:
    first = dx.first
    return {"first": None if first is None else first.code, "budget": dx.to_dict()["budget"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    stored = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"torch": torch.__version__, "repeats": {}}
    for seed in range(arguments.repeats):
        if str(seed) not in stored["repeats"]:
            stored["repeats"][str(seed)] = measure(seed)
        found = list(stored["repeats"].values())
        stored["named first"] = {
            name: f"{sum(r[name]['first'] == code for r in found)} of {len(found)}" for name, code in EXPECTED.items()
        }
        stored["named without a fault"] = [r["none"]["first"] for r in found]
        saving.write_atomic(RESULTS, json.dumps(stored, indent=1) + "\n")
        print(f"{seed + 1} of {arguments.repeats}: {stored['named first']}", flush=True)


if __name__ == "__main__":
    main()
