"""A diagnosis as text of at most 80 columns, as a markdown table, as a table in a notebook."""

from __future__ import annotations

import html
import textwrap

from latentfit.diagnosis.catalogue import (
    clause,
    finding_change,
    finding_name,
    finding_price,
    finding_remedy,
    finding_sentence,
    finding_status,
    headline,
    say,
)
from latentfit.diagnosis.findings import Finding
from latentfit.diagnosis.result import Diagnosis
from latentfit.report.text import duration, wrapped
from latentfit.report.view import bits_per_dimension, prior_name, shape_words, unit_words

WIDTH, LABEL = 80, 12
#: findings that a fitted prior mends, and what then decides
RETROFITTED = {"LF-PRIOR-01": "", "LF-HOLES-01": "", "LF-HOLES-02": "samples"}


def diagnosis_text(dx: Diagnosis, lang: str = "en", width: int = WIDTH) -> str:
    """The diagnosis in lines of at most `width` characters: setting, findings, budget, what it means, what to do."""
    words = words_of(dx, lang)
    lines = _head(dx, lang, width)
    lines += ["", *_findings(dx, lang, words, width), ""]
    notes = [budget_line(dx, lang), *measured(dx, lang), *missing(dx, lang)]
    for note in notes:
        lines += wrapped(note, width, indent="  ") if note else []
    lines += ["", *wrapped(head_sentence(dx, lang), width)]
    for label, text in advice(dx, lang):
        for line in wrapped(text, width - LABEL):
            lines.append(f"{label:<{LABEL}}{line}")
            label = ""
    return "\n".join(lines)


def diagnosis_markdown(dx: Diagnosis, lang: str = "en") -> str:
    """The findings as a markdown table: evidence, status, remedy, price, gain, what would change the verdict."""
    words = words_of(dx, lang)
    names = ("finding", "evidence", "status", "remedy", "price", "gain", "change")
    heads = [say(f"diagnosis.markdown.{name}", lang) for name in names]
    rows = [heads, ["---"] * len(heads)]
    for finding in dx.findings:
        rows.append(
            [
                f"{finding_name(finding, lang)} `{finding.code}`",
                finding_sentence(finding, lang, **words),
                finding_status(finding, lang, **words),
                finding_remedy(finding, lang, **words),
                finding_price(finding, lang, **words),
                "" if finding.gain is None or not finding.grave else gain_text(dx, finding, lang),
                finding_change(finding, lang, **words),
            ]
        )
    return "\n".join("| " + " | ".join(map(_cell, row)) + " |" for row in rows) + "\n"


def diagnosis_html(dx: Diagnosis, lang: str = "en") -> str:
    """The diagnosis as a notebook shows it: a table and what to do next, everything escaped, no script."""
    words = words_of(dx, lang)
    rows = []
    for finding in dx.findings:
        colour = "#b4531f" if finding.grave else "#8a5a00" if finding.status == "know" else "#0b6b74"
        cells = [
            f"<td>{_text(finding_name(finding, lang))}</td>",
            f"<td>{_text(finding_sentence(finding, lang, **words))}</td>",
            f'<td style="color:{colour};font-weight:600">{_text(finding_status(finding, lang, **words))}</td>',
        ]
        rows.append("<tr>" + "".join(cells).replace("<td", '<td class="latentfit"') + "</tr>")
    notes = [budget_line(dx, lang), *missing(dx, lang)]
    advised = "".join(f"<dt><b>{_text(label)}</b></dt><dd>{_text(text)}</dd>" for label, text in advice(dx, lang))
    return (
        "<style>td.latentfit { text-align: left !important; }</style>"
        f"<p><b>{_text(head_sentence(dx, lang))}</b></p>"
        f"<table><caption>{_text(' '.join(part.strip() for part in _head(dx, lang, WIDTH)))}</caption>"
        f"<tbody>{''.join(rows)}</tbody></table>"
        + "".join(f"<p>{_text(n)}</p>" for n in notes if n)
        + f"<dl>{advised}</dl>"
    )


