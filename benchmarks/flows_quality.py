"""How well flows fit: 8 Gaussians whose truth is known, and the codes of MNIST VAEs with 8 and 40 latents.

Held-out nats per row over N(0, I), under equal steps and one protocol (whitening, Adam, cosine, fresh draws, early
stopping): our flows, zuko's through `as_prior`, one Gaussian and a mixture of 50 by EM. The VAEs are trained once and
their codes kept under runs/. Resumable: an arm that has a result is not run again (`--fresh` starts over).

    OMP_NUM_THREADS=1 python benchmarks/flows_quality.py --data-dir data
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import zuko
from _mnist_codes import mnist_codes
from _timing import RESULTS, one_thread, store
from torch import Tensor

from latentfit import priors
from latentfit.evaluation.estimate import Estimate
from latentfit.training import isolated_rng

T, WIDTH, DRAWS = 6, 128, 4
RADIUS, SPREAD = 2.0, 0.2

Codes = dict[str, Tensor]


def eight_gaussians(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Means and standard deviations of n rows: q(z) is eight Gaussians on a ring."""
    angle = 2 * math.pi * torch.randint(8, (n,), generator=torch.Generator().manual_seed(seed)) / 8
    mean = RADIUS * torch.stack((angle.cos(), angle.sin()), -1)
    return mean, torch.full_like(mean, SPREAD)


def ring_codes() -> Codes:
    (mean, std), (test_mean, test_std) = eight_gaussians(20_000, 0), eight_gaussians(10_000, 1)
    return {"mean": mean, "std": std, "test_mean": test_mean, "test_std": test_std}


def truth(z: Tensor) -> Tensor:
    """log q(z) of the eight Gaussians: (..., 2) -> (...)."""
    angle = 2 * math.pi * torch.arange(8) / 8
    centre = RADIUS * torch.stack((angle.cos(), angle.sin()), -1)
    energy = ((z.unsqueeze(-2) - centre) / SPREAD).square().sum(-1)
    return (-0.5 * energy).logsumexp(-1) - math.log(8 * 2 * math.pi * SPREAD**2)


def zuko_spline(dim: int) -> priors.Prior:
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
    return priors.as_prior(zuko.flows.Flow(couplings, base))


def nflows_flow(kind: str) -> Callable[[int], priors.Prior]:
    """nflows' couplings, whose halves take turns, and its MAF with reversals between."""

    def make(dim: int) -> priors.Prior:
        from nflows import distributions, flows, nn, transforms

        layers: list[Any] = []
        for t in range(T):
            if kind == "maf":
                layers.append(transforms.ReversePermutation(dim))
                layers.append(transforms.MaskedAffineAutoregressiveTransform(dim, WIDTH, num_blocks=1))
                continue

            def network(n_in: int, n_out: int) -> torch.nn.Module:
                return nn.nets.ResidualNet(n_in, n_out, WIDTH, num_blocks=1)  # one block: two more hidden layers

            mask = torch.arange(dim) % 2 == t % 2
            if kind == "realnvp":
                layers.append(transforms.AffineCouplingTransform(mask, network))
            else:
                layers.append(
                    transforms.PiecewiseRationalQuadraticCouplingTransform(
                        mask, network, num_bins=8, tails="linear", tail_bound=5.0
                    )
                )
        base = distributions.StandardNormal([dim])
        return priors.as_prior(flows.Flow(transforms.CompositeTransform(layers), base), latent_dim=dim)

    return make


def normflows_flow(kind: str) -> Callable[[int], priors.Prior]:
    """normflows' couplings. What it calls MAF is an IAF: its density takes dim passes, and is left out."""

    def make(dim: int) -> priors.Prior:
        import normflows

        layers: list[Any] = []
        for t in range(T):
            if kind == "realnvp":
                mask = (torch.arange(dim) % 2 == t % 2).float()
                nets = [normflows.nets.MLP([dim, WIDTH, WIDTH, dim], init_zeros=True) for _ in range(2)]
                layers.append(normflows.flows.MaskedAffineFlow(mask, *nets))
            else:
                layers.append(
                    normflows.flows.CoupledRationalQuadraticSpline(
                        dim, 2, WIDTH, num_bins=8, tail_bound=5.0, reverse_mask=t % 2 == 1
                    )
                )
                layers.append(normflows.flows.LULinearPermute(dim))
        base = normflows.distributions.DiagGaussian(dim, trainable=False)
        return priors.as_prior(normflows.NormalizingFlow(base, layers), latent_dim=dim)

    return make


