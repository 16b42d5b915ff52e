"""What a training step costs in our loop, against one written by hand.

The standard VAE (784-300-300-40 and its mirror, Bernoulli, batch 128, synthetic binary rows) is trained by

- `ours`: `latentfit.fit` with its defaults: averaged weights, clipping, averaged terms, metrics.jsonl, checkpoints,
  snapshots, progress;
- `hand`: the shortest eager loop with fused Adam and the same loss;
- `own layers`: the same with `latentfit.networks.Linear`, which our networks are made of, in place of torch's;
- `limit`: the matrix products of a step alone by torch's own kernels, forward and backward, into memory that is there
  already: no eager float32 step on these kernels is faster;
- `lightning`: Lightning's Trainer with logging, where it is installed.

    OMP_NUM_THREADS=1 python benchmarks/training_step.py

Lightning wants an environment of its own, with `pip install . "lightning!=2.6.2,!=2.6.3"` (those two are malicious).
"""

from __future__ import annotations

import argparse
import copy
import io
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import torch
from _timing import interleave, one_thread, store, summary
from torch import Tensor, nn
from torch.nn import functional as F

from latentfit.data import Batch, Rows
from latentfit.model import VAEModule, fit
from latentfit.networks import Linear
from latentfit.training import PlainProgress, Recipe, minimise

BATCH, ROWS = 128, 12_800


class StandardVAE(nn.Module):
    """784-300-300-40-300-300-784 with ReLU."""

    def __init__(self, latent_dim: int = 40, layer: type[nn.Module] = nn.Linear) -> None:
        super().__init__()
        self.encoder = _mlp(layer, 784, 300, 300, 2 * latent_dim)
        self.decoder = _mlp(layer, latent_dim, 300, 300, 784)

    def terms(self, x: Tensor) -> dict[str, Tensor]:
        """The negative ELBO and its two parts, in nats per row."""
        mean, logvar = self.encoder(x).chunk(2, -1)
        z = mean + (0.5 * logvar).exp() * torch.randn_like(mean)
        nll = F.binary_cross_entropy_with_logits(self.decoder(z), x, reduction="sum") / len(x)
        kl = 0.5 * (mean.square() + logvar.exp() - logvar - 1).sum() / len(x)
        return {"loss": nll + kl, "nll": nll, "kl": kl}


def _mlp(layer: type[nn.Module], *sizes: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(pairwise(sizes)):
        layers += [layer(a, b), nn.ReLU()] if i < len(sizes) - 2 else [layer(a, b)]
    return nn.Sequential(*layers)


def by_hand(model: StandardVAE, x: Tensor, steps: int) -> None:
    """The loop everybody writes."""
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    order = torch.randperm(len(x))
    position = 0
    for _ in range(steps):
        if position + BATCH > len(x):
            order, position = torch.randperm(len(x)), 0
        batch = x[order[position : position + BATCH]]
        position += BATCH
        optimiser.zero_grad(set_to_none=True)
        model.terms(batch)["loss"].backward()
        optimiser.step()


class MatrixProducts:
    """Every matrix product of a step: y = W x of each layer, and the gradients of its weight and of its input."""

    def __init__(self, model: StandardVAE) -> None:
        layers = [m for part in (model.encoder, model.decoder) for m in part if isinstance(m, nn.Linear)]
        self.products: list[tuple[Tensor, Tensor, Tensor]] = []
        for i, layer in enumerate(layers):
            n_out, n_in = layer.weight.shape
            x, g, weight = torch.randn(BATCH, n_in), torch.randn(BATCH, n_out), layer.weight.detach()
            self.products.append((x, weight.T, torch.empty(BATCH, n_out)))
            self.products.append((g.T, x, torch.empty(n_out, n_in)))
            if i:  # the data need no gradient
                self.products.append((g, weight, torch.empty(BATCH, n_in)))

    @property
    def operations(self) -> int:
        """Multiplications and additions of one step."""
        return sum(2 * a.shape[0] * a.shape[1] * b.shape[1] for a, b, _ in self.products)

    def __call__(self, steps: int) -> int:
        for _ in range(steps):
            for a, b, out in self.products:
                torch.mm(a, b, out=out)
        return steps


def ours(model: StandardVAE, x: Tensor, steps: int, folder: Path) -> None:
    """`latentfit.fit` with its defaults: objective, averaged weights, clipping, logging, progress, checkpoints.

    No validation rows: the hand-written loop has none.
    """
    vae = VAEModule(model.encoder, model.decoder, latent_dim=40)
    fit(
        vae,
        x,
        validation_fraction=0.0,
        max_steps=steps,
        batch_size=BATCH,
        run_dir=folder,
        progress=PlainProgress(io.StringIO()),
    )


def bare_loop(model: nn.Module, x: Tensor, steps: int, folder: Path) -> None:
    """The training loop alone, everything on, around somebody else's loss."""
    minimise(
        model,
        lambda batch, step: model.terms(batch.x),
        Rows(Batch(x)),
        Recipe(max_steps=steps, batch_size=BATCH, ema_decay=0.99),
        run_dir=folder,
        progress=PlainProgress(io.StringIO()),
    )


def lightning_arm(model: StandardVAE, x: Tensor, steps: int) -> None:
    """Lightning's Trainer, logging three numbers a step to a CSV file, no validation and no checkpoint."""
    import lightning as pl
    from lightning.pytorch.loggers import CSVLogger
    from torch.utils.data import BatchSampler, DataLoader, RandomSampler

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch, _):
            terms = self.model.terms(batch)
            self.log_dict(terms)
            return terms["loss"]

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=1e-3, fused=True)

    class Tensors(torch.utils.data.Dataset):
        def __len__(self):
            return len(x)

        def __getitem__(self, index):
            return x[index]

    loader = DataLoader(Tensors(), sampler=BatchSampler(RandomSampler(x), BATCH, True), batch_size=None)
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            max_steps=steps,
            accelerator="cpu",
            logger=CSVLogger(folder),
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Module(), loader)


