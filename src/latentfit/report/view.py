"""What every section of the report needs: the comparison, its language, the words, number formats."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from latentfit.comparison.result import Comparison
from latentfit.diagnosis.catalogue import say
from latentfit.evaluation.estimate import Estimate
from latentfit.report import pictures
from latentfit.report.verdict import units

#: a share of rows with failed importance weights above which log p(x) is called unreliable
UNRELIABLE = 0.05


class View:
    """A comparison seen in one language; counts the thumbnails of data that the page contains.

    Attributes:
        c: the comparison; t: `say` in this language, with `unit` and `units` filled in.
        image: rows are pictures; changed: something other than N(0, I) is recommended.
        show: pictures of the data may be contained; scale: one grey scale for all pictures.
    """

    def __init__(self, comparison: Comparison, lang: str, show: bool) -> None:
        self.c, self.lang, self.show = comparison, lang, show
        self.words = units(comparison, lang)
        self.image = pictures.is_image(comparison.setting.data_shape)
        self.changed = comparison.recommendation.key != "standard"
        shots = comparison.pictures
        self.scale = pictures.scale_of([shots.originals, shots.reconstructions, shots.best_samples])
        self.thumbnails = 0

    def t(self, key: str, **parameters: Any) -> str:
        """The sentence `key`."""
        return say(key, self.lang, **{**self.words, **parameters})


def pair(draw: Callable[..., str]) -> dict[str, str]:
    """A figure for wide screens and one for phones."""
    # text in a scaled figure would be unreadable on a phone: it gets a figure of its own
    return {"wide": draw(width=880), "narrow": draw(width=350)}


def arrow(before: str, after: str, changed: bool) -> str:
    """Before → after, or one value where nothing changes."""
    return f"{before} → {after}" if changed else before


def known(*values: float) -> bool:
    """Whether all numbers are finite."""
    return all(math.isfinite(value) for value in values)


def short(value: float) -> str:
    """A number with three figures or so; – where it is not known."""
    if not math.isfinite(value):
        return "–"
    size = abs(value)
    return f"{value:,.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.2f}"


def seconds(value: float) -> str:
    """Seconds, one decimal below ten."""
    return f"{value:,.0f}" if value >= 9.5 else f"{value:.1f}" if value >= 0.05 else "<0.1"


def percent(value: float) -> str:
    """A share as a per cent."""
    return f"{100 * value:.0f} %" if value >= 0.0095 or value == 0 else f"{100 * value:.1f} %"


def estimate(value: Estimate) -> str:
    """The value of an estimate with as many digits as its error allows."""
    return str(value).split(" ±")[0]
