"""What a distribution over the weights costs in a training step, beside the same step without one.

    python benchmarks/bayes_speed.py

MLP 784-300-300-2x40 and back, ReLU, batch 128, Adam, one thread, float32: encoder and decoder both with the
distribution, but for `ensemble`, which is the method's: five decoders around one encoder. `one sample` is the mean
field with its dense layers treated as any other, one draw of the weights a step. SGLD is a Langevin step in place of
Adam's; SWAG collects every fifth step, as by default. All steps are interleaved in one run; medians of the ratios.
Stored in benchmarks/results/bayes_speed.json.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from torch import nn

from latentfit import ELBO, VAEModule, bayes
from latentfit.bayes import iterates, langevin, mean_field
from latentfit.networks import MLP

RESULTS = Path(__file__).parent / "results" / "bayes_speed.json"
ROUNDS, STEPS = 15, 10
TARGETS = {"bnn": 2.6, "one sample": 2.1, "sgld": 1.2, "swag": 1.05, "ensemble": 4.0}


def networks() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    return MLP(784, 80, hidden=[300, 300], activation="relu"), MLP(40, 784, hidden=[300, 300], activation="relu")


def step_of(name: str, x: torch.Tensor) -> Callable[[], None]:
    """One training step of the model `name`."""
    encoder, decoder = networks()
    kinds = {"bnn": "bnn", "one sample": "bnn", "mc_dropout": "mc_dropout"}
    if name in kinds:
        encoder, decoder = (bayes.create(kinds[name], part) for part in (encoder, decoder))
    if name == "ensemble":
        decoder = bayes.create("ensemble", decoder, n_members=5)
    vae = VAEModule(encoder, decoder, latent_dim=40).train()
    objective = ELBO(n_samples=5 if name == "ensemble" else 1)
    objective.n_train = 50_000
    parameters = [p for p in vae.parameters() if p.requires_grad]
    if name == "sgld":

        def gradient() -> tuple[torch.Tensor, ...]:
            return torch.autograd.grad(objective(vae, x)["loss"], parameters)

        ones = [torch.ones_like(p) for p in parameters]
        walk = langevin.langevin(parameters, gradient, ones, [1.0] * len(ones), 50_000, 1e-4)
        return lambda: next(walk)
    optimiser = torch.optim.Adam(parameters, fused=True)
    flat = torch.cat([p.detach().flatten() for p in parameters])
    moments = iterates.Moments(flat, 20) if name == "swag" else None
    count = itertools.count()

    def step() -> None:
        for p in parameters:
            p.grad = None
        objective(vae, x)["loss"].backward()
        optimiser.step()
        if moments is not None and next(count) % 5 == 0:
            moments.add(parameters)

    if name != "one sample":
        return step

    def with_one_sample() -> None:
        dense, mean_field.DENSE = mean_field.DENSE, ()
        try:
            step()
        finally:
            mean_field.DENSE = dense

    return with_one_sample


def main() -> None:
    torch.set_num_threads(1)
    x = (torch.rand(128, 784) < 0.3).float()
    names = ("deterministic", "bnn", "one sample", "mc_dropout", "sgld", "swag", "ensemble")
    steps = {name: step_of(name, x) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for step in steps.values():
        step()
    for _ in range(ROUNDS):
        for name, step in steps.items():
            started = time.perf_counter()
            for _ in range(STEPS):
                step()
            seconds[name].append((time.perf_counter() - started) / STEPS)
    base = np.array(seconds["deterministic"])
    found = {
        name: {
            "microseconds": round(1e6 * float(np.median(values))),
            "ratio": round(float(np.median(np.array(values) / base)), 3),
            **({"target": TARGETS[name]} if name in TARGETS else {}),
        }
        for name, values in seconds.items()
    }
    for name, numbers in found.items():
        print(f"{name:<16}{numbers['microseconds']:>8} us  x {numbers['ratio']:.2f}  {numbers.get('target', '')}")
    RESULTS.write_text(json.dumps({"torch": torch.__version__, "rounds": ROUNDS, "steps": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
