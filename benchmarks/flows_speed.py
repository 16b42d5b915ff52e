"""What our flows cost beside zuko's, interleaved: T = 6, two layers of 128, batch 256, one thread.

    OMP_NUM_THREADS=1 python benchmarks/flows_speed.py [PART ...]  # any of PARTS; results/flows_speed.json

log_prob: forward and backward for 8, 40 and 128 dimensions of affine couplings, spline couplings (8 bins, box 5) and
masked autoregressive flows, ours as the whole prior (whitening, LU mixing, base); beside the affine ones the matrix
products alone, which is what no code around them can save. compiled: the couplings under torch.compile, ours held to
one graph; it needs a C++ compiler and minutes. maf_sample: 256 draws of the autoregressive flow. vae_step: what the
default flow priors cost in a standard VAE's training step (784-300-300-40, batch 128).
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable
from typing import Any

import torch
import zuko
from _timing import RESULTS, interleave, one_thread, store, summary
from torch import Tensor, nn
from torch.nn import functional as F

from latentfit import ELBO, methods, priors
from latentfit.data import Batch

T, WIDTH, BATCH = 6, 128, 256
GOALS = {"affine": 0.67, "spline": 0.95, "compiled": 1.0, "maf_sample": 0.5}
DIMS = (8, 40, 128)


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


def products(dim: int) -> Callable[[], int]:
    """The matrix products alone of an affine flow's forward and backward."""
    half = dim // 2
    shapes = [(half, WIDTH), (WIDTH, WIDTH), (WIDTH, 2 * (dim - half)), (dim, dim)]
    layers = [(torch.randn(BATCH, a), torch.randn(b, a), torch.randn(BATCH, b)) for a, b in shapes]
    triangles = torch.randn(T, dim, dim)

    def run() -> int:
        for _ in range(5):
            for _ in range(T):
                for x, weight, gradient in layers:
                    F.linear(x, weight), gradient @ weight, gradient.T @ x
            for _ in range(3):  # L U, and the gradients of L and of U
                torch.bmm(triangles, triangles)
        return 5

    return run


def log_probs(rounds: int) -> dict[str, Any]:
    """Forward and backward of log_prob."""
    found = {}
    for kind in ("affine", "spline", "maf"):
        for dim in DIMS:
            torch.manual_seed(0)
            z = torch.randn(BATCH, dim)
            theirs, ours = zuko_flow(kind, dim), our_flow(kind, dim)
            arms = {"zuko": step(log_prob_of(theirs), theirs, z, 5), "ours": step(ours.log_prob, ours, z, 5)}
            if kind == "affine":
                arms["matrix products alone"] = products(dim)
            found[f"{kind} {dim}"] = figures = summary(interleave(arms, rounds=rounds), "zuko")
            print(kind, dim, {arm: row["ratio"] for arm, row in figures.items()}, flush=True)
    return found


def compiled(rounds: int) -> dict[str, Any]:
    """The same under torch.compile, ratios to zuko compiled; ours is refused where it is more than one graph."""
    found: dict[str, Any] = {}
    for kind in ("affine", "spline"):
        for dim in DIMS:
            torch.compiler.reset()  # else a second number of dimensions is compiled for any number
            torch.manual_seed(0)
            z = torch.randn(BATCH, dim)
            theirs, ours = zuko_flow(kind, dim), our_flow(kind, dim)
            arms = {
                "zuko": step(log_prob_of(theirs), theirs, z, 5),
                "ours": step(ours.log_prob, ours, z, 5),
                "zuko_compiled": step(torch.compile(log_prob_of(theirs)), theirs, z, 5),
                "ours_compiled": step(torch.compile(ours.log_prob, fullgraph=True), ours, z, 5),
            }
            found[f"{kind} {dim}"] = figures = summary(interleave(arms, rounds=rounds), "zuko_compiled")
            print("compiled", kind, dim, {arm: row["ratio"] for arm, row in figures.items()}, flush=True)
    return found


def log_prob_of(flow: nn.Module) -> Callable[[Tensor], Tensor]:
    """zuko's log_prob of a batch."""
    return lambda z: flow().log_prob(z)


def maf_sample(rounds: int) -> dict[str, Any]:
    """256 draws of the autoregressive flow in 40 dimensions."""
    theirs, ours = zuko_flow("maf", 40), our_flow("maf", 40)

    @torch.no_grad()
    def zukos() -> int:
        theirs().sample((BATCH,))
        return 1

    def own() -> int:
        ours.sample(BATCH)
        return 1

    return summary(interleave({"zuko": zukos, "ours": own}, rounds=max(3, rounds // 3)), "zuko")


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


PARTS = {"log_prob": log_probs, "maf_sample": maf_sample, "vae_step": vae_steps, "compiled": compiled}


def main() -> None:
    """Run the parts asked for, and keep the others' stored results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    one_thread()
    warnings.filterwarnings("ignore", ".*should not be instantiated", DeprecationWarning)
    path = RESULTS / "flows_speed.json"
    for part in options.parts or PARTS:
        found = {"rounds": options.rounds, **PARTS[part](options.rounds)}
        print(part, json.dumps(found), flush=True)
        stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        what = f"T = {T}, 2 x {WIDTH}, batch {BATCH}, one thread, beside zuko {zuko.__version__}"
        store("flows_speed", stored | {"what": what, "goals": GOALS, part: found})


if __name__ == "__main__":
    main()
