"""From the jobs' numbers to the comparison: the ranking, the findings, the pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentfit import methods
from latentfit.comparison.jobs import load_data, load_model, load_prior, read_arrays, read_result, some
from latentfit.comparison.plan import Job, Plan, job_folder
from latentfit.comparison.rank import Candidate, Ranking, rank
from latentfit.comparison.result import Comparison, Pictures, Recommendation, Row, Setting
from latentfit.data.prepared import PreparedData
from latentfit.diagnosis.findings import Finding, Status
from latentfit.errors import TrainingError
from latentfit.evaluation.codes import encode_rows
from latentfit.evaluation.estimate import Estimate
from latentfit.evaluation.holes import prior_holes
from latentfit.evaluation.samples import knn_accuracy, sample_quality
from latentfit.model import VAEModule

N_PICTURES = 36
N_MAP = 400
_METRIC_ROWS = 2_000


class Found:
    """The finished jobs of a plan, read once."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder, self.plan = folder, plan
        self.jobs: dict[str, list[Job]] = {}
        self.facts: dict[str, list[dict[str, Any]]] = {}
        self.arrays: dict[str, list[dict[str, np.ndarray]]] = {}
        self.ladders: list[dict[str, Any]] = []
        for job in plan.first + plan.second:
            result = read_result(job_folder(folder, job))
            for key, facts in (result or {}).items():
                if key == "ladder":
                    self.ladders.append(facts)
                    continue
                self.jobs.setdefault(key, []).append(job)
                self.facts.setdefault(key, []).append(facts)
                self.arrays.setdefault(key, []).append(read_arrays(job_folder(folder, job), key))
        # a row whose training failed for some seed has no fair mean
        self.keys = [key for key, facts in self.facts.items() if len(facts) == plan.n_seeds]
        if "standard" not in self.keys:
            raise TrainingError("The N(0, I) model could not be trained, so there is nothing to compare with.")

    def mean(self, key: str, fact: str) -> float:
        """Mean over seeds of a number."""
        return float(np.mean([facts[fact] for facts in self.facts[key]]))

    def log_px(self, key: str, split: str) -> np.ndarray:
        """(S, R) log p(x) of a row on a split."""
        return np.stack([arrays[f"{split}_log_px"] for arrays in self.arrays[key]])

    def model(self, key: str, seed: int = 0) -> VAEModule:
        """The VAE of a row; a post hoc row's is the N(0, I) model with the fitted prior in place."""
        job = self.jobs[key][seed]
        if job.kind == "joint":
            return load_model(self.folder, job)
        vae = load_model(self.folder, self.jobs["standard"][seed])
        vae.prior = load_prior(self.folder, job, key.split("@")[0])
        return vae


def gather(folder: Path, plan: Plan, facts: Mapping[str, Any]) -> Comparison:
    """The comparison of a folder's finished jobs; deterministic given them."""
    found = Found(folder, plan)
    data, rows, labels = load_data(str(folder))
    metrics = _metrics(found, data, rows, labels)
    candidates = {key: _candidate(found, key, "selection") for key in found.keys}
    goals = {name: scores for name, scores in metrics.items() if name != "floor"}
    ranking = rank(candidates, goal=facts["goal"], metrics=goals)
    test = rank({key: _candidate(found, key, "test") for key in found.keys})
    ordered = sorted(found.keys, key=lambda key: -_gain(ranking, key))
    table = [_row(found, ranking, key, "selection", metrics, facts) for key in ordered]
    test_table = [_row(found, test, key, "test", metrics, facts) for key in ordered]
    null = diagnose(found, data, rows)
    holes, densities = _holes(found, data, rows, ranking.key)
    test_gain = test.gains.get(ranking.key)
    return Comparison(
        setting=_setting(plan, data, rows, facts),
        rows=table,
        test_rows=test_table,
        recommendation=Recommendation(
            verdict=ranking.verdict,
            goal=facts["goal"],
            key=ranking.key,
            best_key=ranking.best_key,
            gain=ranking.gains.get(ranking.key),
            test_gain=test_gain,
            without_training=ranking.without_training,
            other_goals=ranking.other_goals,
        ),
        findings=null.findings,
        budget={"inference": null.inference_gap, "prior": null.prior_gap},
        prior_gap=null.prior_gap,
        prior_gap_share_of_kl=null.share,
        holes=holes,
        reconstruction_floor=float(np.mean(metrics["floor"]["standard"])),
        pictures=_pictures(found, data, rows, labels, ranking.key, densities, bool(facts["show_data"])),
    )


