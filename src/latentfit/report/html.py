"""The report: one offline HTML file, complete without JavaScript on its first screens."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from latentfit.comparison.result import Comparison, Row
from latentfit.diagnosis.catalogue import finding_name, finding_remedy, finding_sentence, say
from latentfit.errors import InputError
from latentfit.evaluation.estimate import Estimate
from latentfit.report import figures, pictures
from latentfit.report.verdict import evidence, headline, other_goals, row_of, units
from latentfit.saving import write_atomic

GLOSSARY = ("prior", "aggregate", "mismatch", "prior_gap", "inference_gap", "hole", "active", "nat")
#: thumbnails in the map's hover, at most
MAX_THUMBNAILS = 400
MAX_CODES = 2000
MAX_DRAWS = 500
#: a unit whose KL is below this many nats carries nothing
COLLAPSED_BELOW = 0.01
#: fewer selection rows than this and the report says so
FEW_SELECTION_ROWS = 500
#: a share of rows with failed importance weights above which log p(x) is called unreliable
UNRELIABLE = 0.1


def render(
    comparison: Comparison, *, lang: str = "en", title: str | None = None, show_data: bool | None = None
) -> str:
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
    page = _Page(comparison, lang, show)
    template = _environment().get_template("report.html.j2")
    return template.render(t=page.t, lang=lang, title=title or comparison.setting.data, **page.context())


def write(
    comparison: Comparison,
    path: str | os.PathLike[str],
    *,
    lang: str = "en",
    title: str | None = None,
    show_data: bool | None = None,
) -> Path:
    """Render the report into a file, atomically; the file is either the old one or the whole new one."""
    write_atomic(path, render(comparison, lang=lang, title=title, show_data=show_data))
    return Path(path)


def report_png(comparison: Comparison, path: str | os.PathLike[str], *, lang: str = "en") -> Path:
    """A card of 1200 x 630 pixels for chat and README: the headline, samples before and after, three numbers."""
    write_atomic(path, pictures.card_png(comparison, headline(comparison, lang), lang))
    return Path(path)


class _Page:
    """What the template shows, section by section; a section without numbers is None and is left out."""

    def __init__(self, comparison: Comparison, lang: str, show: bool) -> None:
        self.c, self.lang, self.show = comparison, lang, show
        self.words = units(comparison, lang)
        self.t: Callable[..., str] = partial(_say, lang, self.words)
        self.image = pictures.is_image(comparison.setting.data_shape)
        self.changed = comparison.recommendation.key != "standard"
        shots = comparison.pictures
        self.scale = pictures.scale_of([shots.originals, shots.reconstructions, shots.best_samples])
        self.thumbnails = 0

    def context(self) -> dict[str, Any]:
        sections = {
            "data_name": self.c.setting.data,
            "eyebrow": self.eyebrow(),
            "headline": headline(self.c, self.lang),
            "evidence": evidence(self.c, self.lang),
            "tiles": self.tiles(),
            "see": self.see(),
            "error": self.error(),
            "findings": self.findings(),
            "gains": self.gains(),
            "table": self.table(),
            "map": self.map(),
            "units": self.units(),
            "curves": self.curves(),
            "holes": self.holes(),
            "trust": self.trust(),
            "cost": self.cost(),
            "commands": self.commands(),
            "glossary": [(self.t(f"glossary.{w}"), self.t(f"glossary.{w}.text")) for w in GLOSSARY],
        }
        script = _plotly() if sections["map"] else ""
        return {**sections, "foot": self.foot(), "plotly": script}

    def eyebrow(self) -> str:
        s = self.c.setting
        return self.t(
            "report.eyebrow.data", data=s.data, n=s.n_rows, latent_dim=s.latent_dim, likelihood=s.likelihood
        )

    def tiles(self) -> list[dict[str, str]]:
        c, t, best, null = self.c, self.t, self.c.recommended, self.c.null
        bits = c.prior_gap.value / (math.prod(c.setting.data_shape) * math.log(2.0))
        tiles = [
            {
                "value": t("report.tile.gap.value", gap=c.prior_gap),
                "unit": t("report.tile.gap.unit"),
                "label": t("report.tile.gap"),
                "note": t(
                    "report.tile.gap.note",
                    share=c.prior_gap_share_of_kl,
                    kl=f"{null.kl:.1f}",
                    bits=f"{bits:.2g}",
                ),
            }
        ]
        if _known(*c.holes):
            value = _arrow(f"{c.holes[0]:.0%}", f"{c.holes[1]:.0%}", self.changed).replace("%", " %")
            tiles.append(
                {"value": value, "label": t("report.tile.holes"), "note": t("report.tile.holes.note")}
            )
        if _known(null.samples, best.samples):
            value = _arrow(_short(null.samples), _short(best.samples), self.changed)
            note = t("report.tile.samples.note", floor=_short(c.reconstruction_floor))
            tiles.append({"value": value, "label": t("report.tile.samples"), "note": note})
        cost = "report.tile.cost" + ("" if best.fitted == "jointly" else ".post hoc") * self.changed
        tiles.append(
            {
                "value": t("word.seconds", seconds=_seconds(best.fit_seconds)) if self.changed else "0",
                "label": t(cost if self.changed else "report.tile.cost.none"),
                "note": t(
                    "report.tile.cost.note",
                    added=best.added_parameters,
                    ms=_short(best.sample_ms),
                    null_ms=_short(null.sample_ms),
                ),
            }
        )
        return tiles

    def see(self) -> dict[str, Any] | None:
        p, t, method = self.c.pictures, self.t, self.c.recommended.method
        if not len(p.null_samples):
            return None
        if not self.image:
            return self._columns()
        sheets = [(t("report.see.null"), "null", p.null_samples)]
        if self.changed and len(p.best_samples):
            sheets.append((t("report.see.best", method=method), "best", p.best_samples))
        panels = [
            (label, css, pictures.data_uri(pictures.grid_png(a, self.scale))) for label, css, a in sheets
        ]
        if len(p.reconstructions):
            uri = ""
            if self.show:
                uri = pictures.data_uri(pictures.grid_png(p.reconstructions, self.scale))
                self.thumbnails += min(36, len(p.reconstructions))
            panels.append((t("report.see.reconstructions"), "mute", uri))
        n = min(36, len(p.null_samples))
        pixelated = max(p.null_samples.shape[1:]) <= 32
        return {"panels": panels, "caption": t("report.see.caption", n=n), "pixelated": pixelated}

    def _columns(self) -> dict[str, Any] | None:
        p, t = self.c.pictures, self.t
        # decoder means spread less than data: like is compared with like
        real = p.reconstructions if len(p.reconstructions) else p.originals
        if not len(real) or not len(p.best_samples):
            return None
        real, null, best = (a.reshape(len(a), -1) for a in (real, p.null_samples, p.best_samples))
        n = min(12, real.shape[1])
        panels = [
            figures.quantile_panel(t("report.see.column", n=j + 1), real[:, j], null[:, j], best[:, j])
            for j in range(n)
        ]
        caption = t("report.see.table.caption", method=self.c.recommended.method, n=n)
        legend = [
            ("null", t("report.see.null")),
            ("best", t("report.see.best", method=self.c.recommended.method)),
        ]
        return {"columns": panels, "caption": caption, "legend": legend if self.changed else legend[:1]}

    def error(self) -> dict[str, Any] | None:
        parts = []
        for name, css in (("decoder", "bar-decoder"), ("inference", "bar-inference"), ("prior", "bar-prior")):
            estimate = self.c.budget.get(name)
            if estimate is not None and math.isfinite(estimate.value):
                value = self.t("report.error.at_least", gap=estimate) if name == "prior" else str(estimate)
                parts.append((self.t(f"report.error.{name}"), value, estimate, css))
        if not parts:
            return None
        draw = partial(figures.budget, parts, self.t("report.error.axis"))
        return {"caption": self.t("report.error.caption"), **_pair(draw)}

    def findings(self) -> list[dict[str, str]]:
        found = []
        for finding in self.c.findings:
            given = type(finding)(
                finding.code, finding.status, {"unit": self.words["unit"], **finding.parameters}
            )
            try:
                name, text = finding_name(given, self.lang), finding_sentence(given, self.lang)
                remedy = finding_remedy(given, self.lang)
            except InputError:
                # a finding that the catalogue cannot say must not cost the reader the whole report
                name, remedy = finding.code, ""
                text = ", ".join(f"{key} = {value}" for key, value in finding.parameters.items())
            status = {"css": finding.status, "status": self.t(f"status.{finding.status}")}
            found.append({"code": finding.code, "name": name, "text": text, "remedy": remedy, **status})
        return found

    def gains(self) -> dict[str, Any] | None:
        if len(self.c.rows) < 2:
            return None
        key = self.c.recommendation.key
        marks = [
            figures.Mark(r.method, self.t(f"word.{r.fitted}"), r.gain, r.fit_seconds, r.key == key)
            for r in self.c.rows
        ]
        draw = partial(figures.gains, marks, self.t("report.gain.axis"), self.t("report.gain.seconds"))
        n = self.c.setting.splits.get("selection", 0)
        return {"caption": self.t("report.gain.caption", n=n), **_pair(draw)}

    def table(self) -> dict[str, Any]:
        c, t = self.c, self.t
        knn = any(r.knn is not None for r in c.rows)
        names = ["method", "fitted", "gain", "log_px", "kl", "units", "samples", *(["knn"] * knn)]
        names += ["fit_s", "sample_ms", "parameters"]
        names += ["bound"] * any(r.is_bound for r in c.rows)
        names += ["note"] * any(r.note or r.reliability > UNRELIABLE for r in c.rows)
        foot = t("report.table.foot", floor=_short(c.reconstruction_floor), measure=c.setting.base_measure)
        return {
            "columns": [(name, t(f"column.{name}")) for name in names],
            "rows": [self._cells(row, names) for row in c.rows],
            "test_rows": [self._cells(row, names) for row in c.test_rows],
            "foot": foot,
        }

    def _cells(self, row: Row, names: list[str]) -> dict[str, Any]:
        notes = [row.note] if row.note else []
        if row.reliability > UNRELIABLE:
            notes.append(self.t("report.table.unreliable", share=row.reliability))
        gain = row.gain
        cells: dict[str, tuple[str, float | str]] = {
            "method": (row.method, row.method),
            "fitted": (self.t(f"word.{row.fitted}"), row.fitted),
            "gain": ("0", 0.0) if gain is None else (say("report.signed", self.lang, gain=gain), gain.value),
            "log_px": (_estimate(row.log_px), row.log_px.value),
            "kl": (f"{row.kl:.1f}", row.kl),
            "units": (f"{row.active_units:.3g}", row.active_units),
            "samples": (_short(row.samples), row.samples),
            "knn": ("" if row.knn is None else f"{row.knn:.3f}", -1.0 if row.knn is None else row.knn),
            "fit_s": (_seconds(row.fit_seconds), row.fit_seconds),
            "sample_ms": (_short(row.sample_ms), row.sample_ms),
            "parameters": (f"{row.n_parameters:,}", row.n_parameters),
            "bound": (self.t("report.table.bound") if row.is_bound else "", int(row.is_bound)),
            "note": ("; ".join(notes), "; ".join(notes)),
        }
        return {
            "cells": [(name, *cells[name]) for name in names],
            "recommended": row.key == self.c.recommendation.key,
        }

    def map(self) -> dict[str, Any] | None:
        p, t = self.c.pictures, self.t
        if not len(p.map_codes) or not len(p.map_null):
            return None
        codes = p.map_codes[:MAX_CODES]
        n = min(MAX_THUMBNAILS, len(p.map_images), len(codes)) if self.show and self.image else 0
        images = pictures.thumbnails(p.map_images[:n], self.scale) if n else []
        self.thumbnails += n
        labels = [str(v) for v in p.map_labels[: len(codes)].tolist()]
        names = sorted(set(labels), key=lambda v: (len(v), v))
        draws = [(p.map_null[:MAX_DRAWS], "null")]
        if self.changed and len(p.map_best):
            draws.append((p.map_best[:MAX_DRAWS], "best"))
        axes = (p.map_axes[0] or "z1", p.map_axes[1] or "z2")
        data = {
            "codes": np.round(codes, 3).tolist(),
            "labels": labels,
            "names": [(name, t("report.map.label", label=name)) for name in names]
            if len(names) <= 12
            else [],
            "draws": [np.round(d, 3).tolist() for d, _ in draws],
            "draw_names": [t("report.map.before"), t("report.map.after")],
            "code_name": t("report.map.codes"),
            "images": images,
            "axes": axes,
        }
        static = [figures.scatter(codes[:700], [(d[:250], css)], axes) for d, css in draws]
        hint = (
            t("report.map.hover")
            if n
            else (t("report.map.hidden") if self.image and len(p.map_images) else "")
        )
        return {"data": data, "static": static, "hint": hint, "method": self.c.recommended.method}

    def units(self) -> list[tuple[str, str, str]] | None:
        p, panels = self.c.pictures, []
        for key, css in (("standard", "null"), (self.c.recommendation.key, "best")):
            row = row_of(self.c, key)
            kl, std = p.unit_kl.get(key, np.empty(0)), p.unit_std.get(key, np.empty(0))
            if (
                row is None
                or not len(kl)
                or len(kl) != len(std)
                or any(row.method == name for name, _, _ in panels)
            ):
                continue
            panels.append(
                (row.method, css, figures.units(kl, std, self.t("report.units.axis"), COLLAPSED_BELOW))
            )
        return panels or None

    def curves(self) -> dict[str, str] | None:
        series = []
        for key, points in self.c.pictures.curves.items():
            y = np.array([point["validation"] for point in points], dtype=float)
            x = np.array([point["step"] for point in points], dtype=float)
            if len(y) < 2 or not np.isfinite(y).any():
                continue
            css = "best" if key == self.c.recommendation.key else "null" if key == "standard" else "mute"
            series.append((key, x, y, css))
        if not series:
            return None
        return _pair(partial(figures.curves, series, self.t("report.curves.x"), self.t("report.curves.y")))

    def holes(self) -> str | None:
        p = self.c.pictures
        if not len(p.hole_codes) or not len(p.hole_null):
            return None
        sets = [
            (self.t("report.holes.codes"), p.hole_codes, "mute"),
            (self.t("report.map.before"), p.hole_null, "null"),
        ]
        if self.changed and len(p.hole_best):
            sets.append((self.t("report.map.after"), p.hole_best, "best"))
        line = float(np.quantile(p.hole_codes, 0.01))
        return figures.histogram(sets, line, self.t("report.holes.line"), self.t("report.holes.axis"))

    def trust(self) -> list[tuple[str, str]]:
        c, t, verdict, best = self.c, self.t, self.c.recommendation, self.c.recommended
        n = c.setting.splits.get("selection", 0)
        items: list[tuple[str, str]] = []
        if verdict.test_gain is not None and verdict.gain is not None:
            # a test gain far below the selection gain is the winner's curse at work
            shortfall = verdict.gain.value - verdict.test_gain.value
            css = (
                "warn"
                if shortfall > 2 * math.hypot(verdict.gain.std_error, verdict.test_gain.std_error)
                else "good"
            )
            tested = c.setting.splits.get("test", 0)
            items.append(
                (css, t("report.trust.test", n=tested, test_gain=verdict.test_gain, gain=verdict.gain))
            )
        items.append(("good", t("report.trust.gap", gap=c.prior_gap)))
        items.append(("good", t("report.trust.paired", n=n)))
        unsure = "warn" if best.reliability > UNRELIABLE else "good"
        items.append(
            (unsure, t("report.trust.reliable", k=c.setting.n_importance_samples, share=best.reliability))
        )
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

    def cost(self) -> list[str]:
        c, t, best, null = self.c, self.t, self.c.recommended, self.c.null
        lines = []
        if self.changed:
            key = "report.cost.fit" + ("" if best.fitted == "jointly" else ".post hoc")
            seconds = {"seconds": _seconds(best.fit_seconds), "null_seconds": _seconds(null.fit_seconds)}
            lines.append(t(key, method=best.method, **seconds))
            latency = {"ms": _short(best.sample_ms), "null_ms": _short(null.sample_ms)}
            lines.append(t("report.cost.size", n=best.n_parameters, added=best.added_parameters, **latency))
        without = row_of(c, c.recommendation.without_training or "")
        if without is not None and without.gain is not None and without.key != best.key:
            seconds_ = _seconds(without.fit_seconds)
            lines.append(t("report.cost.without", method=without.method, gain=without.gain, seconds=seconds_))
        elif without is None and not (self.changed and best.fitted == "post hoc"):
            lines.append(t("report.cost.without.none"))
        if self.changed and best.fitted == "post hoc":
            lines.append(t("report.cost.jointly"))
        if not self.changed:
            lines.append(t("report.cost.keep"))
        return lines + other_goals(c, self.lang)

    def commands(self) -> list[tuple[str, str]]:
        rows = [(f"{r.method}, {self.t(f'word.{r.fitted}')}", r.command) for r in self.c.rows if r.command]
        whole = [(self.t("report.repeat.all"), self.c.setting.command)] if self.c.setting.command else []
        return whole + rows

    def foot(self) -> list[str]:
        s, t = self.c.setting, self.t
        seeds = t("report.foot.seeds.one") if s.n_seeds == 1 else t("report.foot.seeds", last=s.n_seeds - 1)
        return [
            t("report.foot.thumbnails", n=self.thumbnails),
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


def _say(lang: str, words: dict[str, str], key: str, **parameters: Any) -> str:
    return say(key, lang, **{**words, **parameters})


def _pair(draw: Callable[..., str]) -> dict[str, str]:
    # text in a scaled figure would be unreadable on a phone: it gets a figure of its own
    return {"wide": draw(width=880), "narrow": draw(width=350)}


def _arrow(before: str, after: str, changed: bool) -> str:
    return f"{before} → {after}" if changed else before


def _known(*values: float) -> bool:
    return all(math.isfinite(value) for value in values)


def _short(value: float) -> str:
    if not math.isfinite(value):
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _seconds(value: float) -> str:
    return f"{value:,.0f}" if value >= 9.5 else f"{value:.1f}"


def _estimate(value: Estimate) -> str:
    return str(value).split(" ±")[0]


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
