"""The one page of all reports: sections of numbers and figures in, one offline HTML document out."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from latentfit.errors import InputError
from latentfit.report.view import View
from latentfit.saving import write_atomic

#: a section that a report does not have is left out
OPTIONAL = (
    "see",
    "error",
    "findings",
    "gains",
    "groups",
    "table",
    "clusters",
    "weights",
    "map",
    "curves",
    "units",
    "holes",
    "cost",
)


def render_page(view: View, sections: Mapping[str, Any], *, title: str | None, name: str) -> str:
    """One HTML document that loads nothing from anywhere, complete without JavaScript but for the map.

    Args:
        view: the language.
        sections: `headline`, `evidence`, `eyebrow`, `tiles`, `trust`, `commands`, `glossary`, `foot`, and any of
            `OPTIONAL`, each as the template reads it.
        title: of the page; `name` by default.
        name: of the data or the model.
    """
    whole = {**dict.fromkeys(OPTIONAL), **sections}
    plotly = _plotly() if whole["map"] else ""
    template = _environment().get_template("report.html.j2")
    return str(template.render(whole, t=view.t, lang=view.lang, title=title or name, name=name, plotly=plotly))


def write_page(path: str | Path, html: str) -> Path:
    """Put a page into a file, atomically; the file is either the old one or the whole new one.

    Raises:
        InputError: a name that says it is something else.
    """
    if Path(path).suffix.lower() not in (".html", ".htm"):
        raise InputError(f"report: {Path(path).as_posix()} must end in .html: a report is one HTML file.")
    write_atomic(path, html)
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
