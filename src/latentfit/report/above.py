"""The report's first screens: what is recommended, what it looks like, where the error is, which remedy."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from latentfit.diagnosis.catalogue import finding_name, finding_remedy, finding_sentence
from latentfit.errors import InputError
from latentfit.report import figures, pictures
from latentfit.report.view import View, arrow, known, pair, percent, seconds, short


def eyebrow(view: View) -> str:
    """The line above the headline: data, rows, latent units, likelihood."""
    s = view.c.setting
    return view.t("report.eyebrow.data", data=s.data, n=s.n_rows, latent_dim=s.latent_dim, likelihood=s.likelihood)


def tiles(view: View) -> list[dict[str, str]]:
    """The four numbers: prior gap, holes, samples, cost; one that is not known has no tile."""
    c, t, best, null = view.c, view.t, view.c.recommended, view.c.null
    bits = c.prior_gap.value / (math.prod(c.setting.data_shape) * math.log(2.0))
    tiles = [
        {
            "value": t("report.tile.gap.value", gap=c.prior_gap),
            "unit": t("report.tile.gap.unit"),
            "label": t("report.tile.gap"),
            "note": t(
                "report.tile.gap.note",
                share=c.prior_gap_share_of_kl,
                kl=f"{null.kl:.1f}",
                bits=f"{bits:.2g}",
            ),
        }
    ]
    if known(*c.holes):
        value = arrow(percent(c.holes[0]), percent(c.holes[1]), view.changed)
        tiles.append(
            {
                "value": value,
                "label": t("report.tile.holes"),
                "note": t("report.tile.holes.note" if view.changed else "report.tile.holes.note.same"),
            }
        )
    if known(null.samples, best.samples):
        value = arrow(short(null.samples), short(best.samples), view.changed)
        note = t("report.tile.samples.note", floor=short(c.reconstruction_floor))
        tiles.append({"value": value, "label": t("report.tile.samples"), "note": note})
    if not view.changed:
        return [*tiles, {"value": "0 s", "label": t("report.tile.cost.none"), "note": ""}]
    cost = "report.tile.cost" + ("" if best.fitted == "jointly" else ".post hoc")
    tiles.append(
        {
            "value": t("word.seconds", seconds=seconds(best.fit_seconds)),
            "label": t(cost),
            "note": t(
                "report.tile.cost.note",
                added=best.added_parameters,
                ms=short(best.sample_ms),
                null_ms=short(null.sample_ms),
            ),
        }
    )
    return tiles


def see(view: View) -> dict[str, Any] | None:
    """Grids of pictures side by side, or, for tables, quantiles by column."""
    p, t, method = view.c.pictures, view.t, view.c.recommended.method
    if not len(p.null_samples):
        return None
    if not view.image:
        return _columns(view)
    sheets = [(t("report.see.null"), "null", p.null_samples)]
    if view.changed and len(p.best_samples):
        sheets.append((t("report.see.best", method=method), "best", p.best_samples))
    panels = [(label, css, pictures.data_uri(pictures.grid_png(a, view.scale))) for label, css, a in sheets]
    if len(p.reconstructions):
        uri = ""
        if view.show:
            uri = pictures.data_uri(pictures.grid_png(p.reconstructions, view.scale))
            view.thumbnails += min(36, len(p.reconstructions))
        panels.append((t("report.see.reconstructions"), "mute", uri))
    n = min(36, len(p.null_samples))
    pixelated = max(p.null_samples.shape[1:]) <= 32
    return {"panels": panels, "caption": t("report.see.caption", n=n), "pixelated": pixelated}


def _columns(view: View) -> dict[str, Any] | None:
    p, t = view.c.pictures, view.t
    # decoder means spread less than data: like is compared with like
    real = p.reconstructions if len(p.reconstructions) else p.originals
    if not len(real) or not len(p.best_samples):
        return None
    real, null, best = (a.reshape(len(a), -1) for a in (real, p.null_samples, p.best_samples))
    n = min(12, real.shape[1])
    panels = [
        figures.quantile_panel(t("report.see.column", n=j + 1), real[:, j], null[:, j], best[:, j]) for j in range(n)
    ]
    caption = t("report.see.table.caption", method=view.c.recommended.method, n=n)
    legend = [
        ("null", t("report.see.null")),
        ("best", t("report.see.best", method=view.c.recommended.method)),
    ]
    return {"columns": panels, "caption": caption, "legend": legend if view.changed else legend[:1]}


def error(view: View) -> dict[str, Any] | None:
    """The bars of the error budget, where it is known."""
    parts = []
    for name, css in (("decoder", "bar-decoder"), ("inference", "bar-inference"), ("prior", "bar-prior")):
        estimate = view.c.budget.get(name)
        if estimate is not None and math.isfinite(estimate.value):
            value = view.t("report.error.at_least", gap=estimate) if name == "prior" else str(estimate)
            parts.append((view.t(f"report.error.{name}"), value, estimate, css))
    if not parts:
        return None
    draw = partial(figures.budget, parts, view.t("report.error.axis"))
    return {"caption": view.t("report.error.caption"), **pair(draw)}


def findings(view: View) -> list[dict[str, str]]:
    """The diagnosis, one line per finding."""
    found = []
    for finding in view.c.findings:
        given = type(finding)(finding.code, finding.status, {"unit": view.words["unit"], **finding.parameters})
        try:
            name, text = finding_name(given, view.lang), finding_sentence(given, view.lang)
            remedy = finding_remedy(given, view.lang)
        except InputError:
            # a finding that the catalogue cannot say must not cost the reader the whole report
            name, remedy = finding.code, ""
            text = ", ".join(f"{key} = {value}" for key, value in finding.parameters.items())
        status = {"css": finding.status, "status": view.t(f"status.{finding.status}")}
        found.append({"code": finding.code, "name": name, "text": text, "remedy": remedy, **status})
    return found


def gains(view: View) -> dict[str, Any] | None:
    """The dot-and-interval figure of all rows."""
    if len(view.c.rows) < 2:
        return None
    key = view.c.recommendation.key
    marks = [
        figures.Mark(r.method, view.t(f"word.{r.fitted}"), r.gain, r.fit_seconds, r.key == key) for r in view.c.rows
    ]
    draw = partial(figures.gains, marks, view.t("report.gain.axis"), view.t("report.gain.seconds"))
    n = view.c.setting.splits.get("selection", 0)
    return {"caption": view.t("report.gain.caption", n=n), **pair(draw)}
