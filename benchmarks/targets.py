"""Matching q(z) to targets that are no Gaussian: which penalty gets there, and at which reconstruction.

    python benchmarks/targets.py [TARGET ...] [--long]  # ten minutes of one core; stores results/targets.json

Data: a curved surface in 20 dimensions, sd 0.1 around it, 6,000 rows for training and 2,000 held out. Five targets in a
latent of 2 or 3 dimensions, each as an `EmpiricalPrior` that is the model's prior: the uniform square, the sphere, a
Dirichlet, a ring, and a picture given as 2,000 samples. One network, one recipe, KL weight 0. The classifier test
compares 2,000 held-out codes, one draw of q(z given x) for each held-out row, with 2,000 draws of the target; the
reconstruction is the held-out mean squared error, against the same model (with the same support) without a penalty.
`--long` trains longer, one penalty for each of the targets that 4,000 steps do not reach, against the same model
trained as long on the same rows without it. A critic that is to see what is a tenth thick needs less `smoothness`.
Toward the picture each batch's rows get `noise` of their own, an sd, as thick as the surface: very exact codes
let the encoder learn its rows by heart, and held-out rows pay. `again` is the mean of five more judges, each with
held-out rows and draws of its own, for one classifier is one draw.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from _timing import RESULTS, one_thread, store
from torch import Tensor

import latentfit as lf
from latentfit.evaluation import classifier_test, encode_rows
from latentfit.registry import registry
from latentfit.training.rng import isolated_rng

N_TRAIN, N_TEST, STEPS, DIM = 6_000, 2_000, 4_000, 20
WEIGHTS = {"sliced_wasserstein": 3_000.0, "mmd": 30_000.0, "adversarial": 100.0}
#: steps, noise added to the rows, the penalty of each target and its arguments
LONG: dict[str, tuple[int, float, str, dict[str, float]]] = {
    "square": (12_000, 0.0, "sliced_wasserstein", {"weight": 10_000.0}),
    "ring": (12_000, 0.0, "adversarial", {"weight": 100.0, "smoothness": 0.01}),
    "picture": (20_000, 0.1, "adversarial", {"weight": 30.0, "smoothness": 0.01}),
}


def picture(n: int, generator: torch.Generator) -> Tensor:
    """Two moons and a dot, as a drawing has them."""
    angle = math.pi * torch.rand(n, generator=generator)
    which = torch.rand(n, generator=generator)
    upper = torch.stack([angle.cos() - 0.5, angle.sin() - 0.25], 1)
    lower = torch.stack([0.5 - angle.cos(), 0.25 - angle.sin()], 1)
    dot = 0.12 * torch.randn(n, 2, generator=generator) + torch.tensor([0.0, 1.4])
    z = torch.where((which < 0.45)[:, None], upper, torch.where((which < 0.9)[:, None], lower, dot))
    return z + 0.06 * torch.randn(n, 2, generator=generator)


def drawn() -> Tensor:
    """The samples it is given as."""
    return picture(2_000, torch.Generator().manual_seed(9))


def ring(n: int, generator: torch.Generator) -> Tensor:
    """Radius 1 in the plane, 0.1 thick."""
    direction = torch.nn.functional.normalize(torch.randn(n, 2, generator=generator), dim=1)
    return direction * (1 + 0.1 * torch.randn(n, 1, generator=generator))


def sphere(n: int, generator: torch.Generator) -> Tensor:
    """Uniform in three dimensions."""
    return torch.nn.functional.normalize(torch.randn(n, 3, generator=generator), dim=1)


def square(n: int, generator: torch.Generator) -> Tensor:
    """Uniform on (0, 1)^2."""
    return torch.rand(n, 2, generator=generator)


def dirichlet(n: int, generator: torch.Generator) -> Tensor:
    """Dirichlet(2, 2, 2): gammas of shape 2 are sums of two exponentials."""
    gamma = -torch.rand(n, 3, 2, generator=generator).clamp_min(1e-12).log().sum(-1)
    return gamma / gamma.sum(1, keepdim=True)


#: sampler, D, posterior
TARGETS: dict[str, tuple[Callable[[int, torch.Generator], Tensor], int, dict[str, Any]]] = {
    "square": (square, 2, {"name": "support", "args": {"support": "square"}}),
    "sphere": (sphere, 3, {"name": "support", "args": {"support": "sphere"}}),
    "dirichlet": (dirichlet, 3, {"name": "support", "args": {"support": "simplex"}}),
    "ring": (ring, 2, {"name": "diagonal", "args": {}}),
    "picture": (picture, 2, {"name": "diagonal", "args": {}}),
}


def rows(n: int, seed: int) -> Tensor:
    """x = sin(A s + b) + 0.1 noise, s of N(0, I) in the plane: (n, DIM)."""
    population = torch.Generator().manual_seed(1)
    lift = 0.7 * torch.randn(2, DIM, generator=population)
    shift = torch.randn(DIM, generator=population)
    generator = torch.Generator().manual_seed(seed)
    s = torch.randn(n, 2, generator=generator)
    return (s @ lift + shift).sin() + 0.1 * torch.randn(n, DIM, generator=generator)


def train(
    target: str, penalty: str | None, arguments: dict[str, float], steps: int, noise: float = 0.0, seed: int = 0
) -> tuple[lf.VAEModule, float]:
    """A VAE whose prior is the target, and its seconds."""
    sampler, dim, posterior = TARGETS[target]
    if target == "picture":  # given as samples, not as a sampler
        prior = lf.priors.EmpiricalPrior(dim, samples=drawn())
    else:
        prior = lf.priors.EmpiricalPrior(dim, lambda n, generator=None: sampler(n, generator))
    with isolated_rng(seed):
        q = registry.create("posterior", posterior["name"], latent_dim=dim, **posterior["args"])
        vae = lf.VAEModule(
            encoder=lf.networks.create("mlp", in_shape=DIM, out_shape=q.n_parameters, hidden=[128, 128]),
            decoder=lf.networks.create("mlp", in_shape=dim, out_shape=DIM, hidden=[128, 128]),
            prior=prior,
            posterior=q,
            likelihood=lf.likelihoods.create("normal", scale=0.1),
        )
    penalties = [] if penalty is None else [lf.penalties.create(penalty, **arguments)]

    def noisy(batch: lf.Batch) -> lf.Batch:
        return dataclasses.replace(batch, x=batch.x + noise * torch.randn_like(batch.x))

    began = time.process_time()
    lf.fit(
        vae,
        rows(N_TRAIN, 2),
        objective=lf.ELBO(0.0, penalties),
        validation_fraction=0.0,
        prepare=noisy if noise else None,
        max_steps=steps,
        batch_size=512,
        random_state=seed,
    )
    return vae, time.process_time() - began


def judge(vae: lf.VAEModule, target: str, seeds: tuple[int, int] = (3, 5)) -> dict[str, float]:
    """The classifier test and the reconstruction on held-out rows; the seeds are the rows' and the target's."""
    test = rows(N_TEST, seeds[0])
    codes = encode_rows(vae, test).sample(1, torch.Generator().manual_seed(seeds[0]))  # (1, N, D)
    found = classifier_test(codes[0], TARGETS[target][0](N_TEST, torch.Generator().manual_seed(seeds[1])))
    with torch.no_grad():
        error = (vae.decode_mean(codes) - test).square().sum(-1).mean()
    return {
        "accuracy": round(found.statistic, 4),
        "null_high": round(found.null_interval[1], 4),
        "p_value": round(found.p_value, 5),
        "squared_error": round(float(error), 4),
    }


def again(vae: lf.VAEModule, target: str) -> dict[str, float]:
    """Five more judges."""
    return mean_of([judge(vae, target, (100 + i, 200 + i)) for i in range(5)])


def of_the_samples() -> dict[str, Any]:
    """What the judges say of the very samples that the picture is given as, the best that can be asked."""

    def test(seed: int) -> dict[str, float]:
        found = classifier_test(drawn(), picture(N_TEST, torch.Generator().manual_seed(seed)))
        return {"accuracy": round(found.statistic, 4), "p_value": round(found.p_value, 5)}

    return {**test(5), "again": mean_of([test(200 + i) for i in range(5)])}


def mean_of(judged: list[dict[str, float]]) -> dict[str, float]:
    """Of the numbers that have a mean, and how many of the tests reject at 5 %."""
    names = [name for name in ("accuracy", "squared_error") if name in judged[0]]
    means = {name: round(sum(found[name] for found in judged) / len(judged), 4) for name in names}
    return {**means, "rejected": sum(found["p_value"] <= 0.05 for found in judged)}


def compared(
    target: str, penalty: str, arguments: dict[str, float], steps: int, free: float, noise: float = 0.0
) -> tuple[dict[str, Any], lf.VAEModule]:
    """A trained penalty's row; `free` is the squared error without one."""
    vae, seconds = train(target, penalty, arguments, steps, noise)
    found: dict[str, Any] = judge(vae, target)
    ratio = found["squared_error"] / free
    found |= {**arguments, "reconstruction_ratio": round(ratio, 3), "seconds": round(seconds, 1)}
    found["passes"] = found["p_value"] > 0.05 and ratio <= 1.15
    print(target, penalty, steps, found, flush=True)
    return found, vae


