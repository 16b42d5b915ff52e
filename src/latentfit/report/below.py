"""The report below the fold: leaderboard, map, units, curves, holes, trust, cost, commands, footer."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np

from latentfit.comparison.result import Row
from latentfit.diagnosis.catalogue import say
from latentfit.report import figures, pictures
from latentfit.report.verdict import other_goals, row_of
from latentfit.report.view import UNRELIABLE, View, estimate, pair, seconds, short

#: thumbnails in the map's hover, at most
MAX_THUMBNAILS = 400
MAX_CODES = 2000
MAX_DRAWS = 500
#: a unit whose KL is below this many nats carries nothing
COLLAPSED_BELOW = 0.01
#: fewer selection rows than this and the report says so
FEW_SELECTION_ROWS = 500


def table(view: View) -> dict[str, Any]:
    """The leaderboard and the test rows; columns without an entry are left out."""
    c, t = view.c, view.t
    knn = any(r.knn is not None for r in c.rows)
    names = ["method", "fitted", "gain", "log_px", "kl", "units", "samples", *(["knn"] * knn)]
    names += ["fit_s", "sample_ms", "parameters"]
    names += ["bound"] * any(r.is_bound for r in c.rows)
    names += ["note"] * any(r.note or r.reliability > UNRELIABLE for r in c.rows)
    foot = t("report.table.foot", floor=short(c.reconstruction_floor), measure=c.setting.base_measure)
    if any(r.reliability > UNRELIABLE for r in c.rows):
        foot += " " + t("report.table.unreliable.foot")
    return {
        "columns": [(name, t(f"column.{name}")) for name in names],
        "rows": [_cells(view, row, names) for row in c.rows],
        "test_rows": [_cells(view, row, names) for row in c.test_rows],
        "foot": foot,
    }


def _cells(view: View, row: Row, names: list[str]) -> dict[str, Any]:
    notes = [row.note] if row.note else []
    if row.reliability > UNRELIABLE:
        notes.append(view.t("report.table.unreliable", share=row.reliability))
    gain = row.gain
    cells: dict[str, tuple[str, float | str]] = {
        "method": (row.method, row.method),
        "fitted": (view.t(f"word.{row.fitted}"), row.fitted),
        "gain": ("0", 0.0) if gain is None else (say("report.signed", view.lang, gain=gain), gain.value),
        "log_px": (estimate(row.log_px), row.log_px.value),
        "kl": (f"{row.kl:.1f}", row.kl),
        "units": (f"{row.active_units:.3g}", row.active_units),
        "samples": (short(row.samples), row.samples),
        "knn": ("" if row.knn is None else f"{row.knn:.3f}", -1.0 if row.knn is None else row.knn),
        "fit_s": (seconds(row.fit_seconds), row.fit_seconds),
        "sample_ms": (short(row.sample_ms), row.sample_ms),
        "parameters": (f"{row.n_parameters:,}", row.n_parameters),
        "bound": (view.t("report.table.bound") if row.is_bound else "", int(row.is_bound)),
        "note": ("; ".join(notes), "; ".join(notes)),
    }
    return {
        "cells": [(name, *cells[name]) for name in names],
        "recommended": row.key == view.c.recommendation.key,
    }


def codes_map(view: View) -> dict[str, Any] | None:
    """Codes and draws for the interactive map, and its static pictures."""
    p, t = view.c.pictures, view.t
    if not len(p.map_codes) or not len(p.map_null):
        return None
    codes = p.map_codes[:MAX_CODES]
    n = min(MAX_THUMBNAILS, len(p.map_images), len(codes)) if view.show and view.image else 0
    images = pictures.thumbnails(p.map_images[:n], view.scale) if n else []
    view.thumbnails += n
    labels = [str(v) for v in p.map_labels[: len(codes)].tolist()]
    names = sorted(set(labels), key=lambda v: (len(v), v))
    draws = [(p.map_null[:MAX_DRAWS], "null")]
    if view.changed and len(p.map_best):
        draws.append((p.map_best[:MAX_DRAWS], "best"))
    axes = tuple(
        t("report.map.axis", n=axis or i) if not axis or axis.isdigit() else axis
        for i, axis in enumerate(p.map_axes, start=1)
    )
    data = {
        "codes": np.round(codes, 3).tolist(),
        "labels": labels,
        "names": [(name, t("report.map.label", label=name)) for name in names] if len(names) <= 12 else [],
        "draws": [np.round(d, 3).tolist() for d, _ in draws],
        "draw_names": [t("report.map.before"), t("report.map.after")],
        "code_name": t("report.map.codes"),
        "images": images,
        "axes": axes,
    }
    static = [figures.scatter(codes[:700], [(d[:250], css)], axes) for d, css in draws]
    hint = t("report.map.hover") if n else (t("report.map.hidden") if view.image and len(p.map_images) else "")
    return {"data": data, "static": static, "hint": hint}


def units(view: View) -> list[tuple[str, str, str]] | None:
    """One figure of units for N(0, I) and one for the recommended row."""
    p = view.c.pictures
    panels: list[tuple[str, str, str]] = []
    for key, css in (("standard", "null"), (view.c.recommendation.key, "best")):
        row = row_of(view.c, key)
        kl, std = p.unit_kl.get(key, np.empty(0)), p.unit_std.get(key, np.empty(0))
        if row is None or not len(kl) or len(kl) != len(std) or any(row.method == name for name, _, _ in panels):
            continue
        panels.append((row.method, css, figures.units(kl, std, view.t("report.units.axis"), COLLAPSED_BELOW)))
    return panels or None


def curves(view: View) -> dict[str, str] | None:
    """The training curves."""
    series = []
    for key, points in view.c.pictures.curves.items():
        y = np.array([point["validation"] for point in points], dtype=float)
        x = np.array([point["step"] for point in points], dtype=float)
        if len(y) < 2 or not np.isfinite(y).any():
            continue
        css = "best" if key == view.c.recommendation.key else "null" if key == "standard" else "mute"
        series.append((key, x, y, css))
    if not series:
        return None
    return pair(partial(figures.curves, series, view.t("report.curves.x"), view.t("report.curves.y")))


def holes(view: View) -> str | None:
    """The histogram of log r(z)."""
    p = view.c.pictures
    if not len(p.hole_codes) or not len(p.hole_null):
        return None
    sets = [
        (view.t("report.holes.codes"), p.hole_codes, "mute"),
        (view.t("report.map.before"), p.hole_null, "null"),
    ]
    if view.changed and len(p.hole_best):
        sets.append((view.t("report.map.after"), p.hole_best, "best"))
    line = float(np.quantile(p.hole_codes, 0.01))
    return figures.histogram(sets, line, view.t("report.holes.line"), view.t("report.holes.axis"))


def trust(view: View) -> list[tuple[str, str]]:
    """What speaks for the numbers and what against: (good or warn, sentence)."""
    c, t, verdict, best = view.c, view.t, view.c.recommendation, view.c.recommended
    n = c.setting.splits.get("selection", 0)
    items: list[tuple[str, str]] = []
    if verdict.test_gain is not None and verdict.gain is not None:
        # a test gain far below the selection gain is the winner's curse at work
        shortfall = verdict.gain.value - verdict.test_gain.value
        css = "warn" if shortfall > 2 * math.hypot(verdict.gain.std_error, verdict.test_gain.std_error) else "good"
        tested = c.setting.splits.get("test", 0)
        items.append((css, t("report.trust.test", n=tested, test_gain=verdict.test_gain, gain=verdict.gain)))
    items.append(("good", t("report.trust.gap", gap=c.prior_gap)))
    items.append(("good", t("report.trust.paired", n=n)))
    weights = {"k": c.setting.n_importance_samples, "share": best.reliability}
    if best.reliability > UNRELIABLE:
        items.append(("warn", t("report.trust.unreliable", **weights)))
    else:
        items.append(("good", t("report.trust.reliable", **weights)))
    if c.setting.n_seeds == 1:
        items.append(("warn", t("report.trust.one_seed")))
    else:
        items.append(("good", t("report.trust.seeds", n=c.setting.n_seeds)))
    if 0 < n < FEW_SELECTION_ROWS:
        items.append(("warn", t("report.trust.few", n=n)))
    bounds = sorted({row.method for row in c.rows if row.is_bound})
    if bounds:
        items.append(("warn", t("report.trust.bounds", methods=", ".join(bounds))))
    items.append(("good", t("report.trust.measure", measure=c.setting.base_measure)))
    return items


def doubts(view: View) -> list[str]:
    """What the reader of the headline must know at once: importance sampling that failed."""
    best = view.c.recommended
    if best.reliability <= UNRELIABLE:
        return []
    return [view.t("report.trust.unreliable", k=view.c.setting.n_importance_samples, share=best.reliability)]


def cost(view: View) -> list[str]:
    """What the recommended row costs, and what other goals or no retraining would change."""
    c, t, best, null = view.c, view.t, view.c.recommended, view.c.null
    lines = []
    if view.changed:
        key = "report.cost.fit" + ("" if best.fitted == "jointly" else ".post hoc")
        times = {"seconds": seconds(best.fit_seconds), "null_seconds": seconds(null.fit_seconds)}
        lines.append(t(key, method=best.method, **times))
        latency = {"ms": short(best.sample_ms), "null_ms": short(null.sample_ms)}
        lines.append(t("report.cost.size", n=best.n_parameters, added=best.added_parameters, **latency))
    without = row_of(c, c.recommendation.without_training or "")
    if without is not None and without.gain is not None and without.key != best.key:
        lines.append(
            t(
                "report.cost.without",
                method=without.method,
                gain=without.gain,
                seconds=seconds(without.fit_seconds),
            )
        )
    elif without is None and any(r.fitted == "post hoc" for r in c.rows) and best.fitted == "jointly":
        lines.append(t("report.cost.without.none"))
    if view.changed and best.fitted == "post hoc":
        lines.append(t("report.cost.jointly"))
    if not view.changed:
        lines.append(t("report.cost.keep"))
    return lines + other_goals(c, view.lang)


def commands(view: View) -> list[tuple[str, str]]:
    """(name, command): the whole comparison first, then each row."""
    rows = [(f"{r.method}, {view.t(f'word.{r.fitted}')}", r.command) for r in view.c.rows if r.command]
    whole = [(view.t("report.repeat.all"), view.c.setting.command)] if view.c.setting.command else []
    return whole + rows


def foot(view: View) -> list[str]:
    """Thumbnails contained, versions, fingerprint, seeds."""
    s, t = view.c.setting, view.t
    seeds = t("report.foot.seeds.one") if s.n_seeds == 1 else t("report.foot.seeds", last=s.n_seeds - 1)
    return [
        t("report.foot.thumbnails", n=view.thumbnails),
        " · ".join(f"{name} {version}" for name, version in s.versions.items()),
        " · ".join(
            [
                t("report.foot.fingerprint", fingerprint=s.fingerprint),
                seeds,
                t("report.foot.time", seconds=f"{s.seconds:,.0f}", device=s.device),
                t("report.foot.licence"),
            ]
        ),
    ]