def loop_overhead_us(steps: int) -> float:
    """Microseconds per step of all but loss, backward and optimiser, measured on a model of one number.

    The difference to a hand-written loop of the same model is data indexing, the norm, logging, progress and
    files.
    """
    x = torch.randn(ROWS, 1)

    class Tiny(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def terms(self, rows: Tensor) -> dict[str, Tensor]:
            loss = (self.weight - rows).square().mean()
            return {"loss": loss, "nll": loss, "kl": loss}

    models = {name: Tiny() for name in ("ours", "hand")}
    with tempfile.TemporaryDirectory() as folder:
        runs = iter(range(10**6))

        def run_ours() -> int:
            bare_loop(models["ours"], x, steps, Path(folder) / str(next(runs)))
            return steps

        def run_hand() -> int:
            by_hand(models["hand"], x, steps)
            return steps

        seconds = interleave({"hand": run_hand, "ours": run_ours}, rounds=8, clock=time.process_time)
    figures = summary(seconds, "hand")
    return round(figures["ours"]["median_us"] - figures["hand"]["median_us"], 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--steps", type=int, default=1_500, help="per chunk, as many as a short run: they spread a call's own cost"
    )
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--no-store", action="store_true")
    options = parser.parse_args()
    one_thread()
    torch.manual_seed(0)
    x = (torch.rand(ROWS, 784) < 0.13).float()
    base = StandardVAE()
    models = {name: copy.deepcopy(base) for name in ("hand", "ours", "lightning")}
    models["own layers"] = StandardVAE(layer=Linear)

    with tempfile.TemporaryDirectory() as folder:
        runs = iter(range(10**6))

        def run_hand() -> int:
            by_hand(models["hand"], x, options.steps)
            return options.steps

        def run_ours(which: str = "ours") -> int:
            ours(models[which], x, options.steps, Path(folder) / str(next(runs)))
            return options.steps

        def run_lightning() -> int:
            lightning_arm(models["lightning"], x, options.steps)
            return options.steps

        products = MatrixProducts(base)
        arms = {"hand": run_hand, "ours": run_ours, "own layers": lambda: run_ours("own layers")}
        arms["limit"] = lambda: products(options.steps)
        if _lightning_is_there():
            arms["lightning"] = run_lightning
        seconds = interleave(arms, rounds=options.rounds)

    result = {
        "what": "one training step, standard VAE 784-300-300-40, batch 128, Bernoulli, fp32",
        "steps_per_chunk": options.steps,
        "rounds": options.rounds,
        "arms": summary(seconds, "hand"),
        "arithmetic": {"operations": products.operations, "is": "matrix products, forward and backward"},
        "loop_overhead_us": loop_overhead_us(2000),
        "goals": {"ours": "ratio <= 1.05", "loop_overhead_us": "<= 60", "lightning": ">= 1.3 x ours"},
    }
    if "lightning" in seconds:
        result["lightning_over_ours"] = summary(seconds, "ours")["lightning"]["ratio"]
    for name, figures in result["arms"].items():
        print(f"{name:10} {figures['median_us']:9.1f} us a step   {figures['ratio']:.3f} x hand")
    rate = products.operations / result["arms"]["limit"]["median_us"] / 1e3
    print(f"limit: {products.operations / 1e6:,.0f} million operations in matrix products, {rate:.0f} a nanosecond")
    print(f"loop overhead {result['loop_overhead_us']} us a step")
    if not options.no_store:
        print(store("training_step", result).name)


def _lightning_is_there() -> bool:
    import importlib.util

    return importlib.util.find_spec("lightning") is not None


if __name__ == "__main__":
    main()
