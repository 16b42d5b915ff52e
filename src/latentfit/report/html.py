"""The report: one offline HTML file, complete without JavaScript on its first screens."""

from __future__ import annotations

from pathlib import Path

from latentfit.comparison.result import Comparison
from latentfit.report import above, below, parts, pictures
from latentfit.report.page import render_page, write_page
from latentfit.report.verdict import evidence, headline
from latentfit.report.view import ComparisonView, known, percent, short
from latentfit.saving import write_atomic


def render(comparison: Comparison, *, lang: str = "en", title: str | None = None, show_data: bool | None = None) -> str:
    """The report as one HTML document of at most about 8 MB that loads nothing from anywhere.

    Args:
        comparison: what was found.
        lang: "en" or "vi".
        title: of the page; the data's name by default.
        show_data: whether the file may contain pictures of the data (reconstructions, thumbnails in the map);
            None takes `comparison.setting.show_data`.

    Raises:
        InputError: an unknown language.
    """
    show = comparison.setting.show_data if show_data is None else show_data
    view = ComparisonView(comparison, lang, show)
    marks = below.units(view)
    figure = below.holes(view)
    sections = {
        "headline": headline(comparison, lang),
        "evidence": evidence(comparison, lang) + below.doubts(view),
        "eyebrow": above.eyebrow(view),
        "tiles": above.tiles(view),
        "see": above.see(view),
        "error": above.error(view),
        "findings": above.findings(view),
        "gains": above.gains(view),
        "table": below.table(view),
        "clusters": parts.cluster_section(view, comparison.pictures),
        "weights": parts.weight_section(view, comparison.pictures),
        "map": below.codes_map(view),
        "units": marks and {"caption": view.t("report.units.caption"), "panels": marks},
        "curves": below.curves(view),
        "holes": figure and {"caption": view.t("report.holes.caption"), "svg": figure},
        "trust": below.trust(view),
        "cost": below.cost(view),
        "commands": below.commands(view),
        "glossary": parts.glossary(view),
    }
    sections["foot"] = below.foot(view)  # after all others: it counts the thumbnails they put in
    return render_page(view, sections, title=title, name=comparison.setting.data)


def write(
    comparison: Comparison,
    path: str | Path,
    *,
    lang: str = "en",
    title: str | None = None,
    show_data: bool | None = None,
) -> Path:
    """Render the report into a file, atomically; the file is either the old one or the whole new one."""
    return write_page(path, render(comparison, lang=lang, title=title, show_data=show_data))


def report_png(comparison: Comparison, path: str | Path, *, lang: str = "en") -> Path:
    """A card of 1200 x 630 pixels for chat and README: the headline, samples before and after, numbers."""
    view, shown = ComparisonView(comparison, lang, show=False), comparison.pictures
    t, best = view.t, comparison.recommended
    sheets = [
        (shown.null_samples, "null", t("report.png.before")),
        (shown.best_samples, "best", t("report.png.after" + ".kept" * best.keeps_prior, method=best.method)),
    ]
    quality = (comparison.null.samples, best.samples)
    facts = [
        (
            t("report.tile.gap.value", gap=comparison.prior_gap),
            t("report.tile.gap.unit") + " " + t("report.tile.gap"),
        ),
        (" → ".join(map(percent, comparison.holes)) if known(*comparison.holes) else "", t("report.tile.holes")),
        (" → ".join(map(short, quality)) if known(*quality) else "", t("report.tile.samples")),
    ]
    name, line = comparison.setting.data, headline(comparison, lang)
    write_atomic(path, pictures.card_png(name, line, sheets, view.scale, facts, image=view.image))
    return Path(path)
