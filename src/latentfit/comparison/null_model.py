"""What is known of the N(0, I) model before any other is trained: the findings, in the order of the diagnosis."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from latentfit import methods
from latentfit.comparison.found import Found
from latentfit.comparison.paired import paired_gain
from latentfit.comparison.plan import Plan
from latentfit.diagnosis.findings import Finding
from latentfit.diagnosis.verdicts import collapse_finding, holes_finding, inference_finding, prior_finding
from latentfit.evaluation.escalation import GATE_SHARE
from latentfit.evaluation.estimate import Estimate
from latentfit.evaluation.holes import Holes, prior_holes
from latentfit.model import FitOptions, Prior, VAEModule
from latentfit.priors import create
from latentfit.registry import registry
from latentfit.training import SETTLED, late_slope

#: rows on which the density that judges holes is fitted
MAX_JUDGE = 5_000
#: the rung that judges holes
JUDGE = "mixture@standard"


@dataclass(frozen=True)
class NullModel:
    """The N(0, I) model, in numbers.

    Attributes:
        prior_gap: T(r) of the best rung, "at least", over seeds and rows; its interval holds for all rungs at once.
        inference_gap: log p(x) - ELBO, nats per row, over seeds and rows.
        share: the prior gap as a share of the mean KL.
        holes: of draws from N(0, I), first seed.
    """

    findings: list[Finding]
    prior_gap: Estimate
    inference_gap: Estimate
    share: float
    holes: Holes


def diagnose(found: Found, recommended: str | None = None) -> NullModel:
    """Training, decoder, collapse, inference gap, prior gap, holes; the last not judged by the recommended prior."""
    groups = found.groups_of("selection")
    gap = certificate(found, groups)
    elbo = np.stack([arrays["selection_elbo"] for arrays in found.arrays["standard"]])
    inference = paired_gain(found.log_px("standard", "selection"), elbo, groups=groups)
    kl = found.mean("standard", "selection_kl")
    share = gap.value / kl if kl else 0.0
    holes = holes_of(found, "standard", recommended)
    findings = [
        _training(found),
        _decoder(found),
        collapse_finding(found.mean("standard", "active_units"), found.plan.settings["model"]["latent_dim"]),
        _inference(found, inference, kl),
        prior_finding(gap, share),
        holes_finding(holes.share, holes.n_rows),
    ]
    return NullModel(findings, gap, inference, share, holes)


def diagnose_folder(folder: Path, plan: Plan) -> list[Finding]:
    """The findings of a run whose N(0, I) models and ladders are done."""
    return diagnose(Found(folder, plan)).findings


def certificate(found: Found, groups: np.ndarray | None = None) -> Estimate:
    """The prior gap of the best rung over seeds and rows; the best of K is reported at level 1 - 0.05 / K."""
    level = 1 - 0.05 / len(found.rungs)
    gaps = []
    for key in found.rungs:
        rows = np.stack([arrays["prior_gap"] for arrays in found.arrays[key]])
        gaps.append(paired_gain(rows, np.zeros_like(rows), groups=groups, level=level))
    best = max(gaps, key=float)
    return Estimate(best.value, best.std_error, best.interval, 0.95)


def holes_of(found: Found, key: str, recommended: str | None = None) -> Holes:
    """Holes of a row's prior, first seed, judged by a density that is not the recommended prior's own.

    On the N(0, I) model's codes, before and after, the judge is the mixture, whatever else wins, so that the share told
    before the ranking is the page's; where the mixture is recommended, it is the best other rung. A jointly trained
    model has codes of its own, and a mixture is fitted to them.
    """
    vae = found.model(key, 0)
    codes = found.codes(vae, "selection")
    if key == "standard" or key.endswith("@standard"):
        others = [rung for rung in found.rungs if rung not in (key, recommended)]
        best = max(others, key=lambda rung: found.mean(rung, "prior_gap"))
        judge = found.model(JUDGE if JUDGE in others else best, 0).prior
    else:
        judge = _judge(found, vae)
    return prior_holes(judge, vae.prior, codes, random_state=found.seed)


def _training(found: Found) -> Finding:
    first = found.facts["standard"][0]
    warmup = methods.get("standard").kl_weight(found.plan.max_steps).settled_at
    slope = late_slope(first["history"], found.plan.max_steps)
    if first["stopped"] == "early" or (slope is not None and slope < SETTLED):
        return Finding("LF-TRAIN-01", "ok", {"step": warmup})
    if slope is None:
        return Finding("LF-TRAIN-01", "know", {"steps": found.plan.max_steps, "variant": "short"})
    return Finding("LF-TRAIN-01", "improve", {"slope": round(slope, 1), "steps": found.plan.max_steps // 5})


def _inference(found: Found, gap: Estimate, kl: float) -> Finding:
    failed = found.mean("standard", "selection_unreliable")
    annealed = all(facts["selection_annealed"] for facts in found.facts["standard"])
    return inference_finding(
        gap,
        kl,
        found.plan.settings["n_importance_samples"],
        "ais" if annealed else "importance sampling",
        failed if failed > GATE_SHARE else 0.0,
    )


def _decoder(found: Found) -> Finding:
    likelihood = registry.build("likelihood", found.data.likelihood)
    scale = getattr(likelihood, "scale", None)
    parameters = {"likelihood": found.data.description}
    if scale is None:
        return Finding("LF-DECODER-01", "ok", parameters)
    if isinstance(scale, str):
        return Finding("LF-DECODER-01", "ok", parameters | {"scale": scale, "variant": "scale"})
    return Finding("LF-DECODER-01", "know", parameters)  # a fixed sigma is the user's word


def _judge(found: Found, vae: VAEModule) -> Prior:
    codes = found.codes(vae, "train", MAX_JUDGE)
    judge = create("mixture", latent_dim=tuple(vae.event_shape), n_components="auto")
    judge.fit_rows(codes.rows(judge), FitOptions(random_state=found.seed))
    return judge.eval()
