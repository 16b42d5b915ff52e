"""The verdict of a comparison in sentences: the terminal's last lines and the report's head."""

from __future__ import annotations

from latentfit.comparison.result import Comparison, Row
from latentfit.diagnosis.catalogue import say
from latentfit.evaluation.escalation import GATE_SHARE
from latentfit.report.view import unit_words

#: below this many training rows, small gains cannot be told from noise, and the reader is told so
FEW_ROWS = 2000
#: groups below which an interval is mostly its t quantile
FEW_GROUPS = 10


def headline(comparison: Comparison, lang: str = "en") -> str:
    """The recommendation in one or two sentences: what N(0, I) costs, at least, and what to use.

    A method that keeps N(0, I) wins by its training or its posterior: that is not what N(0, I) costs.
    """
    verdict, row = comparison.recommendation, comparison.recommended
    unit = units(comparison, lang)["unit"]
    best = row_of(comparison, verdict.best_key) or row
    if verdict.goal != "likelihood":
        return _headline_by_score(comparison, best, lang)
    if verdict.verdict == "use":
        kind = "kept" if row.keeps_prior else row.fitted
        return say(
            f"verdict.use.{kind}" + (".best" if row.key == best.key else ""),
            lang,
            gain=row.gain,
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


def _headline_by_score(comparison: Comparison, best: Row, lang: str) -> str:
    """The recommendation by sample quality or by the embedding: scores beside those of `standard`."""
    verdict, row = comparison.recommendation, comparison.recommended
    shown = row if verdict.verdict == "use" else best
    return say(
        f"verdict.{verdict.verdict}.{verdict.goal}",
        lang,
        unit=units(comparison, lang)["unit"],
        method=shown.method,
        fitted=say(f"word.{shown.fitted}", lang),
        score=score_of(shown, verdict.goal),
        null_score=score_of(comparison.null, verdict.goal),
        floor=f"{comparison.reconstruction_floor:.2f}",
        gain=shown.gain,
    )


def score_of(row: Row, goal: str) -> str:
    """What a row scores by a goal: nats won, Fréchet distance or 15-NN accuracy."""
    if goal == "likelihood":
        return "0" if row.gain is None else say("report.signed", gain=row.gain)
    value = row.samples if goal == "samples" else row.knn
    return "-" if value is None else f"{value:.2f}"


def verdict_lines(comparison: Comparison, lang: str = "en") -> list[str]:
    """Every sentence of the verdict, the headline first; each stands on a line of its own."""
    return [headline(comparison, lang), *evidence(comparison, lang)]


def evidence(comparison: Comparison, lang: str = "en") -> list[str]:
    """What stands under the headline: test rows, other goals, the way without retraining, caveats."""
    setting, verdict, row = comparison.setting, comparison.recommendation, comparison.recommended
    words = units(comparison, lang)
    lines = []
    lines += _on_test_rows(comparison, lang)
    lines += other_goals(comparison, lang)
    without = row_of(comparison, verdict.without_training or "")
    if without is not None and without.key != row.key:
        score = score_of(without, verdict.goal)
        lines.append(say("verdict.without_training", lang, method=without.method, score=score))
    if setting.n_seeds == 1:
        lines.append(say("verdict.one_seed", lang))
    lines += unreliable(comparison, lang)
    if setting.n_groups and min(setting.n_groups.values()) < FEW_GROUPS:
        lines.append(say("verdict.few_groups", lang, **setting.n_groups))
    train = setting.splits.get("train", 0)
    if verdict.verdict != "use" and 0 < train < FEW_ROWS:
        command = "latentfit compare mnist --quick" if setting.data == "digits" else "--n-seeds 10"
        lines.append(say("verdict.few_rows", lang, n=train, units=words["units"], command=command))
    return lines


def unreliable(comparison: Comparison, lang: str = "en") -> list[str]:
    """That log p(x) of the recommended row, of the best or of N(0, I) cannot be believed, where that is so."""
    keys = {"standard", comparison.recommendation.key, comparison.recommendation.best_key}
    worst = max((row.reliability for row in comparison.rows if row.key in keys), default=0.0)
    if worst <= GATE_SHARE:
        return []
    return [say("report.trust.unreliable", lang, k=comparison.setting.n_importance_samples, share=worst)]


def _on_test_rows(comparison: Comparison, lang: str) -> list[str]:
    """What the recommended row scores where nothing was chosen."""
    verdict, n = comparison.recommendation, comparison.setting.splits.get("test", 0)
    tested = {row.key: row for row in comparison.test_rows}
    row, null = tested.get(verdict.key), tested.get("standard")
    words = {"n": n, "units": units(comparison, lang)["units"]}
    if verdict.test_gain is None:
        return []
    if verdict.goal == "likelihood" or row is None or null is None:
        unsure = verdict.verdict == "use" and not verdict.test_gain.interval[0] > 0
        line = say("verdict.test", lang, **words, gain=verdict.test_gain)
        return [f"{line} {say('verdict.test.unconfirmed', lang)}" if unsure else line]
    scores = {"score": score_of(row, verdict.goal), "null_score": score_of(null, verdict.goal)}
    return [say("verdict.test.score", lang, **words, **scores, gain=verdict.test_gain)]


def other_goals(comparison: Comparison, lang: str = "en") -> list[str]:
    """One sentence for each goal that was not chosen by: the same choice, which other, or that it is open."""
    verdict, lines = comparison.recommendation, []
    for goal, key in verdict.other_goals.items():
        other = row_of(comparison, key or "")
        if other is None:
            lines.append(say(f"verdict.open.{goal}", lang))
        elif other.key == verdict.key:
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
