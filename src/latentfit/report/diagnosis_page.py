"""The report of a diagnosis: one offline HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from latentfit.diagnosis.catalogue import finding_change, finding_name, finding_price, finding_remedy
from latentfit.diagnosis.result import Diagnosis
from latentfit.evaluation.ladder import NOTHING
from latentfit.report import figures, model_page, parts
from latentfit.report.diagnosis_text import (
    RETROFITTED,
    advice,
    gain_text,
    head_sentence,
    measured,
    missing,
    retrofit_call,
    rows_line,
    what_line,
    words_of,
)
from latentfit.report.model_page import Line, ModelView, finish, ladder_figure, ladder_table
from latentfit.report.view import View, known, percent

#: fewer test rows than this and the report says so
FEW_ROWS = 500


def write_diagnosis(
    dx: Diagnosis, path: str | Path, *, lang: str = "en", title: str | None = None, show_data: bool = False
) -> Path:
    """Write the report of a diagnosis into a file, and a card for chat beside it; returns the page's path.

    Args:
        dx: what was found.
        path: of the file.
        lang: "en" or "vi".
        title: of the page; the model's name by default.
        show_data: whether the file may contain pictures of the data.

    Raises:
        InputError: an unknown language.
    """
    view = _view(dx, lang, show_data)
    return model_page.write(path, _page(view, dx, title), view, head_sentence(dx, lang), _tiles(view, dx))


def render_diagnosis(dx: Diagnosis, *, lang: str = "en", title: str | None = None, show_data: bool = False) -> str:
    """The report as one HTML document; see `write_diagnosis`."""
    return _page(_view(dx, lang, show_data), dx, title)


def _view(dx: Diagnosis, lang: str, show_data: bool) -> ModelView:
    chosen = dx.ladder.chosen
    new = "" if chosen is dx.ladder.nothing else chosen.name
    return ModelView(dx.setting, dx.ladder, dx.pictures, new, lang, show_data)


def _page(view: ModelView, dx: Diagnosis, title: str | None) -> str:
    t, lang = view.t, view.lang
    budget = {} if dx.budget is None else {**dx.budget.parts, "rest": dx.budget.rest}
    lines = _lines(view, dx)
    sections: dict[str, Any] = {
        "headline": head_sentence(dx, lang),
        "evidence": [_sentence(line) for line in (*rows_line(dx, lang), *measured(dx, lang))],
        "eyebrow": t("report.diagnosis.eyebrow", model=dx.setting.model, what=what_line(dx, lang)),
        "tiles": _tiles(view, dx),
        "error": parts.error_bar(view, budget, "report.diagnosis.error"),
        "findings": {"title": t("report.diagnosis.findings"), "items": parts.finding_items(view, dx.findings)},
        "gains": ladder_figure(view, lines, dx.setting.n_test),
        "table": ladder_table(view, lines, ("method", "gap", "fit_s", "parameters"), dx.setting.n_test),
        "groups": _groups(view, dx),
        "trust": _trust(view, dx),
        "cost": {"title": t("report.diagnosis.cost"), "lines": _cost(view, dx)},
        "commands": _commands(view, dx),
    }
    return finish(view, sections, title)


def _sentence(line: str) -> str:
    """A line of the terminal as a sentence."""
    return line[:1].upper() + line[1:].rstrip(".") + "."


def _tiles(view: View, dx: Diagnosis) -> list[dict[str, str]]:
    t = view.t
    tiles = [parts.gap_tile(view, dx.prior_gap, t("report.diagnosis.tile.gap"), dx.share_of_kl, dx.kl.value)]
    if dx.inference_gap is not None and known(dx.inference_gap.value):
        value, unit = str(dx.inference_gap), t("report.tile.gap.unit")
        note = t("report.diagnosis.tile.inference.note", n=dx.setting.n_scored)
        label = t("report.diagnosis.tile.inference")
        tiles.append({"value": value, "label": f"{unit}, {label}", "note": note})
    if dx.holes is not None:
        share = percent(float(dx.holes.share))
        tiles.append({"value": share, "label": t("report.tile.holes"), "note": t("report.tile.holes.note.same")})
    note = "" if dx.dimension is None else t("report.diagnosis.tile.units.note", dimension=dx.dimension)
    units = f"{int(dx.active_units)} / {dx.active_units.total}"
    return [*tiles, {"value": units, "label": t("report.diagnosis.tile.units"), "note": note}]


def _lines(view: View, dx: Diagnosis) -> list[Line]:
    """The ladder from small to large, the model's own prior first."""
    return [
        Line(
            view.words["p"] if rung.name == NOTHING else rung.name,
            None if rung.name == NOTHING else rung.gap,
            rung.seconds,
            rung.n_parameters,
            rung is dx.ladder.chosen,
        )
        for rung in dx.ladder.candidates
    ]


