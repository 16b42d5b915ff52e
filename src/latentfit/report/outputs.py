"""What a finished comparison leaves in its folder for people: table, report, recommended model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from latentfit import saving
from latentfit.comparison.found import Found
from latentfit.comparison.plan import Plan
from latentfit.comparison.result import Comparison, Row
from latentfit.model.stored import ESTIMATOR, estimator_entry
from latentfit.report.card import card
from latentfit.report.html import report_png, write


def finish(comparison: Comparison, folder: str | Path, lang: str | None = None) -> None:
    """Write `leaderboard.csv`, `best/`, `report.html` and `report.png` into a run's folder.

    `best/` is the recommended row's model of the first seed; for a post hoc row the N(0, I) model with the
    fitted prior in place. `lf.load` gives it as a fitted `lf.VAE`, in the units of the user's rows.

    Raises:
        SavedFileError: a job's model is damaged, or the folder cannot be written.
    """
    folder = Path(folder)
    lang = lang or comparison.setting.lang
    table = comparison.leaderboard.to_csv(index=False, lineterminator="\n")
    saving.write_atomic(folder / "leaderboard.csv", table)
    save_best(comparison, folder)
    write_report(comparison, folder, lang)


def write_report(comparison: Comparison, folder: str | Path, lang: str, title: str | None = None) -> Path:
    """Write `report.html` and `report.png`; returns the page's path."""
    folder = Path(folder)
    report_png(comparison, folder / "report.png", lang=lang)
    return write(comparison, folder / "report.html", lang=lang, title=title)


def save_best(comparison: Comparison, folder: Path) -> None:
    """Save the recommended model as `best/`, with a card that says where it comes from."""
    held = saving.read_json(folder / "plan.json")
    plan = Plan.from_json(held["plan"])
    row, setting = comparison.recommended, comparison.setting
    found = Found(folder, plan)
    vae = found.model(row.key)
    facts = {
        "kind": "vae",
        "path": (folder / "best").as_posix(),
        "data": setting.data,
        "fingerprint": setting.fingerprint,
        "likelihood": setting.likelihood,
        "base_measure": setting.base_measure,
        "latent_dim": setting.latent_dim,
        "n_rows": setting.splits.get("train"),
        "seed": plan.settings["random_state"],
        "command": setting.command,
        "versions": setting.versions,
        "log_px": row.log_px,
        "gain": row.gain,
        "kl": row.kl,
        "active_units": row.active_units,
        "n_parameters": row.n_parameters,
    }
    text = card({"family": vae.family, **vae.config(), "name": f"{row.method}, {row.fitted}"}, facts)
    extra: dict[str, Any] = {"method": row.method, "fitted": row.fitted}
    if not vae.conditional:  # an estimator takes bare rows, without a context
        extra[ESTIMATOR] = _estimator_entry(found, row, held["asked"]["likelihood"])
    saving.save_component(vae, folder / "best", overwrite=True, card=text, extra=extra)


def _estimator_entry(found: Found, row: Row, likelihood: str | dict[str, Any] | None) -> dict[str, Any]:
    """What `lf.VAE` is beside its module, of a row's first seed; `likelihood` as it was asked for."""
    settings, data = found.plan.settings, found.data
    # under a prior fitted post hoc lies the N(0, I) model, and fitting the estimator again trains that
    trained = row.method if row.fitted == "jointly" else "standard"
    facts, seed = found.facts[trained][0], settings["random_state"] + found.jobs[trained][0].seed
    model, recipe = settings["model"], settings["recipe"]
    return estimator_entry(
        params={
            "latent_dim": model["latent_dim"],
            "method": trained,
            "likelihood": data.likelihood["name"] if likelihood is None else likelihood,
            "network": model["network"],
            "network_args": model["network_args"] or None,
            **{key: recipe[key] for key in ("max_steps", "batch_size", "learning_rate", "device", "precision")},
            "n_importance_samples": settings["n_importance_samples"],
            "random_state": seed,
        },
        units=data.units.to_json(),
        likelihood=data.likelihood,
        notes=data.notes,
        feature_names=data.units.columns,
        n_steps=facts["steps"],
        seed=seed,
        history=facts["history"],
        proposal=None,  # the jobs keep none, and each scored row refines the encoder's
    )
