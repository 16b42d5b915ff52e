"""What a finished comparison leaves in its folder for people: table, report, recommended model."""

from __future__ import annotations

from pathlib import Path

from latentfit import saving
from latentfit.comparison.found import Found
from latentfit.comparison.plan import Plan
from latentfit.comparison.result import Comparison
from latentfit.report.card import card
from latentfit.report.html import report_png, write


def finish(comparison: Comparison, folder: str | Path, lang: str | None = None) -> None:
    """Write `leaderboard.csv`, `best/`, `report.html` and `report.png` into a run's folder.

    `best/` is the recommended row's model of the first seed; for a post hoc row the N(0, I) model with the
    fitted prior in place.

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
    plan = Plan.from_json(saving.read_json(folder / "plan.json")["plan"])
    row, setting = comparison.recommended, comparison.setting
    vae = Found(folder, plan).model(row.key)
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
    extra = {"method": row.method, "fitted": row.fitted}
    saving.save_component(vae, folder / "best", overwrite=True, card=text, extra=extra)
