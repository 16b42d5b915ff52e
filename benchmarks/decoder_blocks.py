"""log p(x) by how many rows are decoded at once: what stays in a CPU's cache leaves a GPU idle.

    python benchmarks/decoder_blocks.py                  # OMP_NUM_THREADS=1
    python benchmarks/decoder_blocks.py --device cuda

A standard VAE (gated MLP, 784 pixels, 40 units) after 600 steps on synthetic grey rows; 500 binary rows, 200 importance
samples, 100 steps of refinement. Wall clock, once for each size after a first call that does not count. Each device has
its place in benchmarks/results/decoder_blocks.json.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings

import torch
from _timing import RESULTS

from latentfit import methods, saving
from latentfit.data import Batch, Binarise
from latentfit.evaluation.likelihood import log_likelihood
from latentfit.evaluation.proposal import fit_proposal
from latentfit.model import fit
from latentfit.training import Recipe

SIZES = (510, 4_096, 16_384, 65_536, 262_144)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    device = parser.parse_args().device
    warnings.simplefilter("ignore")  # so short a training leaves weights that fail
    torch.manual_seed(0)
    x = torch.rand(20_000, 784) ** 4
    vae = methods.build("standard", data_shape=(784,), latent_dim=40, likelihood="bernoulli", network="gated_mlp")
    recipe = Recipe(max_steps=600, batch_size=200, device=device)
    fit(vae, Batch(x), prepare=Binarise(), recipe=recipe)
    rows = Batch((torch.rand(500, 784) < x[:500]).float())
    proposal = fit_proposal(vae, rows)
    seconds = {}
    for size in (SIZES[-1], *SIZES):  # the last one twice: kernels are loaded in a first call
        began = time.perf_counter()
        log_likelihood(vae, rows, n_importance_samples=200, proposal=proposal, batch_size=size)
        seconds[str(size)] = round(time.perf_counter() - began, 3)
    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} thread"
    path = RESULTS / "decoder_blocks.json"
    stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    stored[name] = {"torch": torch.__version__, "seconds by decoder calls at once": seconds}
    saving.write_atomic(path, json.dumps(stored, indent=1) + "\n")
    print(name, seconds)


if __name__ == "__main__":
    main()
