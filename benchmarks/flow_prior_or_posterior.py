"""Flow prior or flow posterior? The same flow on either side of one encoder and decoder, and both, on MNIST.

    python benchmarks/flow_prior_or_posterior.py --rows 5000 --steps 10000                  # resumable
    python benchmarks/flow_prior_or_posterior.py --device cuda --rows 50000 --phase train   # all arms and seeds at once
    python benchmarks/flow_prior_or_posterior.py --device cuda --rows 50000 --phase score --shard 0/8    # and 1/8 ...
    python benchmarks/flow_prior_or_posterior.py --device cuda --phase time                 # milliseconds per step
    python benchmarks/flow_prior_or_posterior.py --phase collect                 # results, the docs' tables

The network and protocol of benchmarks/mnist.py: gated MLP 2 x 300, 40 latents, dynamic binarisation, batch 200, Adam
with a one-cycle rate to 1e-3, averaged weights, KL warm-up over a tenth of the run, the best step by 10,000 validation
images, all 10,000 test images under one stored binarisation, importance samples from the fitted evaluation proposal
refined for each image. Arms differ by their prior and posterior alone; a flow posterior's encoder gives 64 features
more.

A run is an arm, a number of training images, a number of steps and a seed. Finished ones, here or in the stored
results, are not done again. `--time-limit` stops between two validations and stores the state.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# one queue for each group of runs that trains beside the others
os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")

import torch
from _together import CHUNK, Group, train

from latentfit import methods, saving
from latentfit.data import Batch, Binarise, binarise_once, grey_to_unit, load
from latentfit.evaluation.codes import encode_rows
from latentfit.evaluation.collapse import active_units
from latentfit.evaluation.likelihood import log_likelihood
from latentfit.evaluation.proposal import fit_proposal
from latentfit.evaluation.terms import elbo_terms, inference_gap
from latentfit.model import VAEModule, fit
from latentfit.registry import registry
from latentfit.training import Recipe, isolated_rng

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "flow_prior_or_posterior.json"
PAGE = HERE.parent / "docs" / "flow-prior-or-flow-posterior.md"
LATENTS, BATCH = 40, 200
COUPLINGS = {"transforms": 8, "hidden_features": [128, 128]}
MASKED = {"transforms": 4, "hidden_features": [128, 128]}
#: decoder calls at once: what a GPU needs to be busy; on a CPU what stays in the cache
GPU_BATCH = 131_072


@dataclass(frozen=True)
class Arm:
    """A prior and a posterior with their arguments, and their line in the table."""

    words: str
    prior: str = "standard"
    prior_args: dict[str, Any] = field(default_factory=dict)
    posterior: str = "diagonal"
    posterior_args: dict[str, Any] = field(default_factory=dict)
    #: whether its seeds can be trained as one vectorised model
    vectorised: bool = True


ARMS = {
    "standard": Arm("N(0, I), diagonal posterior"),
    "mixture": Arm("mixture prior, 100 components", "mixture", {"n_components": 100, "covariance": "diagonal"}),
    "vamp": Arm("VampPrior, 500 pseudo-inputs", "vamp", {"n_components": 500}, vectorised=False),
    "realnvp_prior": Arm("RealNVP prior, 8 couplings", "realnvp", COUPLINGS),
    "realnvp_posterior": Arm("the same RealNVP as posterior", "standard", {}, "realnvp_posterior", COUPLINGS),
    "realnvp_both": Arm("RealNVP prior and posterior", "realnvp", COUPLINGS, "realnvp_posterior", COUPLINGS),
    "nsf_prior": Arm("spline coupling prior, 6 couplings", "nsf", {"transforms": 6, "hidden_features": [128, 128]}),
    "maf_prior": Arm("MAF prior, 4 steps", "maf", MASKED),
    "iaf_posterior": Arm("IAF posterior, 4 steps", "standard", {}, "iaf", MASKED),
    "sylvester_posterior": Arm("Sylvester posterior, 4 steps of 8", "standard", {}, "sylvester", {}),
}


@dataclass(frozen=True)
class Run:
    """One training: which arm, on how many images, for how long, from which seed."""

    arm: str
    rows: int
    steps: int
    seed: int

    def __str__(self) -> str:
        return f"{self.arm}-{self.rows}-{self.steps}-{self.seed}"


def available(arm: str) -> bool:
    """Whether this version of the library has the arm's parts."""
    parts = ARMS[arm]
    return parts.prior in registry.names("prior") and parts.posterior in registry.names("posterior")


