"""The sections that the reports of a comparison, a diagnosis and a retrofit share, from arrays and numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from latentfit.diagnosis.catalogue import finding_name, finding_remedy, finding_sentence, finding_status
from latentfit.diagnosis.findings import Finding
from latentfit.diagnosis.sections import BAND_ROWS, Sections
from latentfit.errors import InputError
from latentfit.evaluation.clusters import Clusters
from latentfit.evaluation.estimate import Estimate
from latentfit.evaluation.uncertainty import LatentInvariants
from latentfit.report import figures, pictures
from latentfit.report.view import View, bits_per_dimension, pair, percent, short

#: images of a grid, codes and draws of the map, thumbnails in its hover, at most
MAX_GRID, MAX_CODES, MAX_DRAWS, MAX_THUMBNAILS = 36, 2000, 500, 400
#: more labels than these have no colours of their own
MAX_COLOURS = 12
#: a unit whose KL is below this many nats carries nothing
COLLAPSED_BELOW = 0.01

GLOSSARY = ("prior", "aggregate", "mismatch", "prior_gap", "inference_gap", "hole", "active", "nat")

#: clusters in a table, columns of a row of data in it
MAX_CLUSTERS, MAX_COLUMNS = 12, 6

#: (samples, CSS class of what they are drawn from, label)
Sheet = tuple[np.ndarray, str, str]


def gap_tile(view: View, gap: Estimate, label: str, share: float, kl: float) -> dict[str, str]:
    """The tile of a prior gap: nats, share of the KL, bits per dimension."""
    bits = bits_per_dimension(gap.value, view.shape)
    return {
        "value": view.t("report.tile.gap.value", gap=gap),
        "unit": view.t("report.tile.gap.unit"),
        "label": label,
        "note": view.t("report.tile.gap.note", share=share, kl=f"{kl:.1f}", bits=bits),
    }


def grids(
    view: View, sheets: Sequence[Sheet], rows: Sequence[Sheet], caption: str, **words: Any
) -> dict[str, Any] | None:
    """Grids of pictures side by side: samples, and what is made from rows of data, shown only where asked.

    Args:
        sheets: of samples, (n, *data_shape) each.
        rows: of reconstructions or originals.
        caption: the key of the sentence under them, which needs `n` and `words`.
    """
    sheets = [sheet for sheet in sheets if len(sheet[0])]
    if not view.image or not sheets:
        return None
    panels = [(label, css, pictures.data_uri(pictures.grid_png(a, view.scale))) for a, css, label in sheets]
    for images, css, label in rows:
        if not len(images):
            continue
        uri = ""
        if view.show:
            uri = pictures.data_uri(pictures.grid_png(images, view.scale))
            view.thumbnails += min(MAX_GRID, len(images))
        panels.append((label, css, uri))
    n = min(MAX_GRID, len(sheets[0][0]))
    pixelated = max(sheets[0][0].shape[1:]) <= 32
    title = view.t("report.see.title")
    return {"title": title, "panels": panels, "caption": view.t(caption, n=n, **words), "pixelated": pixelated}


def quantiles(view: View, real: np.ndarray, sheets: Sequence[Sheet], caption: str) -> dict[str, Any] | None:
    """For tables: quantiles of each column as it is drawn (two sheets) against reconstructed rows (n, columns)."""
    if len(sheets) != 2 or not len(real) or not all(len(a) for a, _, _ in sheets):
        return None
    real, null, best = (a.reshape(len(a), -1) for a in (real, sheets[0][0], sheets[1][0]))
    n = min(12, real.shape[1])
    panels = [figures.quantile_panel(view.column(j), real[:, j], null[:, j], best[:, j]) for j in range(n)]
    legend = [(css, label) for _, css, label in sheets]
    return {"title": view.t("report.see.table"), "columns": panels, "caption": caption, "legend": legend}


def error_bar(view: View, budget: Mapping[str, Estimate | None], caption: str) -> dict[str, Any] | None:
    """The error budget as one bar: decoder, inference, prior at least, what is not attributed."""
    parts = []
    for name in ("decoder", "inference", "prior", "rest"):
        part = budget.get(name)
        if part is not None and math.isfinite(part.value):
            value = view.t("report.error.at_least", gap=part) if name == "prior" else str(part)
            parts.append((view.t(f"report.error.{name}"), value, part, f"bar-{name}"))
    if not parts:
        return None
    draw = partial(figures.budget, parts, view.t("report.error.axis"))
    return {"title": view.t("report.error.title"), "caption": view.t(caption), **pair(draw)}


def finding_items(view: View, findings: Sequence[Finding]) -> list[dict[str, str]]:
    """One line per finding: name, sentence, status, remedy."""
    found = []
    for finding in findings:
        status = view.t(f"status.{finding.status}")
        try:
            name, text = finding_name(finding, view.lang), finding_sentence(finding, view.lang, **view.words)
            remedy = finding_remedy(finding, view.lang, **view.words)
            status = finding_status(finding, view.lang, **view.words)
        except InputError:
            # a finding that the catalogue cannot say must not cost the reader the whole report
            name, remedy = finding.code, ""
            text = ", ".join(f"{key} = {value}" for key, value in finding.parameters.items())
        shown = {"code": finding.code, "name": name, "text": text, "remedy": remedy}
        found.append({**shown, "css": finding.status, "status": status})
    return found


def intervals(view: View, marks: Sequence[figures.Mark], axis: str, aside: str, caption: str) -> dict[str, str] | None:
    """The dot-and-interval figure."""
    if len(marks) < 2:
        return None
    return {"caption": caption, **pair(partial(figures.gains, marks, axis, aside))}


def code_map(
    view: View,
    codes: np.ndarray,
    draws: Sequence[Sheet],
    *,
    labels: np.ndarray | None = None,
    images: np.ndarray | None = None,
    axes: tuple[str, str] = ("", ""),
) -> dict[str, Any] | None:
    """Codes (n, 2) and draws of one or two priors for the interactive map, and its static pictures."""
    draws = [draw for draw in draws if len(draw[0])]
    if not len(codes) or not draws:
        return None
    codes, rows = codes[:MAX_CODES], np.empty(0) if images is None else images
    n = min(MAX_THUMBNAILS, len(rows), len(codes)) if view.show and view.image else 0
    shown = pictures.thumbnails(rows[:n], view.scale) if n else []
    view.thumbnails += n
    texts = [] if labels is None else [view.label(v) for v in labels[: len(codes)].tolist()]
    names = sorted(set(texts), key=lambda v: (len(v), v))
    titles = tuple(
        view.t("report.map.axis", n=axis or i) if not axis or axis.isdigit() else axis
        for i, axis in enumerate(axes, start=1)
    )
    data = {
        "codes": np.round(codes, 3).tolist(),
        "labels": texts,
        "names": [(v, view.t("report.map.label", label=v)) for v in names] if len(names) <= MAX_COLOURS else [],
        "draws": [np.round(a[:MAX_DRAWS], 3).tolist() for a, _, _ in draws],
        "draw_names": [label for _, _, label in draws],
        "code_name": view.t("report.map.codes"),
        "images": shown,
        "axes": titles,
    }
    static = [figures.scatter(codes[:700], [(a[:250], css)], titles) for a, css, _ in draws]
    hint = view.t("report.map.hover") if n else view.t("report.map.hidden") if view.image and len(rows) else ""
    return {"data": data, "static": static, "hint": hint}


def cluster_section(view: View, drawn: Sections) -> dict[str, Any] | None:
    """How a mixture prior divides the rows: its means decoded, and its largest components one by one.

    A mean that would show a row of the training data is drawn only where pictures of the data may be.
    """
    if not drawn.cluster_prior or len(drawn.cluster_shares) < 2:  # one component divides nothing
        return None
    t, members, labels = view.t, drawn.cluster_members, drawn.cluster_labels
    found = Clusters(torch.empty(0), drawn.cluster_shares, members, drawn.cluster_certainty)
    caption = t(
        "report.clusters.caption",
        prior=drawn.cluster_prior,
        n=len(found.shares),
        rows=len(members),
        clusters=found.n_clusters,
        effective=found.effective,
        certainty=float(found.certainty.mean()),
    )
    if len(labels):
        caption += " " + t("report.clusters.labels", agreement=found.agreement(labels))
    listed = min(MAX_CLUSTERS, found.n_clusters or len(found.shares))
    if not found.n_clusters:
        caption += " " + t("report.clusters.small", listed=listed)
    # a folder from before they were told apart does not say which are rows
    on_rows = drawn.cluster_on_rows.astype(bool) if len(drawn.cluster_on_rows) else np.ones(len(found.shares), bool)
    hidden = on_rows & (not view.show)
    means, uri = drawn.cluster_samples, ""
    if len(means) and hidden.any():
        caption += " " + t("report.clusters.hidden", hidden=int(hidden.sum()), n=len(hidden))
    drawable = means[~hidden[: len(means)]] if len(means) else means
    if view.image and len(drawable):
        uri = pictures.data_uri(pictures.grid_png(drawable, view.scale))
    columns = min(MAX_COLUMNS, means[0].size) if len(drawable) and not view.image else 0
    names = ["method", "share", "certainty", *["label"] * bool(len(labels)), *(f"x{j}" for j in range(columns))]
    headings = {f"x{j}": view.column(j) for j in range(columns)}
    rows = []
    for k in range(listed):
        own, visible = members == k, k < len(means) and not hidden[k]
        cells: dict[str, tuple[str, float | str]] = {
            "method": (str(k + 1), k),
            "share": (percent(found.shares[k]), float(found.shares[k])),
            "certainty": (percent(float(found.certainty[own].mean())) if own.any() else "–", 0.0),
            "label": (_commonest(view, labels[own]) if len(labels) and own.any() else "–", ""),
            **{f"x{j}": (short(float(means[k].reshape(-1)[j])) if visible else "–", 0.0) for j in range(columns)},
        }
        rows.append({"cells": [(name, *cells[name]) for name in names if name in cells], "chosen": ""})
    return {
        "title": t("report.clusters.title"),
        "caption": caption,
        "uri": uri,
        "pixelated": bool(uri) and max(means.shape[1:]) <= 32,
        "means": t("report.clusters.means"),
        "columns": [(name, headings.get(name) or t(f"report.clusters.{name}")) for name in names],
        "sorted": "",
        "rows": rows,
        "foot": t("report.clusters.foot"),
    }


def _commonest(view: View, labels: np.ndarray) -> str:
    """The label most rows have, and how many: 7 (93 %)."""
    values, counts = np.unique(labels, return_counts=True)
    at = counts.argmax()
    return f"{view.label(values[at])} ({percent(counts[at] / counts.sum())})"


def weight_section(view: View, drawn: Sections) -> dict[str, Any] | None:
    """What uncertain weights leave open: invariants over their draws, and bands on q(z) where units are shared."""
    t = view.t
    n = len(drawn.weight_gaps)
    if n < 2:
        return None
    over = LatentInvariants(np.empty((n, 0)), drawn.weight_units, drawn.weight_gaps)
    (low, high), (few, many) = over.band()["prior_gap"], over.band()["active_units"]
    said = {"low": float(low), "high": float(high), "few": float(few), "many": float(many)}
    caption = t("report.weights.caption", method=drawn.weight_method, n=n, level=over.level, **said)
    panels = []
    if len(drawn.band_units):
        share, nats = (float(value) for value in drawn.weight_share)
        caption += " " + t("report.weights.share", share=share, nats=nats)
        curves = zip(drawn.band_units, drawn.band_grid, drawn.band_low, drawn.band_high, strict=True)
        panels = [figures.band(t("report.weights.unit", n=int(j) + 1), x, a, b) for j, x, a, b in curves]
    foot = t("report.weights.foot", level=over.level) if panels else t("report.weights.apart")
    foot += " " + t("report.weights.rows", rows=BAND_ROWS)
    return {"title": t("report.weights.title"), "caption": caption, "panels": panels, "foot": foot}


def hole_figure(view: View, codes: np.ndarray, draws: Sequence[Sheet], line: float | None = None) -> str | None:
    """The histogram of log r(z) of codes and of draws, with the 1 % quantile of the codes."""
    draws = [draw for draw in draws if len(draw[0])]
    if not len(codes) or not draws:
        return None
    sets = [(view.t("report.holes.codes"), codes, "mute"), *((label, a, css) for a, css, label in draws)]
    cut = float(np.quantile(codes, 0.01)) if line is None else line
    return figures.histogram(sets, cut, view.t("report.holes.line"), view.t("report.holes.axis"))


def unit_figure(view: View, kl: np.ndarray, std: np.ndarray) -> str:
    """One mark per latent unit by its KL (D,), sized by its standard deviation (D,)."""
    return figures.units(kl, std, view.t("report.units.axis"), COLLAPSED_BELOW)


def glossary(view: View) -> list[tuple[str, str]]:
    """The eight words."""
    return [(view.t(f"glossary.{word}"), view.t(f"glossary.{word}.text")) for word in GLOSSARY]


def foot(view: View, *, versions: Mapping[str, str], facts: Sequence[str]) -> list[str]:
    """Thumbnails contained, versions, what else identifies the run; called after every other section."""
    count = "report.foot.thumbnail" if view.thumbnails == 1 else "report.foot.thumbnails"
    return [
        view.t(count, n=view.thumbnails),
        " · ".join(f"{name} {version}" for name, version in versions.items()),
        " · ".join([*facts, view.t("report.foot.licence")]),
    ]


def versions() -> dict[str, str]:
    """Of what makes the numbers."""
    import platform

    import torch

    from latentfit import __version__

    return {"latentfit": __version__, "torch": torch.__version__, "python": platform.python_version()}
