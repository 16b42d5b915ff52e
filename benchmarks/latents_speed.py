"""What `diagnose_latents` costs, and its mixture against scikit-learn's.

    python benchmarks/latents_speed.py [PART ...]  # any of PARTS; results/latents_speed.json

Codes: twenty curved clusters (a centre, a quadratic image of six Gaussian numbers) with spreads of 0.2 to 0.6 and
about unit variance in every coordinate. One thread; CPU seconds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _mnist_codes import mnist_codes
from _timing import RESULTS, interleave, one_thread, store

from latentfit import VAE, priors
from latentfit.data import Batch, load
from latentfit.diagnosis.latents import diagnose_latents
from latentfit.diagnosis.measures import DEPTHS
from latentfit.evaluation import Codes, Estimate, prior_gap
from latentfit.evaluation.codes import encode_rows
from latentfit.evaluation.ladder import climb, split_rows
from latentfit.methods import METHODS
from latentfit.model.rows import CodeRows
from latentfit.priors import StandardNormalPrior
from latentfit.priors.em import MixtureFit, fit_mixture


def clusters(n: int, dim: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Means and standard deviations of n rows, (n, dim) each, float32."""
    population = np.random.default_rng(1234 + dim)
    centre = 0.5 * population.standard_normal((20, dim))
    lift = 0.22 * population.standard_normal((20, 6, dim))
    bend = 0.16 * population.standard_normal((20, 6, dim))
    rng = np.random.default_rng(seed)
    which = rng.integers(0, 20, n)
    mean, std = np.empty((n, dim), np.float32), np.empty((n, dim), np.float32)
    for k in range(20):
        rows = np.flatnonzero(which == k)
        a = rng.standard_normal((len(rows), 6))
        mean[rows] = centre[k] + a @ lift[k] + (a**2 - 1) @ bend[k]
    for start in range(0, n, 10_000):  # in blocks: the memory measured is to be the library's
        std[start : start + 10_000] = rng.uniform(0.2, 0.6, std[start : start + 10_000].shape)
    return torch.from_numpy(mean), torch.from_numpy(std)


def mixture() -> dict[str, Any]:
    """Fifty full components on the same draws: seconds, and nats on 20,000 other rows."""
    from sklearn.mixture import GaussianMixture

    held_out = CodeRows(*clusters(20_000, 40, 9)).draw(torch.Generator().manual_seed(1))
    found: dict[str, Any] = {}
    for n, rounds in ((20_000, 5), (60_000, 5)):
        z = CodeRows(*clusters(n, 40, 0)).draw(torch.Generator().manual_seed(0))
        rows = CodeRows(z, torch.zeros_like(z))
        nats: dict[str, list[float]] = {"latentfit": [], "scikit-learn": []}

        def ours(rows: CodeRows = rows, nats: dict = nats) -> int:
            seed = len(nats["latentfit"])
            fit: MixtureFit = fit_mixture(rows, 50, "full", max_iterations=60, random_state=seed)
            nats["latentfit"].append(fit.log_prob(held_out.double()).mean().item())
            return 1

        def theirs(z: torch.Tensor = z, nats: dict = nats) -> int:
            seed = len(nats["scikit-learn"])
            fit = GaussianMixture(50, random_state=seed).fit(z.numpy())
            nats["scikit-learn"].append(float(fit.score(held_out.numpy())))
            return 1

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scikit-learn's, of its 100 iterations
            seconds = interleave({"scikit-learn": theirs, "latentfit": ours}, rounds=rounds, warmup=0)
        ratio = statistics.median(a / b for a, b in zip(seconds["scikit-learn"], seconds["latentfit"], strict=True))
        more = [a - b for a, b in zip(nats["latentfit"], nats["scikit-learn"], strict=True)]
        found[f"{n} x 40"] = {
            "times_faster": round(ratio, 2),
            "more_nats": [round(statistics.mean(more), 3), round(statistics.stdev(more) / len(more) ** 0.5, 3)],
            "seconds": {name: [round(s, 2) for s in values] for name, values in seconds.items()},
            "held_out_nats": {name: [round(v, 3) for v in values] for name, values in nats.items()},
        }
        print(found, flush=True)
    return found


def diagnosis(n: int, dim: int, depth: Any) -> dict[str, Any]:
    """One `diagnose_latents`: CPU seconds, peak memory and what the rungs win."""
    mean, std = clusters(n, dim, 0)
    began = time.process_time()
    dx = diagnose_latents(mean, std=std, depth=depth)
    return {
        "seconds": round(time.process_time() - began, 1),
        "peak_rss_gb": round(peak_memory() / 1e9, 2),
        "gaps": {rung.name: [round(rung.gap.value, 3), round(rung.gap.std_error, 3)] for rung in dx.ladder.rungs},
        "lower_bound": round(dx.prior_gap.interval[0], 3),
    }


