"""From the jobs' numbers to the comparison: the ranking and the table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentfit.comparison.found import Found
from latentfit.comparison.jobs import some
from latentfit.comparison.null_model import diagnose, holes_of
from latentfit.comparison.paired import paired_gain
from latentfit.comparison.pictures import draw_pictures
from latentfit.comparison.plan import Plan
from latentfit.comparison.rank import Candidate, Ranking, rank
from latentfit.comparison.result import Comparison, Recommendation, Row, Setting
from latentfit.errors import InputError
from latentfit.evaluation.embedding import knn_hits
from latentfit.evaluation.samples import sample_quality

#: training rows whose codes are the neighbours of the embedding's score
MAX_NEIGHBOURS = 10_000


def gather(folder: Path, plan: Plan, facts: Mapping[str, Any]) -> Comparison:
    """The comparison of a folder's finished jobs; deterministic given them. Test rows choose nothing."""
    found = Found(folder, plan)
    metrics = {split: _metrics(found, split) for split in ("selection", "test")}
    goals = {name: scores for name, scores in metrics["selection"].items() if name != "floor"}
    candidates, groups = _candidates(found, "selection"), found.groups_of("selection")
    ranking = rank(candidates, goal=facts["goal"], metrics=goals, groups=groups)
    in_nats = rank(candidates, groups=groups)
    test = rank(_candidates(found, "test"), groups=found.groups_of("test"))
    ordered = sorted(found.keys, key=lambda key: -_gain(in_nats, key))
    null = diagnose(found, ranking.key)
    after = null.holes if ranking.key == "standard" else holes_of(found, ranking.key)
    return Comparison(
        setting=_setting(found, facts),
        rows=[_row(found, in_nats, key, "selection", metrics["selection"], facts) for key in ordered],
        test_rows=[_row(found, test, key, "test", metrics["test"], facts) for key in ordered],
        recommendation=Recommendation(
            verdict=ranking.verdict,
            goal=facts["goal"],
            key=ranking.key,
            best_key=ranking.best_key,
            gain=in_nats.gains.get(ranking.key),
            test_gain=test.gains.get(ranking.key),
            without_training=ranking.without_training,
            other_goals=ranking.other_goals,
        ),
        findings=null.findings,
        budget={"inference": null.inference_gap, "prior": null.prior_gap},
        prior_gap=null.prior_gap,
        prior_gap_share_of_kl=null.share,
        holes=(float(null.holes.share), float(after.share)),
        reconstruction_floor=float(np.mean(metrics["selection"]["floor"]["standard"])),
        pictures=draw_pictures(found, ordered, ranking.key, (null.holes, after), bool(facts["show_data"])),
    )


def _candidates(found: Found, split: str) -> dict[str, Candidate]:
    base = found.facts["standard"][0]["n_parameters"]
    return {
        key: Candidate(
            values=found.log_px(key, split),
            fitted="post hoc" if key in found.rungs else "jointly",
            added_parameters=found.facts[key][0]["n_parameters"] - base,
            network_calls=found.facts[key][0]["network_calls"],
        )
        for key in found.keys
    }


def _gain(ranking: Ranking, key: str) -> float:
    return ranking.gains[key].value if key in ranking.gains else 0.0


def _row(
    found: Found, ranking: Ranking, key: str, split: str, metrics: Mapping[str, Any], facts: Mapping[str, Any]
) -> Row:
    method = key.split("@")[0]
    own = found.facts[key][0]
    values = found.log_px(key, split)
    return Row(
        key=key,
        method=method,
        fitted="post hoc" if key in found.rungs else "jointly",
        gain=ranking.gains.get(key),
        log_px=paired_gain(values, np.zeros_like(values), groups=found.groups_of(split)),
        kl=found.mean(key, f"{split}_kl"),
        active_units=found.mean(key, "active_units"),
        samples=float(np.mean(metrics["samples"][key])),
        knn=float(np.mean(metrics["embedding"][key])) if "embedding" in metrics else None,
        fit_seconds=found.mean(key, "fit_seconds"),
        sample_ms=found.mean(key, "sample_ms"),
        n_parameters=own["n_parameters"],
        added_parameters=own["n_parameters"] - found.facts["standard"][0]["n_parameters"],
        network_calls=own["network_calls"],
        is_bound=found.data.is_bound,
        reliability=found.mean(key, f"{split}_unreliable"),
        n_annealed=max(facts[f"{split}_annealed"] for facts in found.facts[key]),
        correction=found.mean(key, f"{split}_correction"),
        command=f"{facts['command']} --methods {method}",
        prior=found.model(key).prior.name,
        n_draws=own.get("n_draws", 1),
    )


def _metrics(found: Found, split: str) -> dict[str, dict[str, np.ndarray]]:
    """Sample quality (S, P), its floor (S,) and, with labels, the embedding's k-NN hits (S, R): score -> key -> array.

    One encoder, the first N(0, I) model's, gives the features for all: distances are comparable within a table.
    """
    judge = found.model("standard", 0)
    reference = found.data.scoring_batch(found.rows[split])

    def features(x: Tensor) -> Tensor:
        return judge.encode(x).moments()[0].flatten(1)

    scores: dict[str, dict[str, np.ndarray]] = {"samples": {}, "floor": {}}
    for key in found.keys:
        models = [found.model(key, s) for s in range(found.plan.n_seeds)]
        qualities = [
            sample_quality(vae, reference, random_state=found.seed, features=features, groups=found.groups_of(split))
            for vae in models
        ]
        few = not len(qualities[0].parts)
        scores["samples"][key] = np.array([quality.frechet.value if few else quality.parts for quality in qualities])
        scores["floor"][key] = np.array([quality.floor.value for quality in qualities])
        if found.labels is not None:
            # a fitted prior moves no code
            known = scores.setdefault("embedding", {})
            if key in found.rungs:
                known[key] = known["standard"]
            else:
                known[key] = np.stack([_hits(found, vae, split) for vae in models])
    return scores


def _hits(found: Found, vae: Any, split: str) -> np.ndarray:
    labels = found.labels
    if labels is None:
        raise InputError("The embedding's score needs labels.")
    rows = some(found.rows["train"], MAX_NEIGHBOURS, found.seed)
    train = found.codes(vae, "train", MAX_NEIGHBOURS)
    return knn_hits(train, labels[rows], found.codes(vae, split), labels[found.rows[split]])


def _setting(found: Found, facts: Mapping[str, Any]) -> Setting:
    import platform

    from latentfit import __version__

    plan, data = found.plan, found.data
    recipe = plan.settings["recipe"]
    return Setting(
        data=facts["source"],
        origin=facts["origin"],
        n_rows=facts["n_rows"],
        data_shape=tuple(data.x.shape[1:]),
        splits={name: len(values) for name, values in found.rows.items()},
        likelihood=data.description,
        likelihood_reason=data.reason,
        base_measure=data.measure,
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
        columns=data.units.model_columns,
        label_names=found.label_names,
        n_groups=_count_groups(found),
    )


def _count_groups(found: Found) -> dict[str, int]:
    counted = {split: found.groups_of(split) for split in ("selection", "test")}
    return {split: len(np.unique(groups)) for split, groups in counted.items() if groups is not None}