def read(data_dir: Path | None) -> dict[str, torch.Tensor]:
    source = load("mnist", data_dir)
    x = torch.as_tensor(grey_to_unit(source.x)).flatten(1)
    test = torch.as_tensor(source.is_test)
    rest = x[~test]
    return {
        "train": rest[:50_000],
        "validation": binarise_once(rest[50_000:], random_state=0),
        "test": binarise_once(x[test], random_state=0),
    }


def build(arm: str, seed: int) -> VAEModule:
    parts = ARMS[arm]
    with isolated_rng(seed):
        posterior = registry.create("posterior", parts.posterior, latent_dim=LATENTS, **parts.posterior_args)
        return VAEModule(
            encoder=registry.create("network", "gated_mlp", in_shape=[784], out_shape=posterior.n_parameters),
            decoder=registry.create("network", "gated_mlp", in_shape=LATENTS, out_shape=[784]),
            prior=registry.create("prior", parts.prior, latent_dim=LATENTS, **parts.prior_args),
            posterior=posterior,
            likelihood="bernoulli",
        )


def recipe_of(run: Run, validate_every: int = 500) -> Recipe:
    return Recipe(
        max_steps=run.steps,
        batch_size=BATCH,
        learning_rate=1e-3,
        schedule="one_cycle",
        ema_decay=0.9995,
        validate_every=validate_every,
        clip_norm=200.0,
    )


def group_of(runs: list[Run], rows: dict[str, torch.Tensor], device: str, validate_every: int = 500) -> Group:
    """The seeds of one arm as a group."""
    first = runs[0]
    return Group(
        [build(first.arm, run.seed) for run in runs],
        rows["train"][: first.rows].to(device),
        rows["validation"].to(device),
        methods.get("standard").kl_weight(first.steps),
        recipe_of(first, validate_every),
        [run.seed for run in runs],
    )


class OutOfTime(Exception):
    """The time limit has passed; what was done is on disk."""


def train_by_fit(run: Run, rows: dict[str, torch.Tensor], options: argparse.Namespace, deadline: float) -> None:
    """One run by the library's own loop, which also starts a mixture at the codes."""
    folder = options.out / str(run)

    def tick(_: object) -> None:
        if time.monotonic() > deadline:
            raise OutOfTime

    vae = build(run.arm, run.seed)
    result = fit(
        vae,
        Batch(rows["train"][: run.rows]),
        X_validation=Batch(rows["validation"]),
        objective=methods.get("standard").objective(run.steps),
        prepare=Binarise(),
        recipe=recipe_of(run, options.validate_every),
        random_state=run.seed,
        run_dir=folder / "training",
        progress=tick,
    )
    facts = {
        "steps": result.steps,
        "best_step": result.best_step,
        "validation_elbo": None if result.best_value is None else -result.best_value,
        "skipped_steps": result.skipped_steps,
        "n_parameters": sum(p.numel() for p in vae.parameters() if p.requires_grad),
        "train_seconds": result.seconds,
        "trained": f"{device_name(options)}, fit",
    }
    saving.save_component(vae, folder / "model", overwrite=True)
    saving.write_atomic(folder / "fit.json", json.dumps(facts))
    print(f"{run}: trained in {result.seconds:.0f} s, best at {result.best_step}", flush=True)