def _groups(view: View, dx: Diagnosis) -> dict[str, Any] | None:
    table = sorted(dx.gap_by_group.items(), key=lambda item: -item[1][1].value)
    marks = [figures.Mark(str(name), "", gap, f"{n:,}") for name, (n, gap) in table[:30]]
    caption = view.t("report.diagnosis.groups.caption")
    found = parts.intervals(view, marks, view.t("report.model.ladder.axis"), view.words["units"], caption)
    return None if found is None else {"title": view.t("report.diagnosis.groups"), **found}


def _trust(view: View, dx: Diagnosis) -> list[tuple[str, str]]:
    t, s = view.t, dx.setting
    low, high = (f"{v:.2f}" for v in dx.prior_gap.interval)
    items = [("good", t("report.diagnosis.trust.gap", low=low, high=high, n=len(dx.ladder.rungs)))]
    if not s.separate:
        items.append(("warn", t("report.diagnosis.trust.cross")))
    if s.n_draws > 1:
        items.append(("warn", t("diagnosis.centre", n=s.n_draws)))
    if dx.simulated_error is not None:
        items.append(("good", t("report.diagnosis.trust.simulated", error=dx.simulated_error)))
    if s.depth == "quick":
        items.append(("warn", t("report.diagnosis.trust.quick")))
    if 0 < s.n_test < FEW_ROWS:
        items.append(("warn", t("report.diagnosis.trust.few", n=s.n_test)))
    items += [("warn", line) for line in missing(dx, view.lang)]
    return [*items, *(("good", line.sentence(view.lang)) for line in s.understood)]


def _cost(view: View, dx: Diagnosis) -> list[str]:
    """Of every finding that asks for something: remedy, price, gain, what would change it."""
    t, lang, words, lines = view.t, view.lang, words_of(dx, view.lang), []
    for finding in sorted((f for f in dx.findings if f.grave), key=lambda f: f is not dx.first):
        price = finding_price(finding, lang, **words)
        change = finding_change(finding, lang, **words)
        said = [
            f"{finding_name(finding, lang).capitalize()}. {finding_remedy(finding, lang, **words)}",
            t("report.diagnosis.cost.price", price=price),
            t("report.diagnosis.cost.gain", gain=gain_text(dx, finding, lang)),
            t("report.diagnosis.cost.change", change=change),
        ]
        lines.append(" ".join(said))
    if not lines:
        lines = [t("report.diagnosis.cost.change", change=text) for _, text in advice(dx, lang)]
    return lines


def _commands(view: View, dx: Diagnosis) -> dict[str, Any]:
    s, t = dx.setting, view.t
    given = ", X_train=X_train" if s.separate else ""
    options = f'goal="{s.goal}", depth="{s.depth}", random_state={s.random_state}'
    listed = [(t("report.diagnosis.repeat.again"), f"latentfit.diagnose(model, X_test{given}, {options})")]
    if dx.first is not None and dx.first.code in RETROFITTED:
        listed.insert(0, (t("report.diagnosis.repeat.next"), retrofit_call(dx, RETROFITTED[dx.first.code])))
    return {"caption": t("report.diagnosis.repeat"), "first": listed, "rest": [], "summary": ""}
