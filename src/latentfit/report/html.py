"""The report: one offline HTML file, complete without JavaScript on its first screens."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from latentfit.comparison.result import Comparison
from latentfit.report import above, below, pictures
from latentfit.report.verdict import evidence, headline
from latentfit.report.view import View
from latentfit.saving import write_atomic

GLOSSARY = ("prior", "aggregate", "mismatch", "prior_gap", "inference_gap", "hole", "active", "nat")


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
    view = View(comparison, lang, show)
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
        "map": below.codes_map(view),
        "units": below.units(view),
        "curves": below.curves(view),
        "holes": below.holes(view),
        "trust": below.trust(view),
        "cost": below.cost(view),
        "commands": below.commands(view),
        "glossary": [(view.t(f"glossary.{word}"), view.t(f"glossary.{word}.text")) for word in GLOSSARY],
    }
    data = comparison.setting.data
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            sections,
            t=view.t,
            lang=lang,
            title=title or data,
            data_name=data,
            foot=below.foot(view),  # after all others: it counts the thumbnails they put in
            plotly=_plotly() if sections["map"] else "",
        )
    )


def write(
    comparison: Comparison,
    path: str | Path,
    *,
    lang: str = "en",
    title: str | None = None,
    show_data: bool | None = None,
) -> Path:
    """Render the report into a file, atomically; the file is either the old one or the whole new one."""
    write_atomic(path, render(comparison, lang=lang, title=title, show_data=show_data))
    return Path(path)


def report_png(comparison: Comparison, path: str | Path, *, lang: str = "en") -> Path:
    """A card of 1200 x 630 pixels for chat and README: the headline, samples before and after, numbers."""
    write_atomic(path, pictures.card_png(comparison, headline(comparison, lang), lang))
    return Path(path)


@lru_cache(maxsize=1)
def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


@lru_cache(maxsize=1)
def _environment() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("latentfit.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