def _candidate(found: Found, key: str, split: str) -> Candidate:
    base = found.facts["standard"][0]["n_parameters"]
    facts = found.facts[key][0]
    return Candidate(
        values=found.log_px(key, split),
        fitted="post hoc" if key.endswith("@standard") else "jointly",
        added_parameters=facts["n_parameters"] - base,
        network_calls=facts["network_calls"],
    )


def _gain(ranking: Ranking, key: str) -> float:
    return ranking.gains[key].value if key in ranking.gains else 0.0


def _row(
    found: Found, ranking: Ranking, key: str, split: str, metrics: Mapping[str, Any], facts: Mapping[str, Any]
) -> Row:
    method = key.split("@")[0]
    values = found.log_px(key, split)
    own = found.facts[key][0]
    failed = found.mean(key, f"{split}_unreliable")
    seconds = found.mean(key, "fit_seconds")
    return Row(
        key=key,
        method=method,
        fitted="post hoc" if key.endswith("@standard") else "jointly",
        gain=ranking.gains.get(key),
        log_px=Estimate.of(values.mean(0)),
        kl=found.mean(key, f"{split}_kl"),
        active_units=found.mean(key, "active_units"),
        samples=float(np.mean(metrics["samples"][key])),
        knn=float(np.mean(metrics["embedding"][key])) if "embedding" in metrics else None,
        fit_seconds=seconds,
        sample_ms=found.mean(key, "sample_ms"),
        n_parameters=own["n_parameters"],
        added_parameters=own["n_parameters"] - found.facts["standard"][0]["n_parameters"],
        network_calls=own["network_calls"],
        is_bound=False,
        reliability=failed,
        command=f"{facts['command']} --methods {method}",
    )


def _metrics(
    found: Found, data: PreparedData, rows: Mapping[str, Tensor], labels: Tensor | None
) -> dict[str, dict[str, list[float]]]:
    """Sample quality and, with labels, the embedding's k-NN accuracy, per row of the table and seed.

    One encoder, the first N(0, I) model's, gives the features for all: distances are comparable within a table.
    """
    judge = found.model("standard", 0)
    reference = data.scoring_batch(some(torch.cat([rows["selection"], rows["test"]]), _METRIC_ROWS, 0))

    def features(x: Tensor) -> Tensor:
        return judge.encode(x).moments()[0].flatten(1)

    metrics: dict[str, dict[str, list[float]]] = {"samples": {}, "floor": {}}
    if labels is not None:
        metrics["embedding"] = {}
    seed = found.plan.settings["random_state"]
    for key in found.keys:
        for s in range(found.plan.n_seeds):
            vae = found.model(key, s)
            quality = sample_quality(vae, reference, n=len(reference), random_state=seed, features=features)
            metrics["samples"].setdefault(key, []).append(quality.frechet.value)
            metrics["floor"].setdefault(key, []).append(quality.floor.value)
            if labels is not None:
                train = some(rows["train"], 5 * _METRIC_ROWS, seed)
                held_out = rows["selection"]
                codes = [encode_rows(vae, data.scoring_batch(part)) for part in (train, held_out)]
                accuracy = float(knn_accuracy(codes[0], labels[train], codes[1], labels[held_out]))
                metrics["embedding"].setdefault(key, []).append(accuracy)
    return metrics


@dataclass(frozen=True)
class NullDiagnosis:
    """What is known of the N(0, I) model before any other is trained."""

    findings: list[Finding]
    prior_gap: Estimate
    inference_gap: Estimate
    #: the prior gap as a share of the mean KL
    share: float


def diagnose(found: Found, data: PreparedData, rows: Mapping[str, Tensor]) -> NullDiagnosis:
    """The findings about the N(0, I) model, in DESIGN's order: training, decoder, collapse, inference, prior, holes."""
    plan = found.plan
    gap = Estimate.from_dict(found.ladders[0]["prior_gap"])
    elbo = np.stack([arrays["selection_elbo"] for arrays in found.arrays["standard"]])
    inference = Estimate.of((found.log_px("standard", "selection") - elbo).mean(0))
    kl = found.mean("standard", "selection_kl")
    share = gap.value / kl if kl else 0.0
    holes = _holes(found, data, rows, "standard")[0][0]
    return NullDiagnosis(_findings(found, plan, data, gap, inference, kl, holes), gap, inference, share)


