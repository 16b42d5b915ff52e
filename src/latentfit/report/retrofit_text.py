"""A retrofit as text of at most 80 columns: the ladder, what was kept and why, what it wins; for notebooks too."""

from __future__ import annotations

import html

from latentfit.diagnosis.catalogue import groups_sentence, keys, say
from latentfit.evaluation.estimate import Estimate
from latentfit.evaluation.ladder import NOTHING
from latentfit.report.text import Column, fitting, wrapped
from latentfit.report.view import (
    bits_per_dimension,
    estimate,
    percent,
    prior_name,
    seconds,
    shape_words,
    short,
    unit_words,
)
from latentfit.retrofitting import Retrofit, RungRow

WIDTH = 80
#: characters that the ladder's last column has at least
NARROWEST = 10
#: nats over the kept rung that are not worth a number
NO_MORE = 0.005


def retrofit_text(fix: Retrofit, lang: str = "en", width: int = WIDTH) -> str:
    """The ladder and the verdict in lines of at most `width` characters."""
    s, words = fix.setting, words_of(fix, lang)
    title = f"{say('retrofit.title', lang, model=' '.join(s.model.split()))} ({what_line(fix, lang)})"
    caption = say(f"retrofit.caption.{s.chose}", lang, fit=s.n_fit, selection=s.n_selection, **words)
    lines = [*wrapped(title, width, indent="  "), *wrapped(caption, width), "", *_ladder(fix, lang, width), ""]
    for sentence in [verdict(fix, lang), *evidence(fix, lang)]:
        lines += wrapped(sentence, width)
    return "\n".join(lines)


def retrofit_html(fix: Retrofit, lang: str = "en") -> str:
    """The retrofit as a notebook shows it: the ladder and the verdict, everything escaped, no script."""
    columns = ladder_columns(fix, lang)
    head = "".join(f"<th>{_text(column.heading)}</th>" for column in columns)
    body = []
    for i, row in enumerate(in_order(fix)):
        cells = (f'<td style="text-align:{"left" if c.left else "right"}">{_text(c.cells[i])}</td>' for c in columns)
        body.append(f"<tr{' style=font-weight:bold' if row.kept else ''}>{''.join(cells)}</tr>")
    lines = "".join(f"<p>{_text(line)}</p>" for line in evidence(fix, lang))
    return (
        f"<p><b>{_text(verdict(fix, lang))}</b></p><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table>{lines}"
    )


def words_of(fix: Retrofit, lang: str) -> dict[str, str]:
    """{"unit", "units", "p"}: what a row and the model's own prior are called."""
    return {**unit_words(fix.setting.data_shape, lang), "p": prior_name(fix.ladder, lang)}


def in_order(fix: Retrofit) -> list[RungRow]:
    """The rungs by size, the model's own prior first."""
    return sorted(fix.rows, key=lambda row: (row.name != NOTHING, row.n_parameters))


def name_of(fix: Retrofit, row: RungRow, lang: str = "en") -> str:
    """A rung's name; the model's own prior by what it is."""
    return prior_name(fix.ladder, lang) if row.name == NOTHING else row.name


def verdict(fix: Retrofit, lang: str = "en") -> str:
    """What was kept, and why."""
    words = words_of(fix, lang)
    if fix.changed:
        goal = "retrofit.kept.samples" if fix.setting.goal == "samples" else "retrofit.kept"
        return say(goal, lang, name=fix.kept.name)
    worth = [row for row in fix.rows if row.failed and row.gap.interval[0] > 0]
    if worth and fix.ladder.chosen.name != NOTHING:
        names = dict.fromkeys(guard_name(name, lang) for row in worth for name in row.failed)
        return say("retrofit.kept.guards", lang, guards=", ".join(names), **words)
    return say("retrofit.kept.nothing", lang, **words)


