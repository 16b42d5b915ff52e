"""What every section of a report needs: the language, the words, the grey scale of its pictures, number formats."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from latentfit.comparison.result import Comparison
from latentfit.diagnosis.catalogue import say
from latentfit.diagnosis.sections import name_of
from latentfit.evaluation.estimate import Estimate
from latentfit.evaluation.ladder import Ladder
from latentfit.report import pictures


class View:
    """A result seen in one language; counts the thumbnails of data that the page contains.

    Args:
        lang: "en" or "vi".
        shape: of a row of data.
        show: whether pictures of the data may be contained.
        shots: arrays of pictures; the first that is not empty gives one grey scale for all.
        changed: whether something other than the model's own prior is put forward.
        p: the name of the model's own prior.
        columns: of a table, their names, or their numbers from 0.
        labels: names of the rows' labels, where the arrays have them as numbers from 0.
    """

    def __init__(
        self,
        lang: str,
        shape: tuple[int, ...],
        *,
        show: bool = False,
        shots: Sequence[np.ndarray] = (),
        changed: bool = True,
        p: str = "N(0, I)",
        columns: Sequence[str | int] = (),
        labels: Sequence[str] = (),
    ) -> None:
        self.lang, self.shape, self.show, self.changed = lang, shape, show, changed
        self.words = {**unit_words(shape, lang), "p": p}
        self.image = pictures.is_image(shape)
        self.scale = pictures.scale_of(list(shots))
        self.thumbnails = 0
        self.columns, self.labels = columns, labels

    def column(self, j: int) -> str:
        """What column j (from 0) of the model's rows is called: the user's name, or the user's number from 1."""
        name = self.columns[j] if j < len(self.columns) else j
        return name if isinstance(name, str) else self.t("report.see.column", n=name + 1)

    def label(self, value: Any) -> str:
        """What a row's label is called."""
        return self.labels[int(value)] if self.labels else str(value)

    def t(self, key: str, **parameters: Any) -> str:
        """The sentence `key`, with `unit`, `units` and `p` filled in."""
        return say(key, self.lang, **{**self.words, **parameters})


class ComparisonView(View):
    """A comparison `c` in one language."""

    def __init__(self, comparison: Comparison, lang: str, show: bool) -> None:
        shots = comparison.pictures
        super().__init__(
            lang,
            comparison.setting.data_shape,
            show=show,
            shots=[shots.originals, shots.reconstructions, shots.best_samples],
            changed=comparison.recommendation.key != "standard",
            columns=comparison.setting.columns,
            labels=comparison.setting.label_names,
        )
        self.c = comparison


def unit_words(shape: tuple[int, ...], lang: str = "en") -> dict[str, str]:
    """{"unit", "units"}: what a row is called, an image where it is one."""
    kind = "image" if pictures.is_image(shape) else "row"
    return {"unit": say(f"unit.{kind}", lang), "units": say(f"unit.{kind}s", lang)}


def prior_name(ladder: Ladder, lang: str = "en") -> str:
    """What the model's own prior is called: N(0, I), or "the model's vamp prior"."""
    name = name_of(ladder.nothing.prior)
    return "N(0, I)" if name == "standard" else say("word.prior", lang, name=name)


def shape_words(shape: tuple[int, ...], lang: str = "en") -> str:
    """The size of a row: 28x28, or 2,000 columns."""
    if len(shape) == 1:
        return say("word.columns", lang, n=shape[0])
    return "x".join(map(str, shape))


def bits_per_dimension(nats: float, shape: tuple[int, ...]) -> str:
    """Nats per row as bits per entry of a row, two figures.

    >>> bits_per_dimension(38.2, (3, 64, 64))
    '0.0045'
    """
    return f"{nats / (math.prod(shape) * math.log(2.0)):.2g}"


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