def diagnose_folder(folder: Path, plan: Plan) -> list[Finding]:
    """The findings about the N(0, I) model of a run whose first jobs are done."""
    data, rows, _ = load_data(str(folder))
    return diagnose(Found(folder, plan), data, rows).findings


def _findings(
    found: Found, plan: Plan, data: PreparedData, gap: Estimate, inference: Estimate, kl: float, holes: float
) -> list[Finding]:
    first = found.facts["standard"][0]
    total = plan.settings["model"]["latent_dim"]
    active = found.mean("standard", "active_units")
    warmup = methods.get("standard").kl_weight(plan.max_steps).settled_at
    slope = late_slope(first["history"], plan.max_steps)
    converged = first["stopped"] == "early" or slope < 0.5
    share = gap.value / kl if kl else 0.0
    scale = data.likelihood["name"] in ("normal", "discretised_logistic")
    # a gap below a tenth of a nat is not worth a larger model, whatever its significance
    proven = gap.interval[0] > 0 and gap.value > 0.1
    grave: Status = "improve" if proven and (gap.value > 0.5 or share > 0.03) else "small"
    return [
        Finding("LF-TRAIN-01", "ok", {"step": warmup})
        if converged
        else Finding("LF-TRAIN-01", "improve", {"slope": round(slope, 1), "steps": plan.max_steps // 5}),
        Finding(
            "LF-DECODER-01",
            "ok",
            {"likelihood": data.description, "scale": "learned", **({"variant": "scale"} if scale else {})},
        ),
        Finding("LF-COLLAPSE-01", "ok" if active > 0.5 * total else "know", {"active": active, "total": total}),
        Finding(
            "LF-INFERENCE-01",
            "ok" if inference.value < max(1.0, 0.1 * kl) else "know",
            {"gap": inference, "k": plan.settings["n_importance_samples"]},
        ),
        Finding("LF-PRIOR-01", grave, {"gap": gap, "share": share})
        if proven
        else Finding("LF-PRIOR-02", "ok", {"gap": gap}),
        Finding("LF-HOLES-01", "ok" if holes < 0.05 else "improve", {"share": holes}),
    ]


def late_slope(history: list[dict[str, float]], max_steps: int) -> float:
    """Nats that the validation still won in the last fifth of the run."""
    points = [(h["step"], h["validation"]) for h in history if h.get("validation") is not None]
    if len(points) < 3:
        return 0.0
    earlier = [value for step, value in points if step <= 0.8 * max_steps]
    return max(0.0, min(earlier, default=points[0][1]) - min(value for _, value in points))


def _holes(
    found: Found, data: PreparedData, rows: Mapping[str, Tensor], key: str
) -> tuple[tuple[float, float], dict[str, np.ndarray]]:
    """Share of prior samples in holes, before and after, by the best fitted density of the N(0, I) model's codes."""
    null = found.model("standard", 0)
    judged = [k for k in found.keys if k.endswith("@standard")]
    seed = found.plan.settings["random_state"]
    best = max(judged, key=lambda k: found.facts[k][0]["prior_gap"]["value"])
    density = found.model(best, 0).prior
    codes = encode_rows(null, data.scoring_batch(rows["selection"]))
    before = prior_holes(density, null.prior, codes, random_state=seed)
    arrays = {"hole_codes": before.log_r_codes, "hole_null": before.log_r_samples}
    if key == "standard":
        return (float(before.share), float(before.share)), arrays
    vae = found.model(key, 0)
    if not key.endswith("@standard"):
        # another encoder has other codes: judge its prior by a density fitted on its own
        own = encode_rows(vae, data.scoring_batch(rows["selection"]))
        after = prior_holes(vae.prior, vae.prior, own, random_state=seed)
        return (float(before.share), float(after.share)), arrays
    after = prior_holes(density, vae.prior, codes, random_state=seed)
    return (float(before.share), float(after.share)), arrays | {"hole_best": after.log_r_samples}


def _pictures(
    found: Found,
    data: PreparedData,
    rows: Mapping[str, Tensor],
    labels: Tensor | None,
    key: str,
    densities: Mapping[str, np.ndarray],
    show_data: bool,
) -> Pictures:
    null, best = found.model("standard", 0), found.model(key, 0)
    seed = found.plan.settings["random_state"]
    test = data.scoring_batch(some(rows["test"], N_PICTURES, seed))
    shown = some(rows["selection"], N_MAP, seed)
    codes = encode_rows(null, data.scoring_batch(shown))

    def draw(vae: VAEModule) -> np.ndarray:
        with torch.no_grad():
            x = vae.sample(N_PICTURES, observation_noise=False, generator=torch.Generator().manual_seed(seed))
        return x.numpy()

    def prior_codes(prior: Any, n: int) -> Tensor:
        with torch.no_grad():
            return prior.sample(n, generator=torch.Generator().manual_seed(seed)).flatten(1)

    z = codes.sample(1, torch.Generator().manual_seed(seed))[0].flatten(1)
    axes = torch.linalg.svd(z - z.mean(0), full_matrices=False).Vh[:2].T  # (D, 2): principal plane of the codes
    # a jointly trained model has other coordinates: its own prior is shown only where the encoder is the same
    shown_prior = best.prior if key.endswith("@standard") else _post_hoc_prior(found)
    with torch.no_grad():
        reconstructions = null.reconstruct(test) if key.endswith("@standard") else best.reconstruct(test)
    return Pictures(
        null_samples=draw(null),
        best_samples=draw(best),
        reconstructions=reconstructions.numpy(),
        originals=test.x.numpy() if show_data else np.empty((0,)),
        unit_kl={k: np.mean([a["unit_kl"] for a in found.arrays[k]], 0) for k in dict.fromkeys(["standard", key])},
        unit_std={k: np.mean([a["unit_std"] for a in found.arrays[k]], 0) for k in dict.fromkeys(["standard", key])},
        curves={
            k: [
                {"step": h["step"], "validation": h["validation"]}
                for h in found.facts[k][0]["history"]
                if h.get("validation") is not None
            ]
            for k in found.keys
            if "history" in found.facts[k][0]
        },
        map_codes=(z @ axes).numpy(),
        map_null=(prior_codes(null.prior, N_MAP) @ axes).numpy(),
        map_best=(prior_codes(shown_prior, N_MAP) @ axes).numpy(),
        map_labels=np.empty(0) if labels is None else labels[shown].numpy(),
        map_images=data.x[shown].numpy() if show_data else np.empty(0),
        map_axes=("1", "2"),
        **densities,
    )


def _post_hoc_prior(found: Found) -> Any:
    """The fitted prior with the largest gap, in the coordinates of the N(0, I) model's codes."""
    judged = [key for key in found.keys if key.endswith("@standard")]
    return found.model(max(judged, key=lambda k: found.facts[k][0]["prior_gap"]["value"]), 0).prior


def _setting(plan: Plan, data: PreparedData, rows: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Setting:
    import platform

    from latentfit import __version__

    recipe = plan.settings["recipe"]
    return Setting(
        data=facts["source"],
        origin=facts["origin"],
        n_rows=facts["n_rows"],
        data_shape=tuple(data.x.shape[1:]),
        splits={name: len(values) for name, values in rows.items()},
        likelihood=data.description,
        likelihood_reason=data.reason,
        base_measure=_measure(data),
        latent_dim=plan.settings["model"]["latent_dim"],
        methods=plan.methods,
        n_seeds=plan.n_seeds,
        max_steps=recipe["max_steps"],
        recipe=(
            f"Adam, {recipe['schedule']} rate up to {recipe['learning_rate']:g}, batches of {recipe['batch_size']}, "
            f"at most {recipe['max_steps']:,} steps, weights averaged ({recipe['ema_decay']:g}), early stopping on the "
            f"validation ELBO; network {plan.settings['model']['network']}"
        ),
        command=facts["command"],
        seconds=facts["seconds"],
        n_importance_samples=plan.settings["n_importance_samples"],
        versions={"latentfit": __version__, "torch": torch.__version__, "python": platform.python_version()},
        fingerprint=plan.settings["data"],
        device=recipe["device"],
        lang=facts["lang"],
        show_data=bool(facts["show_data"]),
    )


def _measure(data: PreparedData) -> str:
    from latentfit.registry import registry

    measure = registry.build("likelihood", data.likelihood).base_measure
    return "probability mass" if measure == "mass" else "density in the units of the data"
