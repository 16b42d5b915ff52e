"""The report of a retrofit, the page that is forwarded: one offline HTML file."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from latentfit.evaluation.estimate import Estimate
from latentfit.evaluation.ladder import NOTHING
from latentfit.report import figures, parts
from latentfit.report.page import render_page, write_page
from latentfit.report.retrofit_text import (
    evidence,
    guard_name,
    guard_text,
    in_order,
    kept_mark,
    name_of,
    samples_foot,
    share_of_kl,
    verdict,
    weights_line,
    what_line,
)
from latentfit.report.view import View, arrow, pair, percent, prior_name, seconds, short
from latentfit.retrofitting import Retrofit, RungRow


def write_retrofit(
    fix: Retrofit, path: str | Path, *, lang: str = "en", title: str | None = None, show_data: bool = False
) -> Path:
    """Write the report of a retrofit into a file, atomically; returns its path.

    Args:
        fix: what was fitted and kept.
        path: of the file.
        lang: "en" or "vi".
        title: of the page; the model's name by default.
        show_data: whether the file may contain pictures of the data (reconstructions).

    Raises:
        InputError: an unknown language.
    """
    return write_page(path, render_retrofit(fix, lang=lang, title=title, show_data=show_data))


def render_retrofit(fix: Retrofit, *, lang: str = "en", title: str | None = None, show_data: bool = False) -> str:
    """The report as one HTML document; see `write_retrofit`."""
    s, shown = fix.setting, fix.pictures
    shots = [shown.get(name, np.empty(0)) for name in ("originals", "reconstructions", "new_samples")]
    p = prior_name(fix.ladder, lang)
    view = View(lang, s.data_shape, show=show_data, shots=shots, changed=fix.changed, p=p)
    t = view.t
    draws = _sheets(view, fix, "map")
    holes = parts.hole_figure(view, shown.get("hole_codes", np.empty(0)), _sheets(view, fix, "hole"))
    codes, labels = shown.get("map_codes", np.empty(0)), shown.get("map_labels")
    sections: dict[str, Any] = {
        "headline": _head(view, fix),
        "evidence": [verdict(fix, lang), *_without_repeats(fix, lang)],
        "eyebrow": t("report.retrofit.eyebrow", model=s.model, what=what_line(fix, lang)),
        "tiles": _tiles(view, fix),
        "see": _see(view, fix),
        "error": _error(view, fix),
        "gains": _ladder(view, fix),
        "table": _table(view, fix),
        "map": parts.code_map(view, codes, draws, labels=labels),
        "holes": holes and {"caption": t("report.holes.caption"), "svg": holes},
        "trust": _trust(view, fix),
        "cost": {"title": t("report.retrofit.cost"), "lines": _cost(view, fix)},
        "commands": _commands(view, fix),
        "glossary": parts.glossary(view),
    }
    facts = [
        t("report.foot.seed", seed=s.random_state),
        t("report.foot.time", seconds=f"{s.seconds:,.0f}", device=s.device),
    ]
    sections["foot"] = parts.foot(view, versions=parts.versions(), facts=facts)
    return render_page(view, sections, title=title, name=s.model)


def _head(view: View, fix: Retrofit) -> str:
    if not fix.changed:
        return view.t("report.retrofit.head.nothing")
    said = {
        "share": fix.holes[0],
        "after": fix.holes[1],
        "name": fix.kept.name,
        "seconds": seconds(fix.kept.fit_seconds),
    }
    if fix.samples is None or fix.samples[1].value >= fix.samples[0].value:
        return view.t("report.retrofit.head", gain=fix.gain, **said)
    before, after, floor = (short(part.value) for part in fix.samples)
    return view.t("report.retrofit.head.samples", before_samples=before, after_samples=after, floor=floor, **said)


def _without_repeats(fix: Retrofit, lang: str) -> list[str]:
    """The evidence that neither head nor tiles say: other data, weights, what to do about the embedding."""
    return evidence(fix, lang)[3 if fix.changed and fix.log_px_gain is not None else 2 if fix.changed else 0 :]


def _tiles(view: View, fix: Retrofit) -> list[dict[str, str]]:
    t, kept = view.t, fix.kept
    label = t("report.retrofit.tile.gap" if fix.changed else "report.retrofit.tile.gap.nothing")
    gap = parts.gap_tile(view, fix.gain, label, share_of_kl(fix), fix.kl.value)
    if not fix.changed:
        gap |= {"value": "0", "note": ""}
    holes = arrow(percent(fix.holes[0]), percent(fix.holes[1]), fix.changed)
    note = t("report.tile.holes.note" if fix.changed else "report.tile.holes.note.same")
    tiles = [gap, {"value": holes, "label": t("report.tile.holes"), "note": note}]
    if fix.samples is not None:
        before, after, floor = (short(part.value) for part in fix.samples)
        note = t("report.retrofit.tile.samples.note", floor=floor)
        tiles.append({"value": arrow(before, after, fix.changed), "label": t("report.tile.samples"), "note": note})
    if not fix.changed:
        value = t("word.seconds", seconds=0)
        return [*tiles, {"value": value, "label": t("report.tile.cost.none"), "note": ""}]
    times = {"ms": short(kept.sample_ms), "null_ms": short(_own(fix).sample_ms)}
    note = t("report.retrofit.tile.cost.note", n=kept.n_parameters, **times)
    value = t("word.seconds", seconds=seconds(kept.fit_seconds))
    return [*tiles, {"value": value, "label": t("report.tile.cost.post hoc"), "note": note}]


def _see(view: View, fix: Retrofit) -> dict[str, Any] | None:
    t, shown = view.t, fix.pictures
    sheets = [
        (shown.get("null_samples", np.empty(0)), "null", t("report.retrofit.see.null")),
        (shown.get("new_samples", np.empty(0)), "best", t("report.retrofit.see.new", name=fix.kept.name)),
    ]
    rebuilt = shown.get("reconstructions", np.empty(0))
    if view.image:
        rows = [(rebuilt, "mute", t("report.see.reconstructions"))]
        found = parts.grids(view, sheets if fix.changed else sheets[:1], rows, "report.see.caption")
        if found is not None:
            n = min(parts.MAX_GRID, len(sheets[0][0]))
            found["caption"] = t("report.retrofit.see.caption", n=n, seed=fix.setting.random_state)
        return found
    n = min(12, math.prod(view.shape))
    return parts.quantiles(view, rebuilt, sheets, t("report.retrofit.see.table", name=fix.kept.name, n=n))


def _error(view: View, fix: Retrofit) -> dict[str, Any] | None:
    """The gain as a part of the KL, in one bar."""
    if not fix.changed or not fix.kl.value > max(fix.gain.value, 0.0):
        return None
    t, rest = view.t, Estimate(fix.kl.value - fix.gain.value, 0.0, (0.0, 0.0))
    bars = [
        (t("report.error.won"), f"{fix.gain} ({percent(share_of_kl(fix))})", fix.gain, "bar-won"),
        (t("report.error.kl"), short(rest.value), rest, "bar-kl"),
    ]
    axis = t("report.error.axis")
    figure = pair(lambda width: figures.budget(bars, axis, width))
    return {"title": t("report.retrofit.error"), "caption": t("report.retrofit.error.caption"), **figure}


def _ladder(view: View, fix: Retrofit) -> dict[str, Any] | None:
    marks = []
    for row in in_order(fix):
        own = row.name == NOTHING
        name, time = name_of(fix, row, view.lang), "" if own else seconds(row.fit_seconds)
        marks.append(figures.Mark(name, "", None if own else row.gap, time, row.kept))
    caption = view.t("report.diagnosis.ladder.caption", n=fix.setting.n_selection)
    axis = view.t("report.diagnosis.ladder.axis")
    found = parts.intervals(view, marks, axis, view.t("report.gain.seconds"), caption)
    return None if found is None else {"title": view.t("report.diagnosis.ladder"), **found}


def _table(view: View, fix: Retrofit) -> dict[str, Any]:
    t, rows = view.t, []
    names = ["method", "gap", *["samples"] * (fix.samples is not None), "holes", "fit_s", "sample_ms", "parameters"]
    names += ["note"] * any(kept_mark(fix, row, view.lang) not in ("", "<-") for row in fix.rows)
    for row in in_order(fix):
        own, mark = row.name == NOTHING, kept_mark(fix, row, view.lang)
        mark = "" if mark == "<-" else mark
        samples, holes = row.samples, row.holes
        cells: dict[str, tuple[str, float | str]] = {
            "method": (name_of(fix, row, view.lang), row.name),
            "gap": ("0" if own else str(row.gap), row.gap.value),
            "samples": ("", "") if samples is None else (str(samples), samples.value),
            "holes": ("", "") if holes is None else (percent(holes), holes),
            "fit_s": ("–" if own else seconds(row.fit_seconds), row.fit_seconds),
            "sample_ms": (short(row.sample_ms), row.sample_ms),
            "parameters": (f"{row.n_parameters:,}", row.n_parameters),
            "note": (mark, mark),
        }
        listed = [(name, *cells[name]) for name in names]
        rows.append({"cells": listed, "chosen": t("column.kept") if row.kept else ""})
    columns = [(name, t("column.rung" if name == "method" else f"column.{name}")) for name in names]
    return {
        "title": t("report.retrofit.table"),
        "caption": t("report.retrofit.table.caption", n=fix.setting.n_selection),
        "columns": columns,
        "sorted": "",
        "rows": rows,
        "test": None,
        "foot": samples_foot(fix, view.lang),
    }


def _trust(view: View, fix: Retrofit) -> list[tuple[str, str]]:
    t, s, items = view.t, fix.setting, []
    if fix.changed:
        selection = fix.kept.gap
        # a gain far below what it was chosen by is the winner's curse at work
        error = math.hypot(selection.std_error, fix.gain.std_error)
        css = "warn" if selection.value - fix.gain.value > 2 * error else "good"
        items.append((css, t("report.retrofit.trust.gain", n=s.n_test, gain=fix.gain, selection=selection)))
    if fix.log_px_gain is not None:
        css = "good" if fix.log_px_gain.interval[1] > 0 else "warn"
        items.append((css, t("report.retrofit.trust.log_px", n=s.n_scored, k=s.k, gain=fix.log_px_gain)))
    for name, (passed, numbers) in fix.guards.items():
        items.append(("good" if passed else "warn", guard_text(name, numbers, view.lang)))
    items.append(("good" if fix.weights_unchanged else "warn", weights_line(fix, view.lang)))
    if not s.separate:
        sizes = {"fit": s.n_fit, "selection": s.n_selection, "test": s.n_test}
        items.append(("warn", t("retrofit.cross", **sizes)))
    return [*items, *(("good", line) for line in s.understood)]


def _cost(view: View, fix: Retrofit) -> list[str]:
    t, s, kept = view.t, fix.setting, fix.kept
    if not fix.changed:
        return [t("report.retrofit.cost.nothing")]
    times = {"seconds": seconds(kept.fit_seconds), "total": f"{s.seconds:,.0f}", "device": s.device}
    latency = {"ms": short(kept.sample_ms), "null_ms": short(_own(fix).sample_ms)}
    lines = [
        t("report.retrofit.cost.fit", name=kept.name, **times),
        t("report.retrofit.cost.size", n=kept.n_parameters, **latency),
    ]
    for row in in_order(fix):
        if row.gap.value > kept.gap.value:
            why = t("report.retrofit.cost.other.kept")
            if row.failed:
                why = t("retrofit.failed", guards=", ".join(guard_name(name, view.lang) for name in row.failed))
            won = Estimate.of(fix.ladder[row.name].per_row - fix.ladder[kept.name].per_row, groups=fix.ladder.groups)
            lines.append(t("report.retrofit.cost.other", name=row.name, difference=won, reason=why))
    return [*lines, t("report.retrofit.cost.jointly")]


def _commands(view: View, fix: Retrofit) -> dict[str, Any] | None:
    """The two lines a service needs, and the one before them."""
    if not fix.changed:
        return None
    t = view.t
    listed = [
        (t("report.retrofit.repeat.save"), 'latentfit.save(fix.prior, "prior/")'),
        (t("report.retrofit.repeat.load"), 'prior = latentfit.priors.load("prior/")'),
        (t("report.retrofit.repeat.draw"), "x = vae.decode(prior.sample(64))"),
    ]
    return {"caption": t("report.retrofit.repeat"), "first": listed, "rest": [], "summary": ""}


def _sheets(view: View, fix: Retrofit, kind: str) -> list[parts.Sheet]:
    """The arrays of draws from the prior before and after, for the map or the holes."""
    sheets = [
        (fix.pictures.get(f"{kind}_null", np.empty(0)), "null", view.t("report.map.before")),
        (fix.pictures.get(f"{kind}_new", np.empty(0)), "best", view.t("report.map.after")),
    ]
    return sheets if fix.changed else sheets[:1]


def _own(fix: Retrofit) -> RungRow:
    """The row of the model's own prior."""
    return next(row for row in fix.rows if row.name == NOTHING)
