"""MNIST with the network and protocol of the VampPrior paper: what N(0, I) costs and what a learned prior wins.

    python benchmarks/mnist.py --arm standard          # resumable; run it again after an interruption
    python benchmarks/mnist.py --arm all --data-dir data
    python benchmarks/mnist.py --data fashion-mnist --arm vamp --device cuda

Gated MLP 2 x 300, 40 latents, dynamic binarisation of the 50,000 training images, 10,000 validation images
for early stopping, all 10,000 test images under one stored binarisation (seed 0), importance sampling with k
= 5,000 through the fitted evaluation proposal, all arms with the same noise. `posthoc` fits a flow on the
frozen `standard` model. Fashion-MNIST is split and binarised likewise. Results go to
benchmarks/results/mnist.json (fashion-mnist.json); checkpoints and per-image numbers to runs/mnist-benchmark/.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch

from latentfit import methods, saving
from latentfit.data import Batch, Binarise, binarise_once, grey_to_unit, load
from latentfit.evaluation.codes import encode_rows
from latentfit.evaluation.collapse import active_units
from latentfit.evaluation.estimate import Estimate
from latentfit.evaluation.ladder import climb
from latentfit.evaluation.likelihood import log_likelihood
from latentfit.evaluation.proposal import fit_proposal
from latentfit.evaluation.terms import elbo_terms
from latentfit.model import fit
from latentfit.training import Recipe
from latentfit.training.progress import show_progress
from latentfit.training.rng import isolated_rng

RESULTS = Path(__file__).parent / "results"
#: stored for each image
NUMBERS = ("log_px", "elbo")
ARMS = ("standard", "mixture", "vamp", "exemplar", "realnvp", "posthoc")
PRIOR_ARGS = {
    "standard": {},
    "mixture": {"n_components": 100, "covariance": "diagonal"},
    "vamp": {"n_components": 500},
    "exemplar": {"n_exemplars": 25_000, "n_neighbours": 10},
    "realnvp": {"transforms": 8, "hidden_features": [128, 128]},
}
SLICE = 500
#: decoder calls at once on a GPU
GPU_BATCH = 131_072


def read(data: str, data_dir: Path | None) -> dict[str, torch.Tensor]:
    source = load(data, data_dir)
    x = torch.as_tensor(grey_to_unit(source.x)).flatten(1)
    test = torch.as_tensor(source.is_test)
    rest = x[~test]
    return {
        "train": rest[:50_000],
        "validation": binarise_once(rest[50_000:], random_state=0),
        "test": binarise_once(x[test], random_state=0),
    }


def train(
    arm: str, folder: Path, rows: dict[str, torch.Tensor], steps: int, seed: int, device: str, precision: str = "fp32"
) -> dict:
    method = methods.get(arm)
    with isolated_rng(seed):
        vae = methods.build(
            methods.Method(arm, method.family, prior=method.prior, prior_args=PRIOR_ARGS[arm]),
            data_shape=(784,),
            latent_dim=40,
            likelihood="bernoulli",
            network="gated_mlp",
        )
    recipe = Recipe(
        max_steps=steps,
        batch_size=200,
        learning_rate=1e-3,
        schedule="one_cycle",
        ema_decay=0.9995,
        validate_every=500,
        clip_norm=200.0,
        device=device,
        precision=precision,
    )
    with show_progress() as progress:
        result = fit(
            vae,
            Batch(rows["train"]),
            X_validation=Batch(rows["validation"]),
            objective=method.objective(steps),
            prepare=Binarise(),
            recipe=recipe,
            random_state=seed,
            run_dir=folder / "training",
            progress=progress,
        )
    saving.save_component(vae.to("cpu"), folder / "model", overwrite=True)
    return {
        "steps": result.steps,
        "best_step": result.best_step,
        "train_seconds": result.seconds,
        "precision": precision,
    }


def post_hoc(folder: Path, base: Path, rows: dict[str, torch.Tensor], seed: int) -> dict:
    vae = saving.load_component(base / "model").eval()
    with isolated_rng(seed):
        codes = encode_rows(vae, Binarise()(Batch(rows["train"])))
    held_out = {name: encode_rows(vae, Batch(rows[name])) for name in ("validation", "test")}
    start = time.perf_counter()
    ladder = climb(codes, held_out["validation"], held_out["test"], vae.prior, random_state=seed)
    seconds = time.perf_counter() - start
    table = {
        rung.name: {"gap": rung.gap.to_dict(), "seconds": rung.seconds, "weight": rung.weight} for rung in ladder.rungs
    }
    vae.prior = ladder["realnvp"].prior
    saving.save_component(vae, folder / "model", overwrite=True)
    return {"ladder": table, "fit_seconds": seconds}


def score(folder: Path, rows: dict[str, torch.Tensor], k: int, device: str, backward: bool = False) -> dict:
    """log p(x) of the test images in slices, each stored, so that an interruption loses minutes at most.

    A second process goes through them backward and meets the first.
    """
    vae = saving.load_component(folder / "model", map_location=device).eval()
    proposal = fit_proposal(vae, Batch(binarise_once(rows["train"][:10_000], random_state=1)), random_state=0)
    paths = {start: folder / f"test-{start:05d}-{k}.safetensors" for start in range(0, len(rows["test"]), SLICE)}
    for start, path in sorted(paths.items(), reverse=backward):
        if not path.exists():
            x = Batch(rows["test"][start : start + SLICE])
            scored = log_likelihood(
                vae,
                x,
                n_importance_samples=k,
                proposal=proposal,
                random_state=start,
                batch_size=GPU_BATCH if device == "cuda" else None,
                refinement_steps=150,
            )
            tensors = {
                "log_px": torch.as_tensor(scored.values),
                "ess": torch.as_tensor(scored.effective_sample_size),
                "pareto_k": torch.as_tensor(scored.pareto_k),
            }
            saving.save_tensors(path, tensors, {"doubling": scored.doubling})
            print(
                f"{folder.name}: {start + SLICE} of {len(rows['test'])}: {-scored.values.mean():.2f}",
                flush=True,
            )
    loaded = [saving.load_tensors(path) for path in paths.values()]
    parts = [(tensors, meta["doubling"]) for tensors, meta in loaded]
    log_px = torch.cat([tensors["log_px"] for tensors, _ in parts]).numpy()
    terms = elbo_terms(vae, Batch(rows["test"]), random_state=0)
    units = active_units(encode_rows(vae, Batch(rows["test"])))
    np.save(folder / "log_px.npy", log_px)
    np.save(folder / "elbo.npy", terms.elbo_per_row)
    return {
        "nll": Estimate.of(-log_px).to_dict(),
        "elbo": terms.elbo.to_dict(),
        "kl": terms.kl.value,
        "active_units": int(units),
        "median_ess": float(torch.cat([tensors["ess"] for tensors, _ in parts]).median()),
        "pareto_k_above_0.7": float((torch.cat([t["pareto_k"] for t, _ in parts]) > 0.7).float().mean()),
        "doubling": float(np.mean([doubling for _, doubling in parts])),
        "k": k,
        "n_test": len(log_px),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arm", choices=[*ARMS, "all"], default="all")
    parser.add_argument("--data", choices=["mnist", "fashion-mnist"], default="mnist")
    parser.add_argument("--data-dir", type=Path, default=None)
    parser.add_argument("--steps", type=int, default=60_000)
    parser.add_argument("--k", type=int, default=5_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="of training; scored in fp32")
    parser.add_argument("--folder", type=Path, default=None, help="runs/DATA-benchmark unless given")
    parser.add_argument("--train-only", action="store_true")
    parser.add_argument("--backward", action="store_true", help="score the last images first, beside another process")
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    rows = read(arguments.data, arguments.data_dir)
    runs = arguments.folder or Path(f"runs/{arguments.data}-benchmark")
    for arm in ARMS if arguments.arm == "all" else [arguments.arm]:
        folder = runs / f"{arm}-{arguments.seed}"
        folder.mkdir(parents=True, exist_ok=True)
        done = folder / "fit.json"
        if not done.exists():
            if arm == "posthoc":
                facts = post_hoc(folder, runs / f"standard-{arguments.seed}", rows, arguments.seed)
            else:
                facts = train(arm, folder, rows, arguments.steps, arguments.seed, arguments.device, arguments.precision)
            saving.write_atomic(done, json.dumps(facts))
        if arguments.train_only:
            continue
        facts = json.loads(done.read_text()) | score(folder, rows, arguments.k, arguments.device, arguments.backward)
        saving.write_atomic(folder / "result.json", json.dumps(facts, indent=1))
    collect(runs, RESULTS / f"{arguments.data}.json", arguments.seed)


def collect(folder: Path, results: Path, seed: int) -> None:
    """Put the finished arms into the stored results, each with its difference from N(0, I).

    Per-image numbers are stored too (`results/mnist/`), so that an arm that is run elsewhere or later is still
    compared image by image. Where those of N(0, I) are not there, the difference is that of two means, with both of
    their errors: far too wide, as the images are the same.
    """
    if not any((folder / f"{arm}-{seed}" / "result.json").exists() for arm in ARMS):
        return
    stored = json.loads(results.read_text()) if results.exists() else {"arms": {}}
    table, images = stored["arms"], results.with_suffix("")
    images.mkdir(parents=True, exist_ok=True)
    for arm in ARMS:
        path = folder / f"{arm}-{seed}"
        if (path / "result.json").exists():
            table[arm] = json.loads((path / "result.json").read_text())
            for number in NUMBERS:
                np.save(images / f"{arm}-{number}.npy", np.load(path / f"{number}.npy").astype(np.float32))
    for arm in set(table) - {"standard"} if "standard" in table else ():
        for number in NUMBERS:
            table[arm] |= difference(arm, number, table, images)
    facts = {
        "protocol": "gated MLP 2 x 300, 40 latents, dynamic binarisation, 50,000 / 10,000 / 10,000, "
        "stored test binarisation seed 0, batch 200, Adam one-cycle to 1e-3, EMA 0.9995, KL warm-up 10 %",
        "seed": seed,
        "torch": torch.__version__,
        "arms": table,
    }
    saving.write_atomic(results, json.dumps(facts, indent=1) + "\n")


def difference(arm: str, number: str, table: dict[str, dict], images: Path) -> dict[str, object]:
    """What an arm wins over N(0, I), in nats per image: paired where both have their images."""
    pair = [images / f"{name}-{number}.npy" for name in (arm, "standard")]
    if all(path.exists() for path in pair):
        values, base = (np.load(path).astype(np.float64) for path in pair)
        return {f"{number}_gain": Estimate.of(values - base).to_dict(), f"{number}_gain_paired": True}
    if f"{number}_gain" in table[arm]:
        return {}  # paired when it was run
    sign, key = (-1.0, "nll") if number == "log_px" else (1.0, "elbo")
    means = [sign * table[name][key]["value"] for name in (arm, "standard")]
    error = float(np.hypot(*(table[name][key]["std_error"] for name in (arm, "standard"))))
    gain = Estimate.from_error(means[0] - means[1], error)
    return {f"{number}_gain": gain.to_dict(), f"{number}_gain_paired": False}


if __name__ == "__main__":
    main()
