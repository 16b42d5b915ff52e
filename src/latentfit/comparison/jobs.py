"""The jobs of a comparison: pure functions of a specification, each in its own folder, never run twice.

A job trains or fits, scores on the selection and the test rows, and writes `result.json` last: a folder with a
result is finished, a folder without one is resumed from its checkpoint.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentfit import methods, saving
from latentfit.comparison.plan import MAX_PROPOSAL, Job, build_vae, job_folder, one_thread
from latentfit.data.prepared import PreparedData
from latentfit.data.units import Units
from latentfit.errors import TrainingError
from latentfit.evaluation.codes import encode_rows
from latentfit.evaluation.collapse import active_units
from latentfit.evaluation.ladder import climb
from latentfit.evaluation.likelihood import log_likelihood
from latentfit.evaluation.proposal import Proposal, fit_proposal
from latentfit.evaluation.terms import elbo_terms
from latentfit.evaluation.two_phase import annealed_where_needed
from latentfit.model import VAEModule, fit
from latentfit.model.contracts import Prior
from latentfit.registry import registry
from latentfit.training import Recipe
from latentfit.training.rng import isolated_rng

SPLITS = ("train", "validation", "selection", "test")
#: steps of the proposal shared by all rows, and of each scored row's own. Measured on digits: 60 and 250 of the first
#: give the same effective sample size once rows are refined, and so does not refitting it to every rung
PROPOSAL_STEPS, REFINEMENT_STEPS = 60, 50
#: more labels than these are no classes, and are not named
MOST_NAMED = 1_000


def store_data(
    run_dir: Path,
    data: PreparedData,
    splits: Mapping[str, np.ndarray],
    marks: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> None:
    """Write what the jobs read: the prepared rows, the transforms, the splits."""
    tensors = {"x": data.x, **{f"rows_{name}": torch.as_tensor(splits[name]) for name in SPLITS}}
    for name in ("selection", "test"):
        tensors[f"rows_{name}"] = some(tensors[f"rows_{name}"], settings["max_scored"], settings["random_state"])
    if data.source is not data.x:
        tensors["source"] = data.source
    names: dict[str, list[str]] = {}
    for name, values in marks.items():  # labels and groups, as numbers
        if values is not None:
            called, number = np.unique(values, return_inverse=True)
            tensors[name] = torch.as_tensor(number)
            names[name] = [str(label) for label in called] if len(called) <= MOST_NAMED else []
    meta: dict[str, Any] = {
        "label_names": names.get("labels", []),
        "group_names": names.get("groups", []),
        "likelihood": data.likelihood,
        "noise": data.noise,
        "reason": data.reason,
        "alternatives": data.alternatives,
        "notes": data.notes,
        "units": data.units.to_json(),
    }
    for part in ("preprocess", "encoder_input"):
        transform = getattr(data, part)
        meta[part] = None if transform is None else transform.config()
        if transform is not None:
            tensors |= {f"{part}.{key}": value for key, value in transform.state_dict().items()}
    saving.save_tensors(run_dir / "data.safetensors", tensors, meta)


def load_data(run_dir: str) -> tuple[PreparedData, dict[str, Tensor], dict[str, Tensor]]:
    """The inverse of `store_data`, once per process: the data, the splits' row numbers, labels and groups."""
    return _load_data(run_dir, _written_at(run_dir))[:3]


def mark_names(run_dir: str, mark: str) -> list[str]:
    """What the labels or groups, which `load_data` gives as numbers from 0, are called; empty: nothing is known."""
    return _load_data(run_dir, _written_at(run_dir))[3][mark]


def _written_at(run_dir: str) -> int:
    return (Path(run_dir) / "data.safetensors").stat().st_mtime_ns