def words_of(dx: Diagnosis, lang: str) -> dict[str, str]:
    """{"unit", "units", "p"}: what a row and the model's prior are called."""
    return {**unit_words(dx.setting.data_shape, lang), "p": prior_name(dx.ladder, lang)}


def head_sentence(dx: Diagnosis, lang: str = "en") -> str:
    """What the diagnosis comes to, in one or two sentences."""
    words, first = words_of(dx, lang), dx.first
    if first is not None:
        text = headline(first, lang, prior_gap=dx.prior_gap, **words)
        return text[:1].upper() + text[1:]  # "the model's vamp prior" may begin it
    of_prior = {finding.status for finding in dx.findings if finding.code.startswith("LF-PRIOR")}
    key = next((status for status in ("small", "know") if status in of_prior), "none")
    text = say(f"headline.{'unclear' if key == 'know' else key}", lang, prior_gap=dx.prior_gap, **words)
    return text[:1].upper() + text[1:]


def advice(dx: Diagnosis, lang: str = "en") -> list[tuple[str, str]]:
    """(label, sentence): what to do about the first finding, its price, its gain, what would change the verdict."""
    words, finding = words_of(dx, lang), dx.first
    if finding is None:
        quiet = [f for f in dx.findings if f.code.startswith("LF-PRIOR")]
        return [(say("label.change", lang), finding_change(f, lang, **words)) for f in quiet]
    remedy = finding_remedy(finding, lang, **words)
    if finding.code in RETROFITTED:
        remedy += f" {retrofit_call(dx, RETROFITTED[finding.code])}"
    return [
        (say("label.next", lang), remedy),
        (say("label.price", lang), finding_price(finding, lang, **words)),
        (say("label.gain", lang), gain_text(dx, finding, lang)),
        (say("label.change", lang), finding_change(finding, lang, **words)),
    ]


def retrofit_call(dx: Diagnosis, goal: str = "") -> str:
    """What to type next: the command where a command made the diagnosis, else the call."""
    command = dx.setting.retrofit_command
    if command:
        return command + (f" --goal {goal}" if goal else "")
    return f"latentfit.retrofit(model, X_train{f', goal={goal!r}' if goal else ''})"


def gain_text(dx: Diagnosis, finding: Finding, lang: str = "en") -> str:
    """What mending a finding is expected to win; of a prior, also as a share of the KL and in bits per dimension."""
    unit = unit_words(dx.setting.data_shape, lang)["unit"]
    if finding.gain is None:
        return say("diagnosis.gain.unknown", lang)
    if not finding.code.startswith("LF-PRIOR"):
        return say("diagnosis.gain", lang, gain=finding.gain, unit=unit)
    return say(
        "diagnosis.gain.at_least",
        lang,
        gain=finding.gain,
        unit=unit,
        share=dx.share_of_kl,
        kl=f"{dx.kl.value:.1f}",
        bits=bits_per_dimension(finding.gain.value, dx.setting.data_shape),
    )


def rows_line(dx: Diagnosis, lang: str = "en") -> list[str]:
    """Which rows judged and which fitted; where they are the same rows, what that means; whose weights."""
    s, units = dx.setting, unit_words(dx.setting.data_shape, lang)["units"]
    lines = [say("diagnosis.rows", lang, test=s.n_test, train=s.n_train, units=units)]
    if not s.separate:
        lines = [say("diagnosis.rows.all", lang, test=s.n_test, units=units), say("diagnosis.rows.cross", lang)]
    return lines + [say("diagnosis.centre", lang, n=s.n_draws)] * (s.n_draws > 1)


def budget_line(dx: Diagnosis, lang: str = "en") -> str:
    """The error budget in one line; empty where it was not measured."""
    if dx.budget is None:
        return ""
    parts = []
    for name, value in dx.budget.parts.items():
        text = say("report.error.at_least", lang, gap=value) if name == "prior" else value
        parts.append(f"{say(f'report.error.{name}', lang)} {text}")
    if dx.budget.rest is not None:
        parts.append(f"{say('report.error.rest', lang)} {dx.budget.rest}")
    return say("diagnosis.budget", lang, unit=unit_words(dx.setting.data_shape, lang)["unit"], parts=" | ".join(parts))


