"""The verdict of a comparison in sentences: the terminal's last lines and the report's head."""

from __future__ import annotations

from latentfit.comparison.result import Comparison, Row
from latentfit.diagnosis.catalogue import say
from latentfit.report.view import unit_words

#: below this many training rows, small gains cannot be told from noise, and the reader is told so
FEW_ROWS = 2000


def headline(comparison: Comparison, lang: str = "en") -> str:
    """The recommendation in one or two sentences: what N(0, I) costs, at least, and what to use."""
    verdict, row = comparison.recommendation, comparison.recommended
    unit = units(comparison, lang)["unit"]
    best = row_of(comparison, verdict.best_key) or row
    if verdict.verdict == "use":
        same = row.key == best.key
        return say(
            f"verdict.use.{row.fitted}" + (".best" if same else ""),
            lang,
            gain=verdict.gain if verdict.gain is not None else row.gain,
            unit=unit,
            method=row.method,
            best=best.method,
            best_gain=best.gain,
        )
    challengers = [r for r in comparison.rows if r.gain is not None and r.key != "standard"]
    if best.gain is None and challengers:
        best = max(challengers, key=lambda r: float(r.gain or 0.0))
    jointly = any(r.fitted == "jointly" for r in challengers)
    if best.gain is None or (verdict.verdict == "change_nothing" and not jointly):
        return say("verdict.change_nothing.frozen", lang, gap=comparison.prior_gap, unit=unit)
    return say(f"verdict.{verdict.verdict}", lang, best=best.method, best_gain=best.gain, unit=unit)


def verdict_lines(comparison: Comparison, lang: str = "en") -> list[str]:
    """Every sentence of the verdict, the headline first; each stands on a line of its own."""
    return [headline(comparison, lang), *evidence(comparison, lang)]


def evidence(comparison: Comparison, lang: str = "en") -> list[str]:
    """What stands under the headline: test rows, other goals, the way without retraining, caveats."""
    setting, verdict, row = comparison.setting, comparison.recommendation, comparison.recommended
    words = units(comparison, lang)
    lines = []
    if verdict.test_gain is not None:
        n = setting.splits.get("test", 0)
        lines.append(say("verdict.test", lang, n=n, units=words["units"], gain=verdict.test_gain))
    lines += other_goals(comparison, lang)
    without = row_of(comparison, verdict.without_training or "")
    if without is not None and without.gain is not None and without.key != row.key:
        lines.append(say("verdict.without_training", lang, method=without.method, gain=without.gain))
    if setting.n_seeds == 1:
        lines.append(say("verdict.one_seed", lang))
    train = setting.splits.get("train", 0)
    if verdict.verdict != "use" and 0 < train < FEW_ROWS:
        command = "latentfit compare mnist --quick" if setting.data == "digits" else "--n-seeds 10"
        lines.append(say("verdict.few_rows", lang, n=train, units=words["units"], command=command))
    return lines


def other_goals(comparison: Comparison, lang: str = "en") -> list[str]:
    """One sentence for each goal that was not chosen by: the same choice, or which other."""
    verdict, lines = comparison.recommendation, []
    for goal in ("likelihood", "samples", "embedding"):
        if goal == verdict.goal or (goal == "embedding" and all(r.knn is None for r in comparison.rows)):
            continue
        other = row_of(comparison, verdict.other_goals.get(goal, ""))
        if other is None:
            lines.append(say(f"verdict.same.{goal}", lang))
        else:
            fitted = say(f"word.{other.fitted}", lang)
            lines.append(say(f"verdict.other.{goal}", lang, method=other.method, fitted=fitted))
    return lines


def units(comparison: Comparison, lang: str = "en") -> dict[str, str]:
    """{"unit", "units"}: what a row is called, an image where it is one."""
    return unit_words(comparison.setting.data_shape, lang)


def row_of(comparison: Comparison, key: str) -> Row | None:
    """The leaderboard's row of this key, if it is there."""
    return next((row for row in comparison.rows if row.key == key), None)
