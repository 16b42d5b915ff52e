"""What the pages of a diagnosis and of a retrofit share: one trained VAE, seen through the ladder of its priors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from latentfit.diagnosis.pictures import Pictures
from latentfit.evaluation.estimate import Estimate
from latentfit.evaluation.ladder import Ladder
from latentfit.report import figures, parts, pictures
from latentfit.report.page import render_page, write_page
from latentfit.report.view import View, prior_name, seconds
from latentfit.saving import write_atomic

#: a column's entry: its text, and the value it is sorted by
Cell = tuple[str, float | str]


class Setting(Protocol):
    """What both results say of how they were made."""

    @property
    def model(self) -> str: ...
    @property
    def data_shape(self) -> tuple[int, ...]: ...
    @property
    def random_state(self) -> int: ...
    @property
    def seconds(self) -> float: ...
    @property
    def device(self) -> str: ...
    @property
    def columns(self) -> Sequence[str | int]: ...


class ModelView(View):
    """One model in one language.

    Args:
        setting: of the result.
        ladder: the priors that were fitted to it.
        drawn: the arrays behind its pictures.
        new: the name of the prior put forward, "" where the model's own stays.
        lang: "en" or "vi".
        show: whether pictures of the data may be contained.
    """

    def __init__(self, setting: Setting, ladder: Ladder, drawn: Pictures, new: str, lang: str, show: bool) -> None:
        shots = [drawn.originals, drawn.reconstructions, drawn.new_samples, drawn.null_samples]
        p = prior_name(ladder, lang)
        shape, columns = setting.data_shape, setting.columns
        super().__init__(lang, shape, show=show, shots=shots, changed=bool(new), p=p, columns=columns)
        self.setting, self.drawn, self.new = setting, drawn, new

    @property
    def samples(self) -> list[parts.Sheet]:
        """Pictures drawn from the model's prior, and from the one put forward."""
        sheets = [
            (self.drawn.null_samples, "null", self.t("report.model.see.null")),
            (self.drawn.new_samples, "best", self.t("report.model.see.new", name=self.new)),
        ]
        return sheets[: 1 + self.changed]

    def sheets(self, kind: str) -> list[parts.Sheet]:
        """The arrays `kind`_null and `kind`_new, for the map or the histogram."""
        sheets = [
            (getattr(self.drawn, f"{kind}_null"), "null", self.t("report.map.before")),
            (getattr(self.drawn, f"{kind}_new"), "best", self.t("report.map.after")),
        ]
        return sheets[: 1 + self.changed]


@dataclass(frozen=True)
class Line:
    """A rung of the ladder as a figure and a table show it; `gap` None stands for the model's own prior.

    Attributes:
        more: further columns by name.
    """

    name: str
    gap: Estimate | None
    seconds: float
    n_parameters: int
    chosen: bool
    more: Mapping[str, Cell] = field(default_factory=dict)

    @property
    def fit(self) -> str:
        """The seconds of the fit as text."""
        return "" if self.gap is None else seconds(self.seconds)


def see(view: ModelView) -> dict[str, Any] | None:
    """Grids of pictures side by side, or, for tables, quantiles by column."""
    sheets, rebuilt = view.samples, view.drawn.reconstructions
    if view.image:
        rows = [(rebuilt, "mute", view.t("report.see.reconstructions"))]
        return parts.grids(view, sheets, rows, "report.model.see.caption", seed=view.setting.random_state)
    n = min(12, math.prod(view.shape))
    return parts.quantiles(view, rebuilt, sheets, view.t("report.model.see.table", name=view.new, n=n))


