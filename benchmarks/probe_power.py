"""Does the probe see that a prior presses on its encoder, and does it keep quiet where none does?

    python benchmarks/probe_power.py --processes 2 --time-limit 1800      # goes on where it stopped

pressed   rows of twelve clusters in 4 dimensions, W z + noise in 16 columns, under N(0, I), which cannot have its
          clusters where they are. The truth is measured: a second VAE is trained the same way under a mixture, and what
          its held-out ELBO has above the first one's, each with a mixture fitted to its codes, is what moving the codes
          can win. Where that is half a nat or more, "presses" is right.
closed    the same with each of the 4 coordinates of z at one of two places, six standard deviations of what x says
          about it apart: the gap is 0.4 nats, and post hoc closes nearly all of it. "Presses" is a false alarm.
null      the same with z of N(0, I): the prior under which the rows were made, and no other wins anything by training.
learned   the rows of `closed`, but the model was trained jointly with its mixture, which was then fitted to its codes
          once more: the probe's copy, under a mixture fitted to other draws, must not be said to press.

Every repeat trains its own VAE on its own rows. `--out` (results/probe_power by default) gets a file per repeat and
summary.json.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from _pool import share_out
from _timing import RESULTS, one_thread

import latentfit as lf
from latentfit import methods
from latentfit.data import Batch
from latentfit.data.synthetic import LinearGaussian
from latentfit.diagnosis.probe import STEPS, probe
from latentfit.evaluation import Codes, elbo_terms, encode_rows, prior_gap
from latentfit.model import VAEModule
from latentfit.priors import MixturePrior
from latentfit.saving import write_atomic
from latentfit.training.rng import isolated_rng

TRAINING_STEPS = 3_000
#: of the rows, and what they say about a coordinate of z, over what N(0, 1) says
NOISE, PRECISION = 0.5, 10.0
REPEATS = {"pressed": 20, "closed": 20, "null": 60, "learned": 20}
#: rows of a repeat, and how many of them train
N_ROWS, N_TRAIN = 2_000, 1_200
#: nats that training under a learned prior wins beyond its gap, from which on the prior is said to press
PRESSED = 0.5


def rows(case: str, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Training and test rows."""
    generator = torch.Generator().manual_seed(seed + 1)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    if case == "null":
        truth = LinearGaussian(16, 4, noise=NOISE, random_state=seed)
        x = truth.sample(N_ROWS, random_state=seed + 1)[0].float()
    elif case == "pressed":
        centres = 2.0 * normal(12, 4)
        z = centres[torch.randint(12, (N_ROWS,), generator=generator)] + 0.2 * normal(N_ROWS, 4)
        x = z @ normal(4, 16) + 0.3 * normal(N_ROWS, 16)
    else:
        z = 0.98 * normal(N_ROWS, 4).sign() + 0.2 * normal(N_ROWS, 4)
        lift = torch.linalg.qr(normal(16, 4)).Q.T * math.sqrt(PRECISION) * NOISE
        x = z @ lift + NOISE * normal(N_ROWS, 16)
    return x[:N_TRAIN], x[N_TRAIN:]


def trained(method: str, X: torch.Tensor, seed: int) -> VAEModule:
    """A VAE that has converged."""
    likelihood = {"name": "normal", "args": {"scale": "learned"}}
    with isolated_rng(seed):
        vae = methods.build(method, data_shape=(X.shape[1],), latent_dim=4, likelihood=likelihood)
    lf.fit(vae, X, max_steps=TRAINING_STEPS, random_state=seed)
    return vae


def with_mixture(vae: VAEModule, X: torch.Tensor, seed: int) -> VAEModule:
    """The VAE with a mixture that is fitted to its codes."""
    codes: Codes = encode_rows(vae, Batch(X))
    learned = MixturePrior(vae.event_shape.numel(), n_components="auto")
    return vae.with_parts(prior=learned.fit(codes.mean, std=codes.std, random_state=seed))


def repeat(case: str, seed: int) -> dict:
    """What the probe says of one VAE, and the truth where it is measured."""
    one_thread()
    X, X_test = rows(case, seed)
    vae = trained("mixture" if case == "learned" else "standard", X, seed)
    learned = with_mixture(vae, X, seed).prior
    if case == "learned":
        vae.prior = with_mixture(vae, X, seed + 1).prior
    found = probe(vae, learned, Batch(X), Batch(X_test), random_state=seed)
    facts = {
        "presses": found.presses,
        "rising": found.rising,
        "pressure": found.pressure.to_dict(),
        "gain": [round(gain.value, 4) for gain in found.gain],
        "seconds": round(found.seconds, 1),
    }
    if case in ("pressed", "closed"):
        joint = with_mixture(trained("mixture", X, seed), X, seed)
        post_hoc = with_mixture(vae, X, seed)
        after, before = (elbo_terms(model, X_test, random_state=seed).elbo.value for model in (joint, post_hoc))
        gap = prior_gap(learned, vae.prior, encode_rows(vae, Batch(X_test)), random_state=seed)
        facts |= {"joint_minus_post_hoc": round(after - before, 3), "gap": round(gap.value, 3)}
    return facts


def wanted(out: Path) -> Iterator[tuple[str, int]]:
    """Repeats that are missing, the cases in turn."""
    for seed in range(max(REPEATS.values())):
        for case, repeats in REPEATS.items():
            if seed < repeats and not (out / f"{case}-{seed}.json").exists():
                yield case, seed


def summary(out: Path) -> dict:
    """How often the probe said "presses", of how many."""
    found = {case: [json.loads(path.read_text()) for path in sorted(out.glob(f"{case}-*.json"))] for case in REPEATS}
    measured = found["pressed"] + found["closed"]
    table = {
        "pressed by half a nat or more": [f for f in measured if f["joint_minus_post_hoc"] >= PRESSED],
        "pressed by less": [f for f in measured if f["joint_minus_post_hoc"] < PRESSED],
        "null": found["null"],
        "learned jointly": found["learned"],
    }
    return {
        "torch": torch.__version__,
        "steps": STEPS,
        "joint_minus_post_hoc": {
            case: [facts["joint_minus_post_hoc"] for facts in found[case]] for case in ("pressed", "closed")
        },
        "says presses": {name: f"{sum(f['presses'] for f in some)} of {len(some)}" for name, some in table.items()},
        "pressure": {name: [round(f["pressure"]["value"], 3) for f in some] for name, some in table.items()},
        "lower end": {name: [round(f["pressure"]["interval"][0], 3) for f in some] for name, some in table.items()},
    }


def main() -> None:
    """Run for a while and store what there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--time-limit", type=float, default=3600, metavar="SECONDS")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS / "probe_power")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    options = {"processes": arguments.processes, "time_limit": arguments.time_limit}
    for (case, seed), facts in share_out(repeat, wanted(arguments.out), **options, kind=lambda case, _: case):
        write_atomic(arguments.out / f"{case}-{seed}.json", json.dumps(facts) + "\n")
        print(case, seed, json.dumps(facts), flush=True)
    result = summary(arguments.out)
    write_atomic(arguments.out / "summary.json", json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["says presses"]))


if __name__ == "__main__":
    main()
