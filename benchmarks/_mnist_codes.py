"""q(z given x) of small standard VAEs on MNIST, made once and kept under runs/: what flow benchmarks are fitted to."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from latentfit import methods
from latentfit.data import Batch, Binarise, binarise_once, grey_to_unit, load
from latentfit.evaluation.codes import encode_rows
from latentfit.model import fit
from latentfit.training import Recipe, isolated_rng

FOLDER = Path("runs/flow-codes")
STEPS = 6_000


def mnist_codes(latent_dim: int, data_dir: Path | None, steps: int = STEPS) -> dict[str, Tensor]:
    """Means and standard deviations (N, D) of 60,000 training rows, 784-300-300-D against N(0, I), and of the test
    rows: `mean`, `std`, `test_mean`, `test_std`."""
    file = FOLDER / f"mnist-{latent_dim}.safetensors"
    if not file.exists():
        source = load("mnist", data_dir)
        x = torch.as_tensor(grey_to_unit(source.x)).flatten(1)
        is_test = torch.as_tensor(source.is_test)
        with isolated_rng(0):
            vae = methods.build(
                "standard",
                data_shape=(784,),
                latent_dim=latent_dim,
                likelihood="bernoulli",
                network="mlp",
                network_args={"hidden": [300, 300]},
            )
        fit(
            vae,
            x[~is_test],
            prepare=Binarise(),
            recipe=Recipe(max_steps=steps, batch_size=128, learning_rate=1e-3, schedule="cosine"),
            objective=methods.get("standard").objective(steps),
            random_state=0,
        )
        vae.eval()
        found = {}
        for prefix, rows in (("", x[~is_test]), ("test_", x[is_test])):
            codes = encode_rows(vae, Batch(binarise_once(rows, random_state=0)))
            found |= {f"{prefix}mean": codes.mean.contiguous(), f"{prefix}std": codes.std.contiguous()}
        FOLDER.mkdir(parents=True, exist_ok=True)
        save_file(found, file)
    return load_file(file)