@lru_cache(maxsize=2)
def _load_data(
    run_dir: str, written_at: int
) -> tuple[PreparedData, dict[str, Tensor], dict[str, Tensor], dict[str, list[str]]]:
    tensors, meta = saving.load_tensors(Path(run_dir) / "data.safetensors")
    transforms: dict[str, Any] = {}
    for part in ("preprocess", "encoder_input"):
        if meta[part] is None:
            transforms[part] = None
            continue
        transforms[part] = registry.build("transform", meta[part])
        prefix = f"{part}."
        state = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        transforms[part].load_state_dict(state)
    data = PreparedData(
        likelihood=meta["likelihood"],
        reason=meta["reason"],
        alternatives=meta["alternatives"],
        x=tensors["x"],
        source=tensors.get("source", tensors["x"]),
        noise=meta["noise"],
        notes=meta["notes"],
        units=Units.from_json(meta["units"]),
        **transforms,
    )
    marks: dict[str, Tensor] = {name: tensors[name] for name in ("labels", "groups") if name in tensors}
    rows = {name: tensors[f"rows_{name}"] for name in SPLITS}
    # older folders have none
    names = {"labels": meta.get("label_names", []), "groups": meta.get("group_names", [])}
    return data, rows, marks, names


def some(rows: Tensor, n: int, random_state: int) -> Tensor:
    """At most n of the rows, drawn with a seed: splits are sorted, and data sets often are, by class."""
    if len(rows) <= n:
        return rows
    picked = torch.randperm(len(rows), generator=torch.Generator().manual_seed(random_state))[:n]
    return rows[picked.sort().values]


def run_job(run_dir: str, job: Job) -> dict[str, Any]:
    """The result of a job, computed or read: key -> numbers per row of the leaderboard. One thread."""
    folder = job_folder(Path(run_dir), job)
    done = read_result(folder)
    if done is not None:
        return done
    with one_thread():
        folder.mkdir(parents=True, exist_ok=True)
        saving.write_atomic(folder / "job.json", json.dumps(asdict(job), indent=1))
        result = _train(run_dir, job, folder) if job.kind == "joint" else _ladder(run_dir, job, folder)
        saving.write_atomic(folder / "result.json", json.dumps(result, indent=1))
    return result