def main() -> None:
    """Every method on every target, failures included."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--long", action="store_true", help=f"longer: {', '.join(LONG)}")
    options = parser.parse_args()
    one_thread()
    path = RESULTS / "targets.json"
    stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if options.long:
        for target in options.targets or list(LONG):
            steps, noise, penalty, arguments = LONG[target]
            free = train(target, None, {}, steps, noise)[0]
            row: dict[str, Any] = {"steps": steps, "noise": noise, "none": judge(free, target)}
            row["none"]["again"] = again(free, target)
            row[penalty], vae = compared(target, penalty, arguments, steps, row["none"]["squared_error"], noise)
            row[penalty]["again"] = again(vae, target)
            if target == "picture":
                row["the samples themselves"] = of_the_samples()
            stored[target]["long"] = row
            store("targets", stored)
        return
    chosen = options.targets or list(TARGETS)
    for target in chosen:
        stored.setdefault(target, {})["none"] = judge(train(target, None, {}, STEPS)[0], target)
        store("targets", stored)
    for penalty, weight in WEIGHTS.items():
        for target in chosen:
            free = stored[target]["none"]["squared_error"]
            stored[target][penalty], _ = compared(target, penalty, {"weight": weight}, STEPS, free)
            store("targets", stored)


if __name__ == "__main__":
    main()
