"""Importance sampling of log p(x): `latentfit.evaluation.log_likelihood` against a hand-written batched loop.

    python benchmarks/importance_sampling.py [--rows 16] [--samples 1000] [--rounds 5] [--threads 1]

A 40-300-300-784 Bernoulli decoder. Both do the same work from the same encoder, interleaved in one process;
the hand-written one is the fastest plain form: decoder on (rows x samples), x . logits folded into one
product, no diagnostics. Beside them stands the time of the decoder's matrix products alone, the fp32 limit.
Writes benchmarks/results/importance_sampling.json.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from latentfit.errors import ReliabilityWarning
from latentfit.evaluation import encoder_proposal, log_likelihood
from latentfit.likelihoods import Bernoulli
from latentfit.model.vae import VAEModule

LATENT, HIDDEN, DATA = 40, 300, 784
RESULTS = Path(__file__).parent / "results" / "importance_sampling.json"


def network(*widths: int) -> nn.Sequential:
    """A ReLU network."""
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


@torch.inference_mode()
def by_hand(encoder: nn.Module, decoder: nn.Module, x: Tensor, n: int, chunk: int) -> Tensor:
    """log p(x) with the encoder as proposal: x (N, 784) -> (N,)."""
    mean, log_variance = encoder(x).chunk(2, -1)
    std = (0.5 * log_variance).exp()
    rows_at_once = max(1, chunk // n)
    values = []
    for start in range(0, len(x), rows_at_once):
        rows = slice(start, start + rows_at_once)
        eps = torch.randn(n, len(x[rows]), LATENT)
        z = mean[rows] + std[rows] * eps
        logits = decoder(z.view(-1, LATENT)).view(n, -1, DATA)
        log_p = torch.einsum("snd,nd->sn", logits, x[rows]) - softplus(logits).sum(-1)
        log_w = log_p - 0.5 * z.square().sum(-1) + 0.5 * eps.square().sum(-1) + std[rows].log().sum(-1)
        values.append(log_w.logsumexp(0) - math.log(n))
    return torch.cat(values)


@torch.inference_mode()
def products_only(decoder: nn.Module, total: int, chunk: int) -> None:
    """The decoder's matrix products on `total` latents, into memory that is there already."""
    layers = [layer for layer in decoder if isinstance(layer, nn.Linear)]
    inputs = [torch.randn(chunk, layer.in_features) for layer in layers]
    outputs = [torch.empty(chunk, layer.out_features) for layer in layers]
    for _ in range(math.ceil(total / chunk)):
        for layer, x, y in zip(layers, inputs, outputs, strict=True):
            torch.mm(x, layer.weight.T, out=y)


def cpu_seconds(run: Callable[[], object]) -> float:
    """CPU seconds of one call: another process's load does not count."""
    start = time.process_time()
    run()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    encoder, decoder = network(DATA, HIDDEN, HIDDEN, 2 * LATENT), network(LATENT, HIDDEN, HIDDEN, DATA)
    vae = VAEModule(encoder, decoder, likelihood=Bernoulli(), latent_dim=LATENT).eval()
    x = (torch.rand(options.rows, DATA) < 0.2).float()
    proposal = encoder_proposal(vae)
    total = options.rows * options.samples

    def library() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ReliabilityWarning)  # an untrained encoder
            log_likelihood(vae, x, n_importance_samples=options.samples, proposal=proposal, refinement_steps=0)

    candidates: dict[str, Callable[[], object]] = {
        "latentfit": library,
        "by hand": lambda: by_hand(encoder, decoder, x, options.samples, 2_500),
        "fp32 matrix products alone": lambda: products_only(decoder, total, 1_000),
    }
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for run in candidates.values():
        cpu_seconds(run)  # warm up
    for _ in range(options.rounds):
        for name, run in candidates.items():
            seconds[name].append(cpu_seconds(run))
    rate = {name: total / statistics.median(times) for name, times in seconds.items()}
    ratios = [a / b for a, b in zip(seconds["latentfit"], seconds["by hand"], strict=True)]
    facts = {
        "samples_per_cpu_second": rate,
        "time_ratio_to_hand_written": statistics.median(ratios),
        "time_ratio_range": [min(ratios), max(ratios)],
        "share_of_fp32_limit": rate["latentfit"] / rate["fp32 matrix products alone"],
        "rows": options.rows,
        "samples": options.samples,
        "rounds": options.rounds,
        "threads": options.threads,
        "torch": torch.__version__,
        "machine": platform.machine(),
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    for name, value in rate.items():
        print(f"{name:<28} {value / 1e3:8.1f}k samples per CPU-second")
    print(f"{'time, ratio to by hand':<28} {facts['time_ratio_to_hand_written']:8.2f}")
    print(f"{'share of the fp32 limit':<28} {facts['share_of_fp32_limit']:8.2f}")


if __name__ == "__main__":
    main()