def code_sections(view: ModelView) -> dict[str, Any]:
    """The map of the codes, the units, the holes."""
    drawn, t = view.drawn, view.t
    axes = (t("report.map.worst"), "1")
    images = drawn.map_images if view.image else None
    found: dict[str, Any] = {
        "map": parts.code_map(
            view, drawn.map_codes, view.sheets("map"), labels=drawn.map_labels, images=images, axes=axes
        )
    }
    found["clusters"] = parts.cluster_section(view, drawn)
    found["weights"] = parts.weight_section(view, drawn)
    if len(drawn.unit_kl):
        marks = parts.unit_figure(view, drawn.unit_kl, drawn.unit_std)
        found["units"] = {"caption": t("report.units.caption"), "panels": [(view.setting.model, "null", marks)]}
    figure = parts.hole_figure(view, drawn.hole_codes, view.sheets("hole"), drawn.hole_line)
    if figure is not None:
        found["holes"] = {"caption": t("report.holes.caption"), "svg": figure, "examples": _examples(view)}
    return found


def _examples(view: ModelView) -> dict[str, Any] | None:
    """What the decoder makes of draws in a hole, each an image."""
    shown = view.drawn.hole_samples
    if not view.image or not len(shown):
        return None
    uris = [pictures.data_uri(pictures.grid_png(image[None], view.scale, n=1)) for image in shown]
    pixelated = max(shown.shape[1:]) <= 32
    return {"caption": view.t("report.holes.examples", n=len(shown)), "uris": uris, "pixelated": pixelated}


def ladder_figure(view: ModelView, lines: Sequence[Line], n: int) -> dict[str, Any] | None:
    """Dot and interval of every rung's gap on n rows."""
    marks = [figures.Mark(line.name, "", line.gap, line.fit, line.chosen) for line in lines]
    caption, axis = view.t("report.model.ladder.caption", n=n), view.t("report.model.ladder.axis")
    found = parts.intervals(view, marks, axis, view.t("report.gain.seconds"), caption)
    return None if found is None else {"title": view.t("report.model.ladder"), **found}


def ladder_table(view: ModelView, lines: Sequence[Line], names: Sequence[str], n: int, foot: str = "") -> dict:
    """The rungs with the columns `names`, of which every line has its entry."""
    t, rows = view.t, []
    for line in lines:
        own = line.gap is None
        cells: dict[str, Cell] = {
            "method": (line.name, line.name),
            "gap": ("0", 0.0) if line.gap is None else (str(line.gap), line.gap.value),
            "fit_s": ("–" if own else seconds(line.seconds), line.seconds),
            "parameters": (f"{line.n_parameters:,}", line.n_parameters),
            **line.more,
        }
        listed = [(name, *cells[name]) for name in names]
        rows.append({"cells": listed, "chosen": t("column.kept") if line.chosen else ""})
    return {
        "title": t("report.model.table"),
        "caption": t("report.model.table.caption", n=n),
        "columns": [(name, t("column.rung" if name == "method" else f"column.{name}")) for name in names],
        "sorted": "",
        "rows": rows,
        "test": None,
        "foot": foot,
    }


def finish(view: ModelView, sections: dict[str, Any], title: str | None) -> str:
    """The whole page: a report's own sections, the pictures, glossary and footer."""
    s, t = view.setting, view.t
    whole = {"see": see(view), **code_sections(view), **sections, "glossary": parts.glossary(view)}
    facts = [
        t("report.foot.seed", seed=s.random_state),
        t("report.foot.time", seconds=f"{s.seconds:,.0f}", device=s.device),
    ]
    whole["foot"] = parts.foot(view, versions=parts.versions(), facts=facts)  # last: it counts the thumbnails
    return render_page(view, whole, title=title, name=s.model)


def write(path: str | Path, page: str, view: ModelView, headline: str, tiles: Sequence[Mapping[str, str]]) -> Path:
    """Put the page into a file and a card for chat beside it, both atomically; returns the page's path."""
    facts = [(tile["value"], f"{tile.get('unit', '')} {tile['label']}".strip()) for tile in tiles[:3]]
    draw = partial(pictures.card_png, view.setting.model, headline, view.samples, view.scale, facts)
    shown = write_page(path, page)
    write_atomic(shown.with_suffix(".png"), draw(image=view.image))
    return shown
