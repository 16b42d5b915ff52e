"""Joint, post hoc, or post hoc and fine-tuned: the same priors, each in the three ways, at stated compute.

    python benchmarks/joint_or_post_hoc.py --rows 5000 --steps 6000              # resumable; run it again to go on
    python benchmarks/joint_or_post_hoc.py --device cuda --out DIR --time-limit 500

MNIST, dynamically binarised; a VAE under N(0, I) and one under each prior, trained for the same steps; each prior
fitted post hoc on the first; and that fine-tuned for a third of the steps, beside a control trained on under N(0, I)
for the same third. `flow_matching` is post hoc only. The ELBO of 10,000 test images under one stored binarisation, by
the same draws; `--k` adds log p(x) of the first `--scored` images. "recovered" is the share of what joint training
wins over post hoc that fine-tuning wins. Results go to OUT/joint_or_post_hoc.json, checkpoints to OUT/runs/.
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

from latentfit import methods, priors, saving
from latentfit.data import Batch, Binarise, binarise_once, grey_to_unit, load
from latentfit.evaluation.codes import encode_rows
from latentfit.evaluation.collapse import active_units
from latentfit.evaluation.estimate import Estimate
from latentfit.evaluation.likelihood import log_likelihood
from latentfit.evaluation.proposal import fit_proposal
from latentfit.evaluation.terms import elbo_terms
from latentfit.model import VAEModule, fit
from latentfit.retrofitting import finetune as finetuning
from latentfit.training import Recipe
from latentfit.training.rng import isolated_rng

RESULTS = Path(__file__).parent / "results"
PRIORS = {
    "mixture": {"n_components": 50, "covariance": "diagonal"},
    "realnvp": {"transforms": 8, "hidden_features": 128},
    "two_stage": {},
    "flow_matching": {},
}
LATENTS = 40


class OutOfTime(Exception):
    """The time limit has passed; what was done is on disk."""


class Study:
    """One seed of the study, in a folder; every part is read where it is finished."""

    def __init__(self, arguments: argparse.Namespace, seed: int, rows: dict[str, torch.Tensor], until: float) -> None:
        self.a, self.seed, self.rows, self.until = arguments, seed, rows, until
        self.folder = arguments.out / "runs" / f"{arguments.rows}-{arguments.steps}-{arguments.hidden}" / f"seed-{seed}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.test = Batch(rows["test"])

    def tick(self, *_: object) -> None:
        if time.perf_counter() > self.until:
            raise OutOfTime

    def trained(self, name: str, args: dict) -> tuple[VAEModule, float]:
        """A VAE trained from the start under a prior."""
        method = methods.get(name)
        with isolated_rng(self.seed):
            vae = methods.build(
                methods.Method(name, method.family, prior=method.prior, prior_args=args),
                data_shape=(784,),
                latent_dim=LATENTS,
                likelihood="bernoulli",
                network="gated_mlp",
                network_args={"hidden": [self.a.hidden, self.a.hidden]},
            )
        result = fit(
            vae,
            Batch(self.rows["train"]),
            X_validation=Batch(self.rows["validation"]),
            objective=method.objective(self.a.steps),
            prepare=Binarise(),
            recipe=Recipe(
                max_steps=self.a.steps,
                batch_size=200,
                learning_rate=1e-3,
                schedule="one_cycle",
                ema_decay=0.999,
                device=self.a.device,
            ),
            random_state=self.seed,
            run_dir=self.folder / f"joint-{name}",
            progress=self.tick,
        )
        return vae, result.seconds

    def fitted(self, name: str, vae: VAEModule) -> tuple[priors.Prior, float]:
        """A prior on the frozen VAE."""
        path = self.folder / f"prior-{name}"
        if not path.exists():
            self.tick()
            start = time.perf_counter()
            with isolated_rng(self.seed):
                codes = encode_rows(vae, Binarise()(Batch(self.rows["train"])))
            prior = priors.create(name, latent_dim=LATENTS, **PRIORS[name]).to(codes.mean)
            prior.fit(codes.mean, std=codes.std, random_state=self.seed)
            saving.save_component(prior, path)
            (path / "seconds").write_text(str(time.perf_counter() - start))
        return priors.load(path).to(vae.device), float((path / "seconds").read_text())

    def judged(self, key: str, vae: VAEModule, seconds: float) -> dict:
        """Numbers of one arm; per-image ELBOs beside them."""
        path = self.folder / f"judged-{key}.json"
        if path.exists():
            return json.loads(path.read_text())
        self.tick()
        terms = elbo_terms(vae, self.test, n_draws=4, random_state=0)
        np.save(path.with_suffix(".npy"), terms.elbo_per_row)
        facts = {
            "elbo": terms.elbo.value,
            "kl": terms.kl.value,
            "active_units": int(active_units(encode_rows(vae, self.test))),
            "seconds": seconds,
        }
        if self.a.k:
            proposal = fit_proposal(vae, Batch(binarise_once(self.rows["train"][:5_000].cpu(), random_state=1)))
            scored = log_likelihood(vae, self.test[: self.a.scored], n_importance_samples=self.a.k, proposal=proposal)
            facts |= {"log_px": scored.estimate.value, "unreliable": scored.unreliable}
        saving.write_atomic(path, json.dumps(facts, indent=1))
        print(f"seed {self.seed} {key}: {facts}", flush=True)
        return facts

    def run(self) -> dict[str, dict]:
        """All arms of this seed: name -> numbers."""
        base, seconds = self.trained("standard", {})
        found = {"standard": self.judged("standard", base, seconds)}
        third = max(1, self.a.steps // 3)
        for name in self.a.priors:
            prior, fit_seconds = self.fitted(name, base)
            after = saving.load_component(self._kept(base)).to(base.device)
            after.prior = prior
            found[f"{name}, post hoc"] = self.judged(f"{name}-post-hoc", after, fit_seconds)
            if name == "flow_matching":
                continue
            if not (self.folder / f"judged-{name}-fine-tuned.json").exists():
                tuned = finetuning.finetune(
                    base,
                    prior,
                    Batch(self.rows["train"]),
                    self.test[:1_000],
                    steps=third,
                    prepare=Binarise(),
                    random_state=self.seed,
                    progress=self.tick,
                    run_dirs={
                        "fine-tuned": self.folder / f"fine-tuned-{name}",
                        "control": self.folder / "control",
                    },
                )
                self.judged(f"{name}-fine-tuned", tuned.model, tuned["fine-tuned"].seconds)
                self.judged("control", tuned.control, tuned["control"].seconds)
            found[f"{name}, fine-tuned"] = self.judged(f"{name}-fine-tuned", base, 0.0)
            found["standard, control"] = self.judged("control", base, 0.0)
            joint, seconds = self.trained(name, PRIORS[name])
            found[f"{name}, joint"] = self.judged(f"{name}-joint", joint, seconds)
        return found

    def _kept(self, base: VAEModule) -> Path:
        path = self.folder / "standard"
        if not path.exists():
            saving.save_component(base, path)
        return path


def table(seeds: list[dict[str, dict]], names: list[str]) -> dict[str, dict]:
    """Means over seeds, and what fine-tuning recovers of what joint training wins over post hoc."""
    keys = [key for key in seeds[0] if all(key in found for found in seeds)]
    result: dict[str, dict] = {}
    for key in keys:
        numbers = {n: float(np.mean([found[key][n] for found in seeds])) for n in seeds[0][key]}
        result[key] = numbers | {"elbo_by_seed": [found[key]["elbo"] for found in seeds]}
    for name in names:
        ways = [f"{name}, {way}" for way in ("post hoc", "fine-tuned", "joint")]
        if all(way in result for way in ways):
            shares = [
                (f[ways[1]]["elbo"] - f[ways[0]]["elbo"]) / (f[ways[2]]["elbo"] - f[ways[0]]["elbo"]) for f in seeds
            ]
            result[ways[1]]["recovered"] = float(np.mean(shares))
            owed = [f[ways[1]]["elbo"] - f["standard, control"]["elbo"] for f in seeds]
            result[ways[1]]["over_control"] = Estimate.of(np.array(owed)).to_dict() if len(owed) > 1 else owed[0]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000, help="training images, at most 50,000")
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--hidden", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--priors", nargs="+", choices=list(PRIORS), default=list(PRIORS))
    parser.add_argument("--k", type=int, default=0, help="importance samples for log p(x); 0: the ELBO alone")
    parser.add_argument("--scored", type=int, default=500)
    parser.add_argument("--kl-start", type=float, default=finetuning.KL_START, help="of fine-tuning")
    parser.add_argument("--kl-share", type=float, default=finetuning.KL_SHARE, help="of the steps, until it is 1")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--data-dir", type=Path, default=None)
    parser.add_argument("--out", type=Path, default=None, help="default: benchmarks/results, checkpoints in runs/")
    parser.add_argument("--time-limit", type=float, default=float("inf"), help="seconds, then stop; rerun to go on")
    arguments = parser.parse_args()
    finetuning.KL_START, finetuning.KL_SHARE = arguments.kl_start, arguments.kl_share
    store = RESULTS if arguments.out is None else arguments.out
    arguments.out = Path("runs/joint-or-post-hoc") if arguments.out is None else arguments.out
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    until = time.perf_counter() + arguments.time_limit
    source = load("mnist", arguments.data_dir)
    x, is_test = torch.as_tensor(grey_to_unit(source.x)).flatten(1), torch.as_tensor(source.is_test)
    rows = {
        "train": x[~is_test][: min(arguments.rows, 50_000)],
        "validation": binarise_once(x[~is_test][50_000:], random_state=0),
        "test": binarise_once(x[is_test], random_state=0),
    }
    rows = {name: part.to(arguments.device) for name, part in rows.items()}
    done = []
    for seed in range(arguments.seeds):
        try:
            done.append(Study(arguments, seed, rows, until).run())
        except OutOfTime:
            print(f"Out of time in seed {seed}; run it again to go on.", flush=True)
            break
    if done:
        facts = {
            "protocol": f"{arguments.rows} images, gated MLP 2 x {arguments.hidden}, {LATENTS} latents, "
            f"{arguments.steps} steps of 200; fine-tuning and control {arguments.steps // 3}",
            "kl_of_fine_tuning": [arguments.kl_start, arguments.kl_share],
            "device": arguments.device,
            "seeds": len(done),
            "torch": torch.__version__,
            "arms": table(done, arguments.priors),
        }
        name = f"joint_or_post_hoc_{arguments.rows}.json"
        saving.write_atomic(store / name, json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