def evidence(fix: Retrofit, lang: str = "en") -> list[str]:
    """What was won and on which rows, holes before and after, that nothing else was touched."""
    s, words, lines = fix.setting, words_of(fix, lang), []
    if fix.changed:
        lines.append(gain_line(fix, lang))
        if fix.log_px_gain is not None:
            lines.append(say("retrofit.log_px", lang, n=s.n_scored, k=s.k, gain=fix.log_px_gain, **words))
        lines.append(say("retrofit.holes", lang, before=fix.holes[0], after=fix.holes[1]))
    return lines + caveats(fix, lang)


def caveats(fix: Retrofit, lang: str = "en") -> list[str]:
    """What there is to know beside the numbers: of the rows, of a fine-tuning, of the weights and the embedding."""
    untouched = fix.weights_unchanged and fix.sha256[1] and fix.finetuned is None
    lines = [*groups_line(fix, lang), *doubts(fix, lang), *finetuned_lines(fix, lang), weights_line(fix, lang)]
    return lines + [say("retrofit.encoder", lang)] * bool(untouched)


def finetuned_lines(fix: Retrofit, lang: str = "en") -> list[str]:
    """What training a copy on added, what of it is owed to the prior, and that codes have moved."""
    found = fix.finetuned
    if found is None:
        return []
    arms = {"before": found["before"].active, "after": found["fine-tuned"].active, "steps": found["control"].steps}
    lines = [
        say("retrofit.finetuned", lang, added=found.added, owed=found.owed, **arms, **words_of(fix, lang)),
        say("retrofit.finetuned.kept" if found.won.name == "fine-tuned" else "retrofit.finetuned.dropped", lang),
    ]
    if found.revival.dead > found.revival.done:
        lines.append(say("retrofit.finetuned.dead", lang, n=found.revival.dead))
    return lines


def groups_line(fix: Retrofit, lang: str = "en") -> list[str]:
    """How many groups of related rows measured, where there are any."""
    n = fix.setting.n_groups
    return [f"{groups_sentence(n, lang)}."] if n else []


def doubts(fix: Retrofit, lang: str = "en") -> list[str]:
    """What rows and weights take from the numbers; empty where test rows both chose and measured, each its own."""
    s = fix.setting
    lines = [say("retrofit.centre", lang, n=s.n_draws)] * (s.n_draws > 1)
    if not s.separate:
        return [*lines, say("retrofit.cross", lang, fit=s.n_fit, selection=s.n_selection, test=s.n_test)]
    return lines + [say("retrofit.chose.train", lang, test=s.n_test, **words_of(fix, lang))] * (s.chose == "train")


def gain_line(fix: Retrofit, lang: str = "en") -> str:
    """The gain on the test rows, in nats, as a share of the KL, in bits per dimension."""
    return say(
        "retrofit.gain",
        lang,
        n=fix.setting.n_test,
        gain=fix.gain,
        share=share_of_kl(fix),
        kl=f"{fix.kl.value:.1f}",
        bits=bits_per_dimension(fix.gain.value, fix.setting.data_shape),
        **words_of(fix, lang),
    )


def share_of_kl(fix: Retrofit) -> float:
    """The gain as a share of the mean KL."""
    return fix.gain.value / fix.kl.value if fix.kl.value > 0 else 0.0


def weights_line(fix: Retrofit, lang: str = "en") -> str:
    """That the weights are, byte for byte, what they were; or that they are not; or that there are none."""
    if not any(fix.sha256):
        return say("retrofit.weights.none", lang)
    before, after = (digest[:12] for digest in fix.sha256)
    if fix.weights_unchanged:
        return say("retrofit.weights", lang, sha=after)
    return say("retrofit.weights.changed", lang, before=before, after=after)


def what_line(fix: Retrofit, lang: str = "en") -> str:
    """Likelihood, size of a row, latent units."""
    s, n = fix.setting, 1
    for size in s.latent_shape:
        n *= size
    if not s.likelihood:
        return say("diagnosis.what.latents", lang, n=n)
    return say("diagnosis.what", lang, likelihood=s.likelihood, shape=shape_words(s.data_shape, lang), n=n)