def measured(dx: Diagnosis, lang: str = "en") -> list[str]:
    """Numbers beside the findings: log p(x), effective beta, intrinsic dimension, shared neighbours."""
    s, words, lines = dx.setting, unit_words(dx.setting.data_shape, lang), []
    if dx.log_px is not None:
        key = "diagnosis.log_px" + (".ais" if s.estimator == "ais" else "")
        line = say(key, lang, log_px=dx.log_px, n=s.n_scored, k=s.k, **words)
        mended = dx.budget is not None and dx.budget.decoder is not None  # log p(x) is then at the residuals' own sigma
        if mended and dx.sigma is not None:
            line += say("diagnosis.log_px.calibrated", lang, sigma=dx.sigma[1])
        lines.append(line)
    if dx.effective_beta is not None and abs(dx.effective_beta - 1) > 0.005:
        lines.append(say("diagnosis.beta", lang, formula=dx.beta_formula))
    if dx.dimension is not None:
        lines.append(say("diagnosis.dimension", lang, dimension=dx.dimension))
    if dx.overlap is not None:
        lines.append(say("diagnosis.overlap", lang, overlap=dx.overlap.value))
    return lines


def missing(dx: Diagnosis, lang: str = "en") -> list[str]:
    """What could not be measured, each with the reason."""
    return [
        say("diagnosis.missing", lang, name=name, reason=clause(reason, lang))
        for name, reason in dx.setting.missing.items()
    ]


def what_line(dx: Diagnosis, lang: str = "en") -> str:
    """Likelihood, size of a row, latent units."""
    s, n = dx.setting, dx.active_units.total
    if not s.likelihood:
        return say("diagnosis.what.latents", lang, n=n)
    return say("diagnosis.what", lang, likelihood=s.likelihood, shape=shape_words(s.data_shape, lang), n=n)


def _head(dx: Diagnosis, lang: str, width: int) -> list[str]:
    s = dx.setting
    title = f"{say('diagnosis.title', lang, model=' '.join(s.model.split()))} ({what_line(dx, lang)})"
    took = say("diagnosis.time", lang, duration=duration(s.seconds, lang), device=s.device)
    if dx.probe is not None:
        alone, probe = (duration(v, lang) for v in (s.seconds - dx.probe.seconds, dx.probe.seconds))
        took = say("diagnosis.time.probe", lang, duration=alone, probe=probe, device=s.device)
    if len(title) + 2 + len(took) <= width:
        lines = [title.ljust(width - len(took)) + took]
    else:
        lines = [*wrapped(title, width, indent="  "), took.rjust(width)]
    return lines + [line for part in rows_line(dx, lang) for line in wrapped(part, width)]


def _findings(dx: Diagnosis, lang: str, words: dict[str, str], width: int) -> list[str]:
    """A number, the name, the sentence, and at the right edge how grave it is."""
    lines = []
    names = [finding_name(finding, lang) for finding in dx.findings]
    first = 3 + max([9, *map(len, names)]) + 2
    for number, (name, finding) in enumerate(zip(names, dx.findings, strict=True), start=1):
        status = finding_status(finding, lang, **words)
        # a long status stands under the end of its sentence, a short one beside it
        room = width - first - min(len(status), 10) - 2
        body = textwrap.wrap(finding_sentence(finding, lang, **words), room) or [""]
        head = f"{number:>2} {name}".ljust(first)
        shown = [head + body[0], *(" " * first + more for more in body[1:])]
        if len(shown[-1]) + 2 + len(status) > width:
            shown.append("")
        at = len(shown) - 1 if len(status) > 10 else 0
        shown[at] = shown[at].ljust(width - len(status)) + status
        lines += shown
    return [line.rstrip() for line in lines]


def _cell(text: str) -> str:
    return " ".join(html.escape(str(text), quote=False).replace("|", "\\|").split())


def _text(text: str) -> str:
    return html.escape(str(text), quote=True)