def train_phase(runs: list[Run], rows: dict[str, torch.Tensor], options: argparse.Namespace, deadline: float) -> None:
    """Train what is not trained yet: on a GPU all arms side by side, on a CPU one run after the other."""
    missing = [run for run in runs if not (options.out / str(run) / "fit.json").exists()]
    if options.device == "cpu":
        try:
            for run in missing:
                train_by_fit(run, rows, options, deadline)
        except OutOfTime:
            print("Out of time; run it again to go on.", flush=True)
        return
    todo: dict[str, list[Run]] = {}
    for run in missing:
        if build(run.arm, run.seed).prior.awaits_codes:
            print(f"{run}: left out, this engine has no start at the codes; without --device cuda it is trained")
            continue
        todo.setdefault(run.arm if ARMS[run.arm].vectorised else str(run), []).append(run)
    groups = []
    for of_arm in todo.values():
        group = group_of(of_arm, rows, options.device, options.validate_every)
        state = options.out / f"state-{'-'.join(map(str, of_arm))}.safetensors"
        if state.exists():
            group.load(state)
        kind = "eager" if options.eager else group.capture()
        print(f"{of_arm[0].arm}: {len(of_arm)} seeds from step {group.done}, {kind}", flush=True)
        if kind != "graph" and not options.eager:
            continue  # it would hold up all the others: see why, and run it alone with --eager
        groups.append((of_arm, group, state, kind))
    if not groups or time.monotonic() > deadline:
        return
    start, before = time.monotonic(), groups[0][1].done
    finished = train([group for _, group, _, _ in groups], deadline)
    seconds = time.monotonic() - start
    print(f"{groups[0][1].done - before} steps in {seconds:.0f} s, {'done' if finished else 'stored'}", flush=True)
    for of_arm, group, state, kind in groups:
        if not finished:
            group.save(state)
            continue
        for run, vae, facts in zip(of_arm, group.vaes, group.finish(), strict=True):
            folder = options.out / str(run)
            folder.mkdir(parents=True, exist_ok=True)
            saving.save_component(vae.cpu(), folder / "model", overwrite=True)
            facts["trained"] = f"{device_name(options)}, {kind}"
            saving.write_atomic(folder / "fit.json", json.dumps(facts))
        state.unlink(missing_ok=True)


def score_phase(runs: list[Run], rows: dict[str, torch.Tensor], options: argparse.Namespace, deadline: float) -> None:
    """Score what is trained and not scored yet."""
    shard, of = map(int, options.shard.split("/"))
    ready = [run for run in runs if (options.out / str(run) / "fit.json").exists()]
    for run in ready[shard::of]:
        folder = options.out / str(run)
        if time.monotonic() > deadline or (folder / "result.json").exists():
            continue
        start = time.monotonic()
        vae = saving.load_component(folder / "model").to(options.device).eval()
        scores = score(vae, run, rows, options)
        facts = json.loads((folder / "fit.json").read_text()) | scores
        facts |= {"score_seconds": time.monotonic() - start, "scored": device_name(options)}
        saving.write_atomic(folder / "result.json", json.dumps(facts, indent=1))
        nll, elbo = facts["nll"]["value"], facts["elbo"]["value"]
        print(f"{run}: {nll:.2f}, ELBO {elbo:.2f}, {facts['score_seconds']:.0f} s", flush=True)


def score(vae: VAEModule, run: Run, rows: dict[str, torch.Tensor], options: argparse.Namespace) -> dict[str, Any]:
    known = binarise_once(rows["train"][: min(run.rows, 10_000)], random_state=1)
    test = Batch(rows["test"][: options.n_test])
    proposal = fit_proposal(vae, Batch(known), random_state=0)
    scored = log_likelihood(
        vae,
        test,
        n_importance_samples=options.k,
        proposal=proposal,
        random_state=0,
        batch_size=GPU_BATCH if options.device == "cuda" else None,
        refinement_steps=150,
    )
    terms = elbo_terms(vae, test, random_state=0)
    return {
        "nll": {**scored.estimate.to_dict(), "value": -scored.estimate.value},
        "elbo": terms.elbo.to_dict(),
        "kl": terms.kl.value,
        "inference_gap": inference_gap(scored, terms).to_dict(),
        "active_units": int(active_units(encode_rows(vae, test))),
        "median_ess": float(torch.as_tensor(scored.effective_sample_size).median()),
        "pareto_k_above_0.7": scored.unreliable,
        "doubling": scored.doubling,
        "k": options.k,
        "n_test": len(test),
    }