def ours(name: str) -> Callable[[int], priors.Prior]:
    return lambda dim: priors.create(name, latent_dim=dim, transforms=T, hidden_features=WIDTH)


ARMS: dict[str, Callable[[int], priors.Prior]] = {
    "gaussian": lambda dim: priors.create("learned_gaussian", latent_dim=dim),
    "mixture 50": lambda dim: priors.create("mixture", latent_dim=dim, n_components=50),
    "realnvp": ours("realnvp"),
    "nsf": ours("nsf"),
    "maf": ours("maf"),
    "nsf on mixture 50": lambda dim: priors.create(
        "nsf",
        latent_dim=dim,
        transforms=T,
        hidden_features=WIDTH,
        base=priors.create("mixture", latent_dim=dim, n_components=50),
    ),
    "zuko realnvp": lambda dim: priors.as_prior(
        zuko.flows.RealNVP(dim, 0, transforms=T, hidden_features=(WIDTH, WIDTH))
    ),
    "zuko spline": zuko_spline,
    "zuko maf": lambda dim: priors.as_prior(zuko.flows.MAF(dim, 0, transforms=T, hidden_features=(WIDTH, WIDTH))),
}
#: asked for by name, where they are installed
OTHERS: dict[str, Callable[[int], priors.Prior]] = {
    "nflows realnvp": nflows_flow("realnvp"),
    "nflows spline": nflows_flow("spline"),
    "nflows maf": nflows_flow("maf"),
    "normflows realnvp": normflows_flow("realnvp"),
    "normflows spline": normflows_flow("spline"),
}


def run(arm: str, codes: Codes, steps: int) -> dict[str, Any]:
    dim = codes["mean"].shape[1]
    with isolated_rng(0):
        prior = (ARMS | OTHERS)[arm](dim)
    gradient = arm not in ("gaussian", "mixture 50")
    start = time.process_time()
    prior.fit(codes["mean"], std=codes["std"], max_steps=steps if gradient else None, random_state=0)
    seconds = time.process_time() - start
    generator = torch.Generator().manual_seed(7)
    standard = priors.create("standard", latent_dim=dim)
    with torch.no_grad():
        noise = torch.randn(DRAWS, *codes["test_mean"].shape, generator=generator)
        z = codes["test_mean"] + codes["test_std"] * noise  # (S, N, D)
        log_r = torch.stack([prior.log_prob(part) for part in z])
        gain = Estimate.of((log_r - standard.log_prob(z)).mean(0).double().numpy())
    found: dict[str, Any] = {
        "gain": round(gain.value, 4),
        "std_error": round(gain.std_error, 4),
        "fit_cpu_seconds": round(seconds, 1),
        "parameters": prior.n_parameters,
    }
    if dim == 2:
        found["short_of_truth"] = round((truth(z).mean() - log_r.mean()).item(), 4)
    if isinstance(prior, priors.FlowPrior):
        own = prior.sample(2_000, generator=generator)
        found["units"] = dim if prior.active is None else len(prior.active)
        found["inverse_error"] = {"codes": prior.inverse_error(z[0]), "samples": prior.inverse_error(own)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--steps", type=int, default=2_000)
    parser.add_argument("--targets", nargs="+", default=["ring", "8", "40"])
    parser.add_argument("--arms", nargs="+", default=list(ARMS))
    parser.add_argument("--fresh", action="store_true")
    options = parser.parse_args()
    one_thread()
    path = RESULTS / "flows_quality.json"
    result = {} if options.fresh or not path.exists() else json.loads(path.read_text(encoding="utf-8"))
    result |= {"what": f"held-out nats over N(0, I); T = {T}, 2 x {WIDTH}"}
    for target in options.targets:
        key = f"{target}, {options.steps} steps"
        table = result.setdefault(key, {})
        missing = [arm for arm in options.arms if arm not in table]
        codes = (ring_codes() if target == "ring" else mnist_codes(int(target), options.data_dir)) if missing else {}
        for arm in missing:
            table[arm] = run(arm, codes, options.steps)
            print(key, arm, table[arm], flush=True)
            store("flows_quality", result)


if __name__ == "__main__":
    main()