def alone(n: int, dim: int, depth: str) -> dict[str, Any]:
    """`diagnosis` in a process of its own, so that its peak memory is its own."""
    command = [sys.executable, __file__, "--one", str(n), str(dim), depth]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def flow() -> dict[str, Any]:
    """T on 20,000 other rows of a flow fitted on 24,000, at its default steps and at three times as many."""
    mean, std = clusters(24_000, 40, 0)
    other = Codes.of(clusters(20_000, 40, 9)[0], std=clusters(20_000, 40, 9)[1])
    found = {}
    for name, components in (("normal base", 0), ("mixture base", 30)):
        for times in (1, 3):
            arguments = {"base": priors.create("mixture", latent_dim=40, n_components=components)} if components else {}
            steps = priors.fitting.default_max_steps(len(mean), 40) * times
            r = priors.create("realnvp", latent_dim=40, **arguments)
            began = time.process_time()
            r.fit(mean, std=std, max_steps=steps)
            seconds = round(time.process_time() - began, 1)
            gap = prior_gap(r, StandardNormalPrior(40), other)
            found[f"{name}, {steps} steps"] = {"gap": round(gap.value, 3), "seconds": seconds}
            print(found, flush=True)
    return found


def real() -> dict[str, Any]:
    """The ladder of a full diagnosis on the codes of real VAEs: where a flow wins over the mixture it stands on."""
    mnist = mnist_codes(40, None)
    digits = digits_codes()
    found = {}
    for name, fitted, judged in (
        ("mnist 40", (mnist["mean"][:40_000], mnist["std"][:40_000]), (mnist["test_mean"], mnist["test_std"])),
        ("digits 8", [part[::2] for part in digits], [part[1::2] for part in digits]),
    ):
        codes = Codes.of(fitted[0], std=fitted[1])
        held_out, kept = split_rows(len(codes), None, 0.1, 0)
        other = Codes.of(judged[0], std=judged[1])
        p = StandardNormalPrior(codes.event_shape[0])
        began = time.process_time()
        ladder = climb(codes[kept], codes[held_out], other, p, rungs=DEPTHS["full"])
        over = Estimate.of(ladder["realnvp"].per_row - ladder["mixture"].per_row)
        found[name] = {
            "seconds": round(time.process_time() - began, 1),
            "gaps": {rung.name: [round(rung.gap.value, 3), round(rung.gap.std_error, 3)] for rung in ladder.rungs},
            "flow over mixture": [round(over.value, 3), round(over.std_error, 3)],
        }
        print(found, flush=True)
    return found


def digits_codes() -> tuple[torch.Tensor, torch.Tensor]:
    """Means and standard deviations of a standard VAE's 8 latents, trained on other digits than these."""
    x = load("digits").x
    vae = VAE(latent_dim=8, method="standard", random_state=0).fit(x[:900])
    codes = encode_rows(vae.module_, Batch(torch.as_tensor(x[900:]).float()))
    return codes.mean, codes.std


def whole_ladder() -> dict[str, Any]:
    """Every prior that can be fitted on 60,000 x 16 codes and has a density, one rung after the other."""
    n, dim = 60_000, 16
    mean, std = clusters(n, dim, 0)
    codes = Codes.of(mean, std=std)
    third = [codes[slice(i, n, 3)] for i in range(3)]
    rungs = [m.prior for m in METHODS.values() if m.post_hoc]
    began = time.perf_counter()
    ladder = climb(*third, StandardNormalPrior(dim), rungs=rungs)
    found: dict[str, Any] = {"seconds": round(time.perf_counter() - began, 1)}
    found["rungs"] = {
        rung.name: {
            "fitted_in": round(rung.seconds, 1),
            "gap": [round(rung.gap.value, 3), round(rung.gap.std_error, 3)],
        }
        for rung in ladder.rungs
    }
    return found


def peak_memory() -> int:
    """Bytes."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "mixture": mixture,
    "quick": lambda: {"60000 x 40": alone(60_000, 40, "quick")},
    "full": lambda: {"60000 x 40": alone(60_000, 40, "full")},
    "memory": lambda: {"1000000 x 64": alone(1_000_000, 64, "quick")},
    "linear": lambda: {f"{n} x 40": alone(n, 40, "quick") for n in (100_000, 200_000, 400_000)},
    "flow": flow,
    "real": real,
    "ladder": whole_ladder,
}


def main() -> None:
    """Run the parts asked for, and keep the others' stored results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of latents_speed.json")
    parser.add_argument("--one", nargs=3, metavar=("N", "D", "DEPTH"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    one_thread()
    if arguments.one:
        n, dim, depth = arguments.one
        print(json.dumps(diagnosis(int(n), int(dim), depth)))
        return
    path = arguments.out / "latents_speed.json"
    for part in arguments.parts or PARTS:
        found = PARTS[part]()
        stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        store("latents_speed", stored | {part: found}, arguments.out)
        print(part, json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