def read_result(folder: Path) -> dict[str, Any] | None:
    """The result of a finished job, or None; a job that failed has none, and is tried again by a rerun."""
    try:
        return json.loads((folder / "result.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def read_arrays(folder: Path, key: str) -> dict[str, np.ndarray]:
    """Per-row numbers of one leaderboard row: `log_px`, `elbo`, ... on `selection` and `test`."""
    tensors, _ = saving.load_tensors(folder / f"{key}.safetensors")
    return {name: value.numpy() for name, value in tensors.items()}


def load_model(run_dir: Path, job: Job) -> VAEModule:
    """The VAE a joint job trained."""
    vae = saving.load_component(job_folder(run_dir, job) / "model")
    return vae.eval()


def load_prior(run_dir: Path, job: Job, name: str) -> Prior:
    """The prior that a ladder job fitted on its rung `name`."""
    return saving.load_component(job_folder(run_dir, job) / name).eval()


def _train(run_dir: str, job: Job, folder: Path) -> dict[str, Any]:
    data, rows, _ = load_data(run_dir)
    recipe = Recipe(**job.settings["recipe"])
    with isolated_rng(job.settings["random_state"] + job.seed):
        vae = build_vae(job.settings, job.method, data)
    result = fit(
        vae,
        data.training_batch(rows["train"]),
        X_validation=data.scoring_batch(rows["validation"]),
        objective=methods.get(job.method).objective(recipe.max_steps),
        prepare=data.prepare,
        recipe=recipe,
        random_state=job.settings["random_state"] + job.seed,
        run_dir=folder,
    )
    vae.to("cpu")
    saving.save_component(vae, folder / "model", overwrite=True)
    facts = {
        "fit_seconds": result.seconds,
        "steps": result.steps,
        "best_step": result.best_step,
        "stopped": result.stopped,
        "skipped_steps": result.skipped_steps,
        "history": result.history,
        "n_parameters": sum(p.numel() for p in vae.parameters()) + vae.prior.n_stored,
        "network_calls": vae.prior.network_calls,
        "n_draws": vae.n_draws,
    }
    proposal = propose(vae, data, rows, job)
    return {job.method: facts | score(vae, proposal, data, rows, job, folder, job.method)}


def _ladder(run_dir: str, job: Job, folder: Path) -> dict[str, Any]:
    data, rows, marks = load_data(run_dir)
    shared = {key: value for key, value in job.settings.items() if key != "rungs"}
    base = Job("joint", "standard", job.seed, shared)
    if read_result(job_folder(Path(run_dir), base)) is None:
        raise TrainingError("The N(0, I) model of this seed could not be trained, so nothing can be fitted on it.")
    vae = load_model(Path(run_dir), base)
    groups = marks.get("groups")
    codes = {
        name: encode_rows(
            vae, data.scoring_batch(rows[name]), groups=None if groups is None else groups[rows[name]].numpy()
        )
        for name in ("train", "validation", "selection")
    }
    if data.prepare is not None:  # as the encoder saw them in training: a fresh draw
        with isolated_rng(job.settings["random_state"]):
            codes["train"] = encode_rows(vae, data.prepare(data.training_batch(rows["train"])))
    seed = job.settings["random_state"] + job.seed
    ladder = climb(
        codes["train"],
        codes["validation"],
        codes["selection"],
        vae.prior,
        rungs=(*methods.LADDER, *job.settings.get("rungs", ())),
        random_state=seed,
    )
    n_base = sum(p.numel() for p in vae.parameters())
    proposal = propose(vae, data, rows, job)  # every rung scores the same encoder and decoder
    results: dict[str, Any] = {}
    for rung in ladder.rungs:
        vae.prior = rung.prior
        key = f"{rung.name}@standard"
        saving.save_component(rung.prior, folder / rung.name, overwrite=True)
        results[key] = {
            "fit_seconds": rung.seconds,
            "weight": rung.weight,
            "prior_gap": rung.gap.value,
            "n_parameters": n_base + rung.prior.n_parameters,
            "network_calls": rung.prior.network_calls,
        } | score(vae, proposal, data, rows, job, folder, key, {"prior_gap": torch.as_tensor(rung.per_row)})
    return results


def propose(vae: VAEModule, data: PreparedData, rows: Mapping[str, Tensor], job: Job) -> Proposal:
    """Where importance samples of any row are drawn from, before each row gets its own: fitted on training rows."""
    seed = job.settings["random_state"]
    batch = data.scoring_batch(some(rows["train"], MAX_PROPOSAL, seed))
    return fit_proposal(vae, batch, max_steps=PROPOSAL_STEPS, random_state=seed)


def score(
    vae: VAEModule,
    proposal: Proposal,
    data: PreparedData,
    rows: Mapping[str, Tensor],
    job: Job,
    folder: Path,
    key: str,
    per_row: Mapping[str, Tensor] | None = None,
) -> dict[str, Any]:
    """log p(x), ELBO terms and unit statistics on the selection and the test rows; per-row numbers go to a file.

    Where importance weights fail, some rows are annealed: `annealed_where_needed`.
    """
    seed = job.settings["random_state"]
    arrays: dict[str, Tensor] = dict(per_row or {})
    facts: dict[str, Any] = {}
    for split in ("selection", "test"):
        batch = data.scoring_batch(rows[split])
        scored = log_likelihood(
            vae,
            batch,
            n_importance_samples=job.settings["n_importance_samples"],
            proposal=proposal,
            random_state=seed,
            refinement_steps=REFINEMENT_STEPS,
        )
        believed = annealed_where_needed(vae, batch, scored, proposal=proposal, random_state=seed)
        terms = elbo_terms(vae, batch, random_state=seed)
        arrays[f"{split}_log_px"] = torch.as_tensor(believed.values)
        arrays[f"{split}_elbo"] = torch.as_tensor(terms.elbo_per_row)
        facts |= {
            f"{split}_unreliable": believed.unreliable,
            f"{split}_annealed": believed.n_annealed,
            f"{split}_correction": believed.correction,
            f"{split}_ess": float(np.median(scored.effective_sample_size)),
            f"{split}_doubling": scored.doubling,
            f"{split}_kl": terms.kl.value,
        }
    units = active_units(encode_rows(vae, data.scoring_batch(rows["selection"])))
    arrays |= {"unit_kl": torch.as_tensor(units.kl), "unit_std": torch.as_tensor(units.std)}
    facts["active_units"] = int(units)
    saving.save_tensors(folder / f"{key}.safetensors", {name: value.double() for name, value in arrays.items()}, {})
    start = time.perf_counter()
    with torch.no_grad():
        vae.sample(1_000, generator=torch.Generator().manual_seed(seed))
    facts["sample_ms"] = 1e3 * (time.perf_counter() - start)
    return facts
