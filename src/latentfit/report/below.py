"""The report below the fold: leaderboard, map, units, curves, holes, trust, cost, commands, footer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from latentfit.comparison.result import Row
from latentfit.diagnosis.catalogue import clause
from latentfit.evaluation.escalation import GATE_SHARE
from latentfit.report import figures, parts
from latentfit.report.text import aligned
from latentfit.report.verdict import other_goals, row_of, score_of, unreliable
from latentfit.report.view import ComparisonView, estimate, pair, seconds, short

#: fewer selection rows than this and the report says so
FEW_SELECTION_ROWS = 500


def table(view: ComparisonView) -> dict[str, Any]:
    """The leaderboard and the test rows; columns without an entry are left out."""
    c, t = view.c, view.t
    knn = any(r.knn is not None for r in c.rows)
    names = ["method", "fitted", "gain", "log_px", "kl", "units", "samples", *(["knn"] * knn)]
    names += ["fit_s", "sample_ms", "parameters"]
    names += ["bound"] * any(r.is_bound for r in c.rows)
    names += ["note"] * any(r.note or r.n_draws > 1 or r.n_annealed or r.reliability > GATE_SHARE for r in c.rows)
    foot = t(
        "report.table.foot", floor=short(c.reconstruction_floor), measure=clause(c.setting.base_measure, view.lang)
    )
    if knn:
        foot += " " + t("report.table.knn.foot")
    if any(r.reliability > GATE_SHARE for r in c.rows):
        foot += " " + t("report.table.unreliable.foot")
    if any(r.n_annealed for r in c.rows):
        foot += " " + t("report.table.annealed.foot", n=max(r.n_annealed for r in c.rows))
    tested = {"title": t("report.table.test"), "note": t("report.table.test.note")}
    return {
        "title": t("report.table.title"),
        "caption": t("report.table.caption"),
        "columns": [(name, t(f"column.{name}")) for name in names],
        "sorted": "gain",
        "rows": _rows(view, c.rows, names),
        "test": {**tested, "rows": _rows(view, c.test_rows, names)} if c.test_rows else None,
        "foot": foot,
    }


def _rows(view: ComparisonView, rows: Sequence[Row], names: list[str]) -> list[dict[str, Any]]:
    gains = aligned([None if row.gain is None else (row.gain.value, row.gain.std_error) for row in rows])
    return [_cells(view, row, names, gain.strip()) for row, gain in zip(rows, gains, strict=True)]


def _cells(view: ComparisonView, row: Row, names: list[str], gained: str) -> dict[str, Any]:
    notes = [row.note] if row.note else []
    if row.n_draws > 1:
        notes.append(view.t("report.table.draws", n=row.n_draws))
    if row.n_annealed:
        notes.append(view.t("report.table.annealed", nats=row.correction))
    if row.reliability > GATE_SHARE:
        notes.append(view.t("report.table.unreliable", share=row.reliability))
    gain = row.gain
    cells: dict[str, tuple[str, float | str]] = {
        "method": (row.method, row.method),
        "fitted": (view.t(f"word.{row.fitted}"), row.fitted),
        "gain": ("0", 0.0) if gain is None else (gained, gain.value),
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
        "chosen": view.t("report.table.recommended") if row.key == view.c.recommendation.key else "",
    }


def codes_map(view: ComparisonView) -> dict[str, Any] | None:
    """Codes and draws for the interactive map, and its static pictures."""
    p, t = view.c.pictures, view.t
    draws = [(p.map_null, "null", t("report.map.before")), (p.map_best, "best", t("report.map.after"))]
    if not len(p.map_null):
        return None
    shown = draws if view.changed else draws[:1]
    return parts.code_map(view, p.map_codes, shown, labels=p.map_labels, images=p.map_images, axes=p.map_axes)


def units(view: ComparisonView) -> list[tuple[str, str, str]] | None:
    """One figure of units for N(0, I) and one for the recommended row, unless that has the same encoder."""
    p = view.c.pictures
    panels: list[tuple[str, str, str]] = []
    for key, css in (("standard", "null"), (view.c.recommendation.key, "best")):
        row = None if key.endswith("@standard") else row_of(view.c, key)
        kl, std = p.unit_kl.get(key, np.empty(0)), p.unit_std.get(key, np.empty(0))
        if row is None or not len(kl) or len(kl) != len(std) or any(row.method == name for name, _, _ in panels):
            continue
        panels.append((row.method, css, parts.unit_figure(view, kl, std)))
    return panels or None


def curves(view: ComparisonView) -> dict[str, str] | None:
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


def holes(view: ComparisonView) -> str | None:
    """The histogram of log r(z)."""
    p, t = view.c.pictures, view.t
    draws = [(p.hole_null, "null", t("report.map.before")), (p.hole_best, "best", t("report.map.after"))]
    return parts.hole_figure(view, p.hole_codes, draws if view.changed else draws[:1]) if len(p.hole_null) else None


def trust(view: ComparisonView) -> list[tuple[str, str]]:
    """What speaks for the numbers and what against: (good or warn, sentence)."""
    c, t, verdict = view.c, view.t, view.c.recommendation
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
    items.append(_weights(view))
    if c.setting.n_seeds == 1:
        items.append(("warn", t("report.trust.one_seed")))
    else:
        items.append(("good", t("report.trust.seeds", n=c.setting.n_seeds)))
    if 0 < n < FEW_SELECTION_ROWS:
        items.append(("warn", t("report.trust.few", n=n)))
    bounds = sorted({row.method for row in c.rows if row.is_bound})
    if bounds:
        items.append(("warn", t("report.trust.bounds", methods=", ".join(bounds))))
    items.append(("good", t("report.trust.measure", measure=clause(c.setting.base_measure, view.lang))))
    return items


def _weights(view: ComparisonView) -> tuple[str, str]:
    """Whether log p(x) can be believed: the importance weights, or the annealing that stood in for them."""
    best, k = view.c.recommended, view.c.setting.n_importance_samples
    if best.reliability > GATE_SHARE:
        return "warn", view.t("report.trust.unreliable", k=k, share=best.reliability)
    annealed = [row for row in view.c.rows if row.n_annealed]
    if annealed:
        nats = max(abs(row.correction) for row in annealed)
        return "good", view.t("report.trust.annealed", k=k, n=max(row.n_annealed for row in annealed), nats=nats)
    return "good", view.t("report.trust.reliable", k=k, share=best.reliability)


def doubts(view: ComparisonView) -> list[str]:
    """What the reader of the headline must know at once: log p(x) that cannot be believed."""
    return unreliable(view.c, view.lang)


def cost(view: ComparisonView) -> dict[str, Any]:
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
    if without is not None and without.key != best.key:
        goal = c.recommendation.goal
        scores = {"score": score_of(without, goal), "null_score": score_of(null, goal)}
        kind = "report.cost.without" + ("" if goal == "likelihood" else ".score")
        lines.append(t(kind, method=without.method, **scores, seconds=seconds(without.fit_seconds)))
    elif without is None and any(r.fitted == "post hoc" for r in c.rows) and best.fitted == "jointly":
        lines.append(t("report.cost.without.none"))
    if view.changed and best.fitted == "post hoc":
        lines.append(t("report.cost.jointly"))
    if not view.changed:
        lines.append(t("report.cost.keep"))
    return {"title": t("report.cost.title"), "lines": lines + other_goals(c, view.lang)}


def commands(view: ComparisonView) -> dict[str, Any] | None:
    """The whole comparison first, then each row, folded: (name, command)."""
    t = view.t
    rows = [(f"{r.method}, {t(f'word.{r.fitted}')}", r.command) for r in view.c.rows if r.command]
    whole = [(t("report.repeat.all"), view.c.setting.command)] if view.c.setting.command else []
    listed = whole + rows
    if not listed:
        return None
    summary = t("report.repeat.rows", n=len(listed) - 1)
    return {"caption": t("report.repeat.caption"), "first": listed[:1], "rest": listed[1:], "summary": summary}


def foot(view: ComparisonView) -> list[str]:
    """Thumbnails contained, versions, fingerprint, seeds."""
    s, t = view.c.setting, view.t
    seeds = t("report.foot.seeds.one") if s.n_seeds == 1 else t("report.foot.seeds", last=s.n_seeds - 1)
    time = t("report.foot.time", seconds=f"{s.seconds:,.0f}", device=s.device)
    facts = [t("report.foot.fingerprint", fingerprint=s.fingerprint), seeds, time]
    return parts.foot(view, versions=s.versions, facts=facts)
