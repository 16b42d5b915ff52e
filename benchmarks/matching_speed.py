"""What matching by MMD costs in training: an epoch of a WAE and of an InfoVAE against pythae's.

    OMP_NUM_THREADS=1 python benchmarks/matching_speed.py --pythae DIR    # pythae 0.1.2 in a folder apart

784-512-40-512-784 with ReLU, batches of 128 synthetic binary rows, one thread, CPU seconds. `ours` is `latentfit.fit`
with its defaults (averaged weights, clipping, metrics) and the `mmd` penalty with its default kernels; its encoder has
means and variances in both. `pythae` is its model with its own default networks and kernels in the shortest loop with
fused Adam, without its trainer's overhead. An epoch is a number of steps, so the ratio of steps is that of epochs.
Stored in results/matching_speed.json.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from _timing import interleave, one_thread, store, summary
from torch import nn

import latentfit as lf
from latentfit.model import VAEModule, fit

BATCH, ROWS, STEPS, DIM, WIDTH, ROUNDS = 128, 2_560, 20, 40, 512, 9
#: KL weight and weight of the penalty: WAE-MMD, and InfoVAE with alpha = 0 and lambda = 11
FORMS = {"wae": (0.0, 10.0), "infovae": (1.0, 10.0)}


def ours(form: str) -> VAEModule:
    encoder = nn.Sequential(nn.Linear(784, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 2 * DIM))
    decoder = nn.Sequential(nn.Linear(DIM, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 784))
    likelihood = lf.likelihoods.create("normal", scale=1.0) if form == "wae" else "bernoulli"
    return VAEModule(encoder, decoder, latent_dim=DIM, likelihood=likelihood)


def pythaes(form: str) -> nn.Module:
    from pythae.models import INFOVAE_MMD, WAE_MMD, INFOVAE_MMD_Config, WAE_MMD_Config

    if form == "wae":
        return WAE_MMD(WAE_MMD_Config(input_dim=(784,), latent_dim=DIM, reg_weight=10.0))
    config = INFOVAE_MMD_Config(input_dim=(784,), latent_dim=DIM, reconstruction_loss="bce", alpha=0, lbd=11.0)
    return INFOVAE_MMD(config)


def steps_of_pythae(model: nn.Module, optimiser: torch.optim.Optimizer, x: torch.Tensor) -> int:
    order = torch.randperm(len(x))
    for rows in order.split(BATCH):
        optimiser.zero_grad(set_to_none=True)
        model({"data": x[rows]}).loss.backward()
        optimiser.step()
    return len(order) // BATCH


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pythae", type=Path, default=None, help="folder with pythae and what it imports")
    options = parser.parse_args()
    if options.pythae is not None:
        sys.path.append(str(options.pythae.resolve()))
    one_thread()
    torch.manual_seed(0)
    x = (torch.rand(ROWS, 784) < 0.2).float()
    result = {}
    for form, (kl_weight, weight) in FORMS.items():
        mine, theirs = ours(form), pythaes(form).train()
        adam = torch.optim.Adam(theirs.parameters(), lr=1e-3, fused=True)
        objective = lf.ELBO(kl_weight, [lf.penalties.create("mmd", weight=weight)])

        def train(mine: VAEModule = mine, objective: lf.ELBO = objective) -> int:
            options = {"max_steps": STEPS, "batch_size": BATCH, "validation_fraction": 0.0}
            return fit(mine, x, objective=objective, **options).steps

        def train_theirs(theirs: nn.Module = theirs, adam: torch.optim.Optimizer = adam) -> int:
            return steps_of_pythae(theirs, adam, x)

        seconds = interleave({"pythae": train_theirs, "ours": train}, rounds=ROUNDS)
        result[form] = summary(seconds, "pythae")
        print(form, result[form], flush=True)
    print(store("matching_speed", result).name)


if __name__ == "__main__":
    main()
