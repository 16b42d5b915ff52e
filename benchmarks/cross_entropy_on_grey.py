"""A decoder trained by cross-entropy on grey values, read as a continuous Bernoulli: what its two means explain.

    python benchmarks/cross_entropy_on_grey.py

digits / 16, a VAE of 64-200-6-200-64 in plain PyTorch, 3,000 steps of binary cross-entropy plus KL; 397 test images:
the share of their variance that the sigmoid of the logits explains, and that of the continuous Bernoulli's mean. To
benchmarks/results/cross_entropy_on_grey.json.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from sklearn.datasets import load_digits
from torch import nn

import latentfit as lf
from latentfit.evaluation.round_trip import explained_variance
from latentfit.saving import write_atomic

RESULTS = Path(__file__).parent / "results" / "cross_entropy_on_grey.json"


class Tutorial(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 200), nn.ReLU())
        self.mean, self.logvar = nn.Linear(200, 6), nn.Linear(200, 6)
        self.out = nn.Sequential(nn.Linear(6, 200), nn.ReLU(), nn.Linear(200, 64))

    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        h = self.body(x)
        return self.mean(h), self.logvar(h)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.out(z))


def trained(x: torch.Tensor, seed: int) -> Tutorial:
    torch.manual_seed(seed)
    vae = Tutorial()
    adam = torch.optim.Adam(vae.parameters(), 1e-3)
    for _ in range(3_000):
        rows = x[torch.randint(len(x), (100,))]
        mean, logvar = vae.encode(rows)
        decoded = vae.decode(mean + torch.randn_like(mean) * (0.5 * logvar).exp())
        nll = nn.functional.binary_cross_entropy(decoded, rows, reduction="none").sum(1).mean()
        kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).sum(1).mean()
        adam.zero_grad()
        (nll + kl).backward()
        adam.step()
    return vae


def main() -> None:
    x = torch.tensor(load_digits().data / 16, dtype=torch.float32)
    found = []
    for seed in range(3):
        vae = lf.adapt(trained(x[:1400], seed), example=x[:100], likelihood="continuous_bernoulli")
        shares = {"sigmoid": explained_variance(vae, x[1400:], mean=torch.sigmoid), "likelihood": None}
        shares["likelihood"] = explained_variance(vae, x[1400:])
        found.append({name: share.to_dict() for name, share in shares.items()})
        print(seed, {name: str(share) for name, share in shares.items()}, flush=True)
    write_atomic(RESULTS, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
