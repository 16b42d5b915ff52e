"""What a VampPrior costs: a training step against pythae's, and the memory of its density.

    OMP_NUM_THREADS=1 python benchmarks/vamp_speed.py     # pythae 0.1.2 on the path; results/vamp_speed.json

784-512-40-512-784 with ReLU, 500 pseudo-inputs, batches of 128 synthetic binary rows, one thread, CPU seconds.
`ours` is `latentfit.fit` with its defaults (averaged weights, clipping, metrics); `pythae` is its VAMP model with its
own default networks of the same widths in the shortest loop with fused Adam, without its trainer's overhead. An epoch
is a number of steps, so the ratio of steps is that of epochs. Memory is the growth of a fresh process's peak while
1,000 components score 60,000 codes of 40 dimensions; rows times components times dimensions would be 9.6 GB.
"""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import torch
from _timing import interleave, one_thread, store, summary
from torch import nn

from latentfit import priors
from latentfit.model import VAEModule, fit

BATCH, ROWS, STEPS, K, DIM, WIDTH = 128, 2_560, 20, 500, 40, 512

MEMORY = """
import resource, torch
from latentfit import priors
torch.set_num_threads(1)
prior = priors.create("vamp", latent_dim=40)
prior.component_mean, prior.component_factor = torch.randn(1000, 40), torch.ones(1000, 40)
z = torch.randn(60_000, 40)
with torch.no_grad():
    prior.log_prob(z[:100])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    prior.log_prob(z)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def ours(x: torch.Tensor) -> VAEModule:
    encoder = nn.Sequential(nn.Linear(784, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 2 * DIM))
    decoder = nn.Sequential(nn.Linear(DIM, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 784))
    return VAEModule(encoder, decoder, priors.create("vamp", latent_dim=DIM, n_components=K))


def pythaes() -> nn.Module:
    from pythae.models import VAMP, VAMPConfig

    return VAMP(VAMPConfig(input_dim=(784,), latent_dim=DIM, number_components=K, reconstruction_loss="bce"))


def steps_of_pythae(model: nn.Module, optimiser: torch.optim.Optimizer, x: torch.Tensor) -> int:
    order = torch.randperm(len(x))
    for rows in order.split(BATCH):
        optimiser.zero_grad(set_to_none=True)
        model({"data": x[rows]}, epoch=1).loss.backward()
        optimiser.step()
    return len(order) // BATCH


def main() -> None:
    one_thread()
    torch.manual_seed(0)
    x = (torch.rand(ROWS, 784) < 0.2).float()
    mine, theirs = ours(x), pythaes().train()
    adam = torch.optim.Adam(theirs.parameters(), lr=1e-3, fused=True)

    def train() -> int:
        return fit(mine, x, validation_fraction=0.0, max_steps=STEPS, batch_size=BATCH).steps

    arms = {"pythae": lambda: steps_of_pythae(theirs, adam, x), "ours": train}
    seconds = interleave(arms, rounds=7, warmup=1)
    memory = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True).stdout
    result = {
        "pythae": version("pythae"),
        "step": summary(seconds, "pythae"),
        "memory_mb": {"components": 1_000, "codes": 60_000, "peak_growth": round(float(memory), 1)},
    }
    print(result, store("vamp_speed", result).name)


if __name__ == "__main__":
    main()