def time_phase(rows: dict[str, torch.Tensor], options: argparse.Namespace) -> None:
    """Milliseconds per step of one model alone, arms taking turns: medians, and their ratio to N(0, I)."""
    groups, kinds = {}, {}
    for arm in options.arms:
        groups[arm] = group_of([Run(arm, options.rows, 1_000, 0)], rows, options.device)
        kinds[arm] = "eager" if options.eager else groups[arm].capture()
    chunks = 5 if options.device == "cuda" else 1
    taken: dict[str, list[float]] = {arm: [] for arm in groups}
    for _ in range(7):
        for arm, group in groups.items():
            start = time.perf_counter()
            for _ in range(chunks):
                group.chunk()
            if options.device == "cuda":
                torch.cuda.synchronize()
            taken[arm].append((time.perf_counter() - start) / chunks / CHUNK)
    table = {arm: {"ms": 1e3 * statistics.median(times), "kind": kinds[arm]} for arm, times in taken.items()}
    for facts in table.values():
        facts["ratio"] = facts["ms"] / table["standard"]["ms"] if "standard" in table else math.nan
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"timing-{options.device}.json"
    saving.write_atomic(path, json.dumps({"device": device_name(options), "arms": table}, indent=1))
    for arm, facts in table.items():
        print(f"{arm:20s} {facts['ms']:7.3f} ms  {facts['ratio']:.2f}x  {facts['kind']}")


def device_name(options: argparse.Namespace) -> str:
    return torch.cuda.get_device_name() if options.device == "cuda" else "CPU, 1 thread"


def stored(options: argparse.Namespace) -> dict[str, Any]:
    return json.loads(options.results.read_text()) if options.results.exists() else {"runs": {}, "timing": {}}


def collect(options: argparse.Namespace) -> None:
    """Put finished runs and timings into the stored results, and the table into the docs page."""
    facts = stored(options)
    for path in sorted(options.out.glob("*/result.json")):
        facts["runs"][path.parent.name] = json.loads(path.read_text())
    for path in sorted(options.out.glob("timing-*.json")):
        timing = json.loads(path.read_text())
        facts["timing"][timing["device"]] = timing["arms"]
    facts["torch"] = torch.__version__
    saving.write_atomic(options.results, json.dumps(facts, indent=1, sort_keys=True) + "\n")
    if options.results == RESULTS and PAGE.exists():
        from _flow_tables import write_tables

        write_tables(PAGE, facts, {arm: parts.words for arm, parts in ARMS.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phase", choices=["all", "train", "score", "time", "collect"], default="all")
    parser.add_argument("--arms", default=",".join(ARMS), help="names, comma between")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--rows", type=int, default=50_000, help="training images")
    parser.add_argument("--steps", type=int, default=60_000)
    parser.add_argument("--k", type=int, default=1_000, help="importance samples")
    parser.add_argument("--n-test", type=int, default=10_000)
    parser.add_argument("--validate-every", type=int, default=500)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--eager", action="store_true", help="no CUDA graphs")
    parser.add_argument("--shard", default="0/1", help="i/n: score every n-th run from the i-th, for n processes")
    parser.add_argument("--time-limit", type=float, default=math.inf, help="seconds")
    parser.add_argument("--data-dir", type=Path, default=None)
    parser.add_argument("--out", type=Path, default=Path("runs/flow-prior-or-posterior"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    deadline = time.monotonic() + options.time_limit
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    asked = options.arms.split(",")
    options.arms = [arm for arm in asked if available(arm)]
    if len(options.arms) < len(asked):
        print(f"left out, this version has no such part: {', '.join(sorted(set(asked) - set(options.arms)))}")
    if options.phase != "collect":
        done = stored(options)["runs"]
        every = [Run(a, options.rows, options.steps, int(s)) for a in options.arms for s in options.seeds.split(",")]
        runs = [run for run in every if str(run) not in done]
        rows = read(options.data_dir)
        if options.phase == "time":
            time_phase(rows, options)
        if options.phase in ("all", "train"):
            train_phase(runs, rows, options, deadline)
        if options.phase in ("all", "score"):
            score_phase(runs, rows, options, deadline)
    if options.phase in ("all", "collect"):
        collect(options)


if __name__ == "__main__":
    main()
