"""A comparison as plain text: the leaderboard and the verdict, as the terminal prints them."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from latentfit.comparison.result import Comparison, Row
from latentfit.diagnosis.catalogue import finding_name, finding_sentence, finding_status, plain, say
from latentfit.diagnosis.findings import Finding
from latentfit.evaluation.escalation import GATE_SHARE
from latentfit.report.verdict import units, verdict_lines


@dataclass(frozen=True)
class Column:
    """A column of a table in a terminal: its cells are padded to one width."""

    heading: str
    cells: list[str]
    left: bool = False

    @property
    def width(self) -> int:
        """Characters of the widest cell."""
        return max(map(len, [self.heading, *self.cells]))

    def lines(self) -> list[str]:
        """The heading and the cells, padded."""
        pad = str.ljust if self.left else str.rjust
        return [pad(text, self.width) for text in (self.heading, *self.cells)]


def as_text(comparison: Comparison, *, lang: str | None = None, width: int = 80, ascii: bool = False) -> str:
    """The leaderboard, its footnotes and the verdict.

    Args:
        lang: "en" or "vi"; the comparison's own by default.
        width: characters a line may have; columns that do not fit are left out from the right.
        ascii: +- for ± and so on, for consoles without utf-8.

    Returns:
        Lines of at most `width` characters.
    """
    lang = lang or comparison.setting.lang

    def clean(text: str) -> str:
        return plain(text) if ascii else text

    parts = [leaderboard_text(comparison, lang=lang, width=width, ascii=ascii), ""]
    for line in verdict_lines(comparison, lang):
        parts += wrapped(clean(line), width)
    return "\n".join(parts)


def leaderboard_text(comparison: Comparison, *, lang: str = "en", width: int = 80, ascii: bool = False) -> str:
    """The leaderboard alone: a caption, one line per row, and the footnotes that are needed."""

    def clean(text: str) -> str:
        return plain(text) if ascii else text

    rows = comparison.rows
    columns = [Column(c.heading, [clean(cell) for cell in c.cells], c.left) for c in _columns(comparison, lang)]
    table = fitting(columns, width)
    unit = units(comparison, lang)["unit"]
    caption = wrapped(clean(say("terminal.caption", lang, unit=unit)), width)
    n_shown = _shown(columns, width)[0]
    shown, hidden = ([column.heading.strip() for column in part] for part in (columns[:n_shown], columns[n_shown:]))
    feet = [say("terminal.foot.recommended", lang)]
    if any(row.is_bound for row in rows):
        feet.append(say("terminal.foot.bound", lang))
    if say("column.samples", lang) in shown:
        feet.append(say("terminal.foot.samples", lang))
    if hidden and width < 80:  # what never fits is no news
        feet.append(say("terminal.foot.hidden", lang, columns=", ".join(name.rstrip("*") for name in hidden)))
    lines = [*caption, *table, *joined([clean(foot) for foot in feet], width)]
    worst = max((row.reliability for row in rows), default=0.0)
    annealed = [row for row in rows if row.n_annealed]
    if annealed:
        facts = {"n": max(row.n_annealed for row in annealed), "nats": max(abs(row.correction) for row in annealed)}
        lines += wrapped(" " + clean(say("terminal.foot.annealed", lang, **facts)), width, indent="   ")
    if worst > GATE_SHARE:
        lines += wrapped(" " + clean(say("terminal.foot.unreliable", lang, share=worst)), width, indent="   ")
    return "\n".join(lines)


def findings_text(findings: Sequence[Finding], *, lang: str = "en", width: int = 80, ascii: bool = False) -> str:
    """One line per finding: what was looked at, what was found, how grave it is (right-aligned)."""
    lines = []
    names = [finding_name(finding, lang) for finding in findings]
    first = 8 + max([10, *map(len, names)]) + 2
    for name, finding in zip(names, findings, strict=True):
        sentence, status = finding_sentence(finding, lang), finding_status(finding, lang)
        if ascii:
            sentence, status = plain(sentence), plain(status)
        head = f"{'':8}{name}".ljust(first)
        body = textwrap.wrap(sentence, max(16, width - first - len(status) - 2)) or [""]
        lines.append(f"{head}{body[0]}".ljust(width - len(status)) + status)
        lines += [" " * first + more for more in body[1:]]
    return "\n".join(lines)


def wrapped(text: str, width: int, indent: str = "") -> list[str]:
    """A sentence on lines of at most `width` characters; commands and names are not broken at hyphens."""
    return textwrap.wrap(text, width, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False) or [""]


def duration(seconds: float, lang: str = "en") -> str:
    """Seconds in words.

    >>> duration(7.2), duration(140), duration(1250), duration(12600)
    ('7 s', '2 min 20 s', '21 min', '3 h 30 min')
    """
    whole = max(1, round(seconds))
    if whole < 60:
        return say("word.seconds", lang, seconds=whole)
    minutes, rest = divmod(whole, 60)
    if minutes < 10:
        text = say("word.minutes", lang, minutes=minutes)
        return f"{text} {say('word.seconds', lang, seconds=rest)}" if rest else text
    minutes = round(seconds / 60)
    if minutes < 120:
        return say("word.minutes", lang, minutes=minutes)
    hours, rest = divmod(minutes, 60)
    text = say("word.hours", lang, hours=hours)
    return f"{text} {say('word.minutes', lang, minutes=rest)}" if rest else text


def aligned(pairs: Sequence[tuple[float, float] | None], *, ascii: bool = False) -> list[str]:
    """Values with errors under each other, sign first, with as many decimals for all; None is the zero.

    >>> aligned([(1.62, 0.21), None, (-12.3, 0.4)])
    ['  +1.6 ± 0.2', '   0     -  ', ' -12.3 ± 0.4']
    """
    known = [pair for pair in pairs if pair is not None]
    errors = [error for _, error in known if np.isfinite(error) and error > 0]
    decimals = 2 if errors and min(errors) < 0.095 else 1
    values = [_signed(value, decimals) for value, _ in known]
    spreads = [f"{error:.{decimals}f}" if np.isfinite(error) else "?" for _, error in known]
    left, right = max([2, *map(len, values)]), max([1, *map(len, spreads)])
    mark = "+-" if ascii else "±"
    cells, position = [], 0
    for pair in pairs:
        if pair is None:
            zero = "0" + " " * (decimals + 1)  # under the units of the other rows
            cells.append(f" {zero:>{left}} {'':{len(mark)}} {'-':<{right}}")
            continue
        cells.append(f" {values[position]:>{left}} {mark} {spreads[position]:>{right}}")
        position += 1
    return cells


def _columns(comparison: Comparison, lang: str) -> list[Column]:
    """All columns, the ones a narrow terminal misses least on the right."""
    rows = comparison.rows
    gains = aligned([None if row.gain is None else (row.gain.value, row.gain.std_error) for row in rows])
    gains = [cell.strip() if len(rows) == 1 else cell[1:] for cell in gains]
    marks = [_marks(comparison, row) for row in rows]
    wide = max(map(len, marks))
    gains = [f"{gain} {mark:<{wide}}" for gain, mark in zip(gains, marks, strict=True)]

    def numbers(key: str, value: Callable[[Row], str]) -> Column:
        return Column(say(f"column.{key}", lang), [value(row) for row in rows])

    knn = numbers("knn", lambda row: "-" if row.knn is None else f"{row.knn:.2f}")
    has_knn = any(row.knn is not None for row in rows)
    by_embedding = comparison.recommendation.goal == "embedding"
    columns = [
        Column(f" {say('column.method', lang)}", [f" {row.method}" for row in rows], left=True),
        Column(say("column.fitted", lang), [say(f"word.{row.fitted}", lang) for row in rows], left=True),
        numbers("gain", lambda row: gains[rows.index(row)]),
        *([knn] if has_knn and by_embedding else []),
        numbers("log_px", lambda row: f"{row.log_px.value:.1f}"),
        numbers("kl", lambda row: f"{row.kl:.1f}"),
        numbers("units", lambda row: f"{row.active_units:.0f}"),
        numbers("samples", lambda row: short(row.samples)),
        numbers("fit_s", lambda row: "<1" if row.fit_seconds < 1 else f"{row.fit_seconds:.0f}"),
    ]
    return [*columns, knn] if has_knn and not by_embedding else columns


def _marks(comparison: Comparison, row: Row) -> str:
    marks = "<" if row.key == comparison.recommendation.key else ""
    marks += ("b" if row.is_bound else "") + ("a" if row.n_annealed else "")
    return marks + ("!" if row.reliability > GATE_SHARE else "")


def _signed(value: float, decimals: int) -> str:
    """With its sign, but for what rounds to zero."""
    text = f"{value:+.{decimals}f}"
    return text if text.strip("+-0.") else text[1:]


def short(value: float) -> str:
    """Three figures, at most two decimals."""
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}" if abs(value) < 100 else f"{value:.0f}"


def _shown(columns: Sequence[Column], width: int) -> tuple[int, int]:
    """How many columns fit, and how far apart."""
    for count in range(len(columns), 3, -1):
        for gap in (2, 1):
            if sum(column.width for column in columns[:count]) + gap * (count - 1) <= width:
                return count, gap
    return min(3, len(columns)), 1


def fitting(columns: Sequence[Column], width: int) -> list[str]:
    """The table, without the columns at the right for which there is no room."""
    count, gap = _shown(columns, width)
    cells = [column.lines() for column in columns[:count]]
    return [(" " * gap).join(parts).rstrip() for parts in zip(*cells, strict=True)]


def joined(feet: Sequence[str], width: int) -> list[str]:
    """Footnotes side by side where they fit."""
    lines = [""]
    for foot in feet:
        longer = f"{lines[-1]}    {foot}" if lines[-1] else f" {foot}"
        if len(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(f" {foot}")
    return [part for line in lines for part in wrapped(line, width, indent="   ")] if lines[0] else []
