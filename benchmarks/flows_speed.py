"""What our flows cost beside zuko's, interleaved: T = 6, two layers of 128, batch 256, one thread.

For 8, 40 and 128 dimensions, forward and backward of log_prob: affine coupling, spline coupling (8 bins, box 5) and
masked autoregressive, ours as the whole prior (whitening, rotations, base). Draws of the autoregressive flow. What the
default flow priors cost in a standard VAE's training step (784-300-300-40, batch 128). `--compiled` adds the couplings
under torch.compile, which needs a C++ compiler and minutes.

    OMP_NUM_THREADS=1 python benchmarks/flows_speed.py
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from typing import Any

import torch
import zuko
from _timing import interleave, one_thread, store, summary
from torch import Tensor, nn

from latentfit import ELBO, methods, priors
from latentfit.data import Batch

T, WIDTH, BATCH = 6, 128, 256
GOALS = {"affine": 0.67, "spline": 0.95, "maf_sample": 0.5}


def zuko_flow(kind: str, dim: int) -> nn.Module:
    if kind == "affine":
        return zuko.flows.RealNVP(dim, 0, transforms=T, hidden_features=(WIDTH, WIDTH))
    if kind == "maf":
        return zuko.flows.MAF(dim, 0, transforms=T, hidden_features=(WIDTH, WIDTH))
    couplings = [
        zuko.flows.GeneralCouplingTransform(
            dim,
            0,
            mask=torch.arange(dim) % 2 == t % 2,
            univariate=zuko.transforms.MonotonicRQSTransform,
            shapes=[(8,), (8,), (7,)],
            hidden_features=(WIDTH, WIDTH),
        )
        for t in range(T)
    ]
    base = zuko.flows.UnconditionalDistribution(
        zuko.distributions.DiagNormal, torch.zeros(dim), torch.ones(dim), buffer=True
    )
    return zuko.flows.Flow(couplings, base)


def our_flow(kind: str, dim: int) -> priors.Prior:
    name = {"affine": "realnvp", "spline": "nsf", "maf": "maf"}[kind]
    return priors.create(name, latent_dim=dim, transforms=T, hidden_features=WIDTH)


def step(log_prob: Callable[[Tensor], Tensor], module: nn.Module, z: Tensor, n: int) -> Callable[[], int]:
    """n times forward and backward of the mean of log_prob."""
    parameters = list(module.parameters())

    def run() -> int:
        for _ in range(n):
            (-log_prob(z).mean()).backward()
            for parameter in parameters:
                parameter.grad = None
        return n

    return run


def log_probs(kind: str, dim: int, rounds: int, compiled: bool) -> dict[str, Any]:
    torch.manual_seed(0)
    z = torch.randn(BATCH, dim)
    theirs, ours = zuko_flow(kind, dim), our_flow(kind, dim)

    def their_log_prob(z: Tensor) -> Tensor:
        return theirs().log_prob(z)

    arms = {"zuko": step(their_log_prob, theirs, z, 5), "ours": step(ours.log_prob, ours, z, 5)}
    if compiled:
        arms["zuko_compiled"] = step(torch.compile(their_log_prob), theirs, z, 5)
        arms["ours_compiled"] = step(torch.compile(ours.log_prob), ours, z, 5)
    return summary(interleave(arms, rounds=rounds), "zuko")


def draws(dim: int, rounds: int) -> dict[str, Any]:
    """256 draws of the autoregressive flow."""
    theirs, ours = zuko_flow("maf", dim), our_flow("maf", dim)

    @torch.no_grad()
    def zukos() -> int:
        theirs().sample((BATCH,))
        return 1

    def own() -> int:
        ours.sample(BATCH)
        return 1

    return summary(interleave({"zuko": zukos, "ours": own}, rounds=rounds), "zuko")


def vae_steps(rounds: int) -> dict[str, Any]:
    """Forward, backward and Adam of a standard VAE, by its prior."""
    torch.manual_seed(0)
    x = Batch((torch.rand(128, 784) < 0.13).float())
    arms = {}
    for prior in ("standard", "mixture", "realnvp", "nsf", "maf"):
        vae = methods.build(
            methods.Method(prior, "flow", prior=prior),
            data_shape=(784,),
            latent_dim=40,
            likelihood="bernoulli",
            network="mlp",
            network_args={"hidden": [300, 300]},
        )
        arms[prior] = vae_step(vae, x)
    return summary(interleave(arms, rounds=rounds), "standard")


def vae_step(vae: nn.Module, x: Batch) -> Callable[[], int]:
    objective, optimiser = ELBO(), torch.optim.Adam(vae.parameters(), lr=1e-3, fused=True)

    def run() -> int:
        for number in range(5):
            optimiser.zero_grad(set_to_none=True)
            objective(vae, x, number)["loss"].backward()
            optimiser.step()
        return 5

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--dims", type=int, nargs="+", default=[8, 40, 128])
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--no-store", action="store_true")
    options = parser.parse_args()
    one_thread()
    warnings.filterwarnings("ignore", ".*should not be instantiated", DeprecationWarning)
    result: dict[str, Any] = {
        "what": f"T = {T}, 2 x {WIDTH}, batch {BATCH}, one thread, ratios to zuko {zuko.__version__} eager",
        "rounds": options.rounds,
        "goals": GOALS,
        "log_prob": {},
    }
    for kind in ("affine", "spline", "maf"):
        for dim in options.dims:
            figures = log_probs(kind, dim, options.rounds, options.compiled and kind != "maf")
            result["log_prob"][f"{kind} {dim}"] = figures
            print(kind, dim, {arm: row["ratio"] for arm, row in figures.items()}, flush=True)
    result["maf_sample 40"] = draws(40, max(3, options.rounds // 3))
    print("256 draws of maf, 40 dimensions:", result["maf_sample 40"]["ours"]["ratio"], "x zuko", flush=True)
    result["vae_step"] = vae_steps(options.rounds)
    for prior, row in result["vae_step"].items():
        print(f"VAE's step with {prior}: {row['ratio']:.2f} x standard")
    if not options.no_store:
        print(store("flows_speed", result).name)


if __name__ == "__main__":
    main()