def guard_name(name: str, lang: str = "en") -> str:
    """What a guard looks for, in a word."""
    return say(f"guard.{name}", lang) if keys(f"guard.{name}") else name


def guard_text(name: str, numbers: dict[str, float], lang: str = "en") -> str:
    """What a guard found, in a sentence."""
    if keys(f"guard.{name}.text"):
        return say(f"guard.{name}.text", lang, **numbers)
    return f"{name}: " + ", ".join(f"{key} {value:.3g}" for key, value in numbers.items())


def kept_mark(fix: Retrofit, row: RungRow, lang: str = "en") -> str:
    """<- for the kept rung, else why a rung that wins more was not kept."""
    if row.kept:
        return "<-"
    if row.failed:
        return say("retrofit.failed", lang, guards=", ".join(guard_name(name, lang) for name in row.failed))
    if row.name == NOTHING or row.gap.value <= fix.kept.gap.value:
        return ""
    won = fix.ladder[row.name].per_row - fix.ladder[fix.kept.name].per_row
    difference = Estimate.of(won, groups=fix.ladder.groups)
    if difference.value < NO_MORE:
        return say("retrofit.no_more", lang, kept=name_of(fix, fix.kept, lang))
    return say("retrofit.not_kept", lang, difference=difference)


def ladder_columns(fix: Retrofit, lang: str = "en") -> list[Column]:
    """The ladder's columns; one that is empty is left out."""
    rows = in_order(fix)

    def column(key: str, cells: list[str], left: bool = False) -> Column:
        return Column(say(f"column.{key}", lang), cells, left)

    own = [row.name == NOTHING for row in rows]
    gaps = [str(row.gap).partition(" ± ") for row in rows]
    columns = [
        column("rung", [f" {name_of(fix, row, lang)}" for row in rows], left=True),
        column("gap", ["0" if is_own else estimate(row.gap) for is_own, row in zip(own, rows, strict=True)]),
        column("error", ["-" if is_own else error for is_own, (_, _, error) in zip(own, gaps, strict=True)]),
    ]
    if any(row.samples is not None for row in rows):
        columns.append(column("samples", ["" if row.samples is None else short(row.samples.value) for row in rows]))
    if any(row.holes is not None for row in rows):
        columns.append(column("holes", ["" if row.holes is None else percent(row.holes) for row in rows]))
    fits = ["-" if is_own else f"{seconds(row.fit_seconds)} s" for is_own, row in zip(own, rows, strict=True)]
    marks = [kept_mark(fix, row, lang) for row in rows]
    return [*columns, column("fit", fits), column("kept", marks, left=True)]


def samples_foot(fix: Retrofit, lang: str = "en") -> str:
    """What the column of samples means; empty where there is none."""
    if fix.samples is None:
        return ""
    return say("retrofit.foot.samples", lang, floor=short(fix.samples[2].value))


def _ladder(fix: Retrofit, lang: str, width: int) -> list[str]:
    columns = ladder_columns(fix, lang)
    columns[0] = Column(f" {columns[0].heading}", columns[0].cells, True)
    *columns, marks = columns
    while (room := width - sum(column.width + 2 for column in columns)) < NARROWEST and len(columns) > 2:
        columns.pop()  # what was kept, and why not, stays in a narrow terminal
    # reasons may be long: they go on in lines of their own
    broken = [wrapped(cell, room) for cell in marks.cells]
    columns.append(Column(marks.heading, [parts[0] for parts in broken], True))
    lines = fitting(columns, width)
    out = lines[:1]
    for line, parts in zip(lines[1:], broken, strict=True):
        out += [line, *(" " * (width - room) + part for part in parts[1:])]
    foot = samples_foot(fix, lang)
    return out + (wrapped(f" {foot}", width, indent="   ") if foot else [])


def _text(text: str) -> str:
    return html.escape(str(text), quote=True)
