"""The report of a retrofit, the page that is forwarded: one offline HTML file."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from latentfit.diagnosis.verdicts import MANY_HOLES
from latentfit.evaluation.estimate import Estimate
from latentfit.evaluation.ladder import NOTHING
from latentfit.report import figures, model_page, parts
from latentfit.report.model_page import Cell, Line, ModelView, finish, ladder_figure, ladder_table
from latentfit.report.retrofit_text import (
    doubts,
    evidence,
    groups_line,
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
from latentfit.report.view import View, arrow, pair, percent, seconds, short
from latentfit.retrofitting import Retrofit, RungRow


def write_retrofit(
    fix: Retrofit, path: str | Path, *, lang: str = "en", title: str | None = None, show_data: bool = False
) -> Path:
    """Write the report of a retrofit into a file, and a card for chat beside it; returns the page's path.

    Args:
        fix: what was fitted and kept.
        path: of the file.
        lang: "en" or "vi".
        title: of the page; the model's name by default.
        show_data: whether the file may contain pictures of the data (reconstructions).

    Raises:
        InputError: an unknown language.
    """
    view = _view(fix, lang, show_data)
    return model_page.write(path, _page(view, fix, title), view, _head(view, fix), _tiles(view, fix))


def render_retrofit(fix: Retrofit, *, lang: str = "en", title: str | None = None, show_data: bool = False) -> str:
    """The report as one HTML document; see `write_retrofit`."""
    return _page(_view(fix, lang, show_data), fix, title)


def _view(fix: Retrofit, lang: str, show_data: bool) -> ModelView:
    return ModelView(fix.setting, fix.ladder, fix.pictures, fix.kept.name if fix.changed else "", lang, show_data)


def _page(view: ModelView, fix: Retrofit, title: str | None) -> str:
    t, s, lang, lines = view.t, fix.setting, view.lang, _lines(view, fix)
    sections: dict[str, Any] = {
        "headline": _head(view, fix),
        "evidence": [verdict(fix, lang), *_without_repeats(fix, lang)],
        "eyebrow": t("report.retrofit.eyebrow", model=s.model, what=what_line(fix, lang)),
        "tiles": _tiles(view, fix),
        "error": _error(view, fix),
        "gains": ladder_figure(view, lines, s.n_selection),
        "table": ladder_table(view, lines, _columns(fix, lines), s.n_selection, samples_foot(fix, lang)),
        "trust": _trust(view, fix),
        "cost": {"title": t("report.retrofit.cost"), "lines": _cost(view, fix)},
        "commands": _commands(view, fix),
    }
    return finish(view, sections, title)


def _head(view: View, fix: Retrofit) -> str:
    if not fix.changed:
        return view.t("report.retrofit.head.nothing")
    key = "report.retrofit.head" if fix.gain.value > 0 else "report.retrofit.head.even"
    said = [view.t(key, name=fix.kept.name, seconds=seconds(fix.kept.fit_seconds), gain=fix.gain)]
    share, after = fix.holes
    if share >= MANY_HOLES and after < share:
        said.append(view.t("report.retrofit.head.holes", share=share, after=after))
    if fix.samples is not None:
        old, new, floor = fix.samples
        if old.value - new.value > math.hypot(old.std_error, new.std_error):
            found = {"before": short(old.value), "after": short(new.value), "floor": short(floor.value)}
            said.append(view.t("report.retrofit.head.samples", **found))
    return " ".join(said)


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


def _lines(view: View, fix: Retrofit) -> list[Line]:
    """The ladder from small to large, the model's own prior first."""
    found = []
    for row in in_order(fix):
        mark = kept_mark(fix, row, view.lang).removeprefix("<-")
        more: dict[str, Cell] = {
            "samples": ("", "") if row.samples is None else (str(row.samples), row.samples.value),
            "holes": ("", "") if row.holes is None else (percent(row.holes), row.holes),
            "sample_ms": (short(row.sample_ms), row.sample_ms),
            "note": (mark, mark),
        }
        gap = None if row.name == NOTHING else row.gap
        found.append(Line(name_of(fix, row, view.lang), gap, row.fit_seconds, row.n_parameters, row.kept, more))
    return found


def _columns(fix: Retrofit, lines: list[Line]) -> list[str]:
    samples, notes = fix.samples is not None, any(line.more["note"][0] for line in lines)
    return [
        *("method", "gap", *["samples"] * samples, "holes", "fit_s", "sample_ms", "parameters"),
        *["note"] * notes,
    ]


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
    items += [("good", line) for line in groups_line(fix, view.lang)]
    items += [("warn", line) for line in doubts(fix, view.lang)]
    return [*items, *(("good", line.sentence(view.lang)) for line in s.understood)]


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


def _own(fix: Retrofit) -> RungRow:
    """The row of the model's own prior."""
    return next(row for row in fix.rows if row.name == NOTHING)
