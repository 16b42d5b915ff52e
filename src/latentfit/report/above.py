"""The report's first screens: what is recommended, what it looks like, where the error is, which remedy."""

from __future__ import annotations

import math
from typing import Any

from latentfit.report import figures, parts
from latentfit.report.view import ComparisonView, arrow, known, percent, seconds, short


def eyebrow(view: ComparisonView) -> str:
    """The line above the headline: data, rows, latent units, likelihood."""
    s = view.c.setting
    return view.t("report.eyebrow.data", data=s.data, n=s.n_rows, latent_dim=s.latent_dim, likelihood=s.likelihood)


def tiles(view: ComparisonView) -> list[dict[str, str]]:
    """The four numbers: prior gap, holes, samples, cost; one that is not known has no tile."""
    c, t, best, null = view.c, view.t, view.c.recommended, view.c.null
    tiles = [parts.gap_tile(view, c.prior_gap, t("report.tile.gap"), c.prior_gap_share_of_kl, null.kl)]
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
        below = best.samples < c.reconstruction_floor
        note = t("report.tile.samples.note" + below * ".noise", floor=short(c.reconstruction_floor))
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


def see(view: ComparisonView) -> dict[str, Any] | None:
    """Grids of pictures side by side, or, for tables, quantiles by column."""
    p, t, method = view.c.pictures, view.t, view.c.recommended.method
    drawn = "report.see.best" + ".kept" * view.c.recommended.keeps_prior
    sheets = [
        (p.null_samples, "null", t("report.see.null")),
        (p.best_samples, "best", t(drawn, method=method)),
    ]
    if view.image:
        rows = [(p.reconstructions, "mute", t("report.see.reconstructions"))]
        return parts.grids(view, sheets if view.changed else sheets[:1], rows, "report.see.caption")
    # decoder means spread less than data: like is compared with like
    real = p.reconstructions if len(p.reconstructions) else p.originals
    n = min(12, math.prod(view.shape))
    found = parts.quantiles(view, real, sheets, t("report.see.table.caption", method=method, n=n))
    if found is not None and not view.changed:
        found["legend"] = found["legend"][:1]
    return found


def error(view: ComparisonView) -> dict[str, Any] | None:
    """The error budget as one bar, where it is known."""
    return parts.error_bar(view, view.c.budget, "report.error.caption")


def findings(view: ComparisonView) -> dict[str, Any] | None:
    """The diagnosis, one line per finding."""
    items = parts.finding_items(view, view.c.findings)
    return {"title": view.t("report.diagnosis.title"), "items": items} if items else None


def gains(view: ComparisonView) -> dict[str, Any] | None:
    """The dot-and-interval figure of all rows."""
    key = view.c.recommendation.key
    marks = [
        figures.Mark(r.method, view.t(f"word.{r.fitted}"), r.gain, seconds(r.fit_seconds), r.key == key)
        for r in view.c.rows
    ]
    n = view.c.setting.splits.get("selection", 0)
    caption = view.t("report.gain.caption", n=n)
    found = parts.intervals(view, marks, view.t("report.gain.axis"), view.t("report.gain.seconds"), caption)
    return None if found is None else {"title": view.t("report.gain.title"), **found}
