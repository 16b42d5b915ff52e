"""Every sentence Latentfit shows, by key and language: findings, verdicts, terminal, report.

`say(key, lang, **parameters)` fills a sentence; `keys(prefix)` lists what there is; `parameters(key)` what a
sentence needs. The sentences are in `sentences_en.py`, `sentences_report_en.py` and their sisters, one entry per key,
with identical placeholders. Groups of keys:

    unit.*  word.*  label.*  status.*  method.*     words: say("method.mixture") -> "a mixture of Gaussians"
    finding.CODE.name | .STATUS | .remedy | .price | .change     of one finding: `finding_sentence(finding)`, ...
    headline.CODE                           the head of a diagnosis whose first finding this is
    verdict.*                               the recommendation; `latentfit.report.verdict_lines` composes it
    diagnosis.*  retrofit.*  guard.*        a diagnosis and a retrofit as text
    terminal.*  column.*                    the command line
    clause.*                                what other folders write in English; `clause(text, lang)` translates it
    report.*  glossary.*                    the HTML report
    adapted.*                               of a foreign model; `latentfit.adapters.Understood` says them

The parameters, the same word everywhere:

    unit, units          "image", "images": say("unit.image", lang), say("unit.images", lang)
    p                    the model's own prior: "N(0, I)"
    gain, best_gain      Estimate, nats per row; `{gain:+}` prints it with its sign
    gap                  Estimate, nats per row; always stands behind "at least"
    share                a float in [0, 1]; printed as a per cent
    kl, kl_weight        floats: mean KL in nats per row, the KL weight reached
    step, steps, k, n    integers: training steps, importance samples, rows
    active, total        active units (float: a mean over seeds) and all units
    method, best, key    names of methods and rows, as users type them
    duration, left       text, "2 min 20 s"
    command              text, a command line to type

`Finding.parameters` are made in `verdicts.py`; more than a sentence needs is ignored. A parameter `variant` picks
`finding.CODE.STATUS.VARIANT` (and `.remedy.VARIANT`, `.price.VARIANT`) where it exists.
"""

from __future__ import annotations

import re
import string
from functools import lru_cache
from typing import Any

from latentfit.adapters.understood import LANGUAGES as ADAPTED
from latentfit.adapters.understood import Understood
from latentfit.diagnosis.findings import Finding
from latentfit.diagnosis.sentences_en import SENTENCES as ENGLISH
from latentfit.diagnosis.sentences_report_en import SENTENCES as ENGLISH_REPORT
from latentfit.diagnosis.sentences_report_vi import SENTENCES as VIETNAMESE_REPORT
from latentfit.diagnosis.sentences_vi import SENTENCES as VIETNAMESE
from latentfit.errors import InputError
from latentfit.evaluation.estimate import FEWEST_GROUPS, Estimate

LANGUAGES: dict[str, dict[str, str]] = {
    "en": {**ENGLISH, **ENGLISH_REPORT, **ADAPTED["en"]},
    "vi": {**VIETNAMESE, **VIETNAMESE_REPORT, **ADAPTED["vi"]},
}

# what a console without utf-8 can show; Vietnamese letters have no fair ASCII form and are left alone
_ASCII = str.maketrans({"±": "+-", "→": "->", "×": "x", "−": "-", "·": "|", "“": '"', "”": '"', "’": "'", "…": "..."})


class _Formatter(string.Formatter):
    """`str.format` whose bare numbers are short and whose `+` also signs an Estimate."""

    def format_field(self, value: Any, format_spec: str) -> str:
        if format_spec == "+" and isinstance(value, Estimate | float | int):
            text = str(value) if isinstance(value, Estimate) else f"{value:.1f}"
            return text if text.startswith("-") else f"+{text}"
        if not format_spec and isinstance(value, float):
            return f"{value:.3g}"
        if format_spec.endswith("%"):
            return format(value, format_spec).replace("%", " %")
        return super().format_field(value, format_spec)


_FORMATTER = _Formatter()


def say(key: str, lang: str = "en", **parameters: Any) -> str:
    """The sentence `key` in a language, its placeholders filled.

    >>> from latentfit.evaluation.estimate import Estimate
    >>> say("verdict.test", n=359, units=say("unit.images"), gain=Estimate(1.52, 0.21, (1.1, 1.9)))
    'On the 359 test images, opened once: +1.5 ± 0.2.'
    >>> say("report.see.title", "vi")
    'Nhìn tận mắt'

    Raises:
        InputError: an unknown language or key, or a parameter that the sentence needs and did not get.
    """
    sentence = _sentences(lang).get(key)
    if sentence is None:
        raise InputError(f"No sentence {key!r}; latentfit.diagnosis.catalogue.keys() lists them all.")
    try:
        return _FORMATTER.vformat(sentence, (), parameters)
    except KeyError as error:
        got = ", ".join(sorted(parameters)) or "none"
        raise InputError(f"The sentence {key!r} needs the parameter {error.args[0]!r}; got: {got}.") from None
    except (TypeError, ValueError) as error:
        raise InputError(f"The sentence {key!r} cannot be filled with {parameters!r}: {error}.") from None


def keys(prefix: str = "") -> list[str]:
    """The keys that begin with `prefix`, in the order of the English file.

    >>> keys("finding.LF-HOLES-01")[0]
    'finding.LF-HOLES-01.name'
    """
    return [key for key in LANGUAGES["en"] if key.startswith(prefix)]


def parameters(key: str, lang: str = "en") -> set[str]:
    """The names of the placeholders of a sentence.

    >>> sorted(parameters("verdict.test"))
    ['gain', 'n', 'units']
    """
    parsed = _FORMATTER.parse(_sentences(lang)[key])
    return {name for _, name, _, _ in parsed if name}


def counted(word: str, n: int, lang: str = "en") -> str:
    """A number of things.

    >>> counted("method", 1), counted("method", 4)
    ('1 method', '4 methods')
    """
    return say(f"word.{word}" if n == 1 else f"word.{word}s", lang, n=n)


def finding_name(finding: Finding, lang: str = "en") -> str:
    """The short name of what was looked at: "training", "prior"."""
    return say(f"finding.{finding.code}.name", lang)


def finding_status(finding: Finding, lang: str = "en", **words: str) -> str:
    """How grave it is, in a word: "ok", "KNOW THIS", "improve"."""
    own = f"finding.{finding.code}.{finding.status}.status"
    return say(own, lang, **_filled(finding, lang, words)) if own in ENGLISH else say(f"status.{finding.status}", lang)


def finding_sentence(finding: Finding, lang: str = "en", **words: str) -> str:
    """The sentence of a finding, for its status and, where there is one, its variant.

    >>> finding_sentence(Finding("LF-COLLAPSE-01", "ok", {"active": 11, "total": 16}))
    '11 of 16 units active'

    Args:
        finding: with the numbers the sentence needs.
        lang: "en" or "vi".
        words: `unit`, a row's name, and `p`, the name of the model's prior; "row" and "N(0, I)" by default.

    Raises:
        InputError: no sentence for this code and status, or a parameter is missing.
    """
    key = f"finding.{finding.code}.{finding.status}"
    return say(_variant(key, finding) or key, lang, **_filled(finding, lang, words))


def finding_remedy(finding: Finding, lang: str = "en", **words: str) -> str:
    """What to do about a finding: one sentence, empty where there is nothing to do."""
    return "" if finding.status == "ok" else _about(finding, "remedy", lang, words)


def finding_price(finding: Finding, lang: str = "en", **words: str) -> str:
    """What the remedy costs, empty where there is nothing to do."""
    return "" if finding.status == "ok" else _about(finding, "price", lang, words)


def finding_change(finding: Finding, lang: str = "en", **words: str) -> str:
    """What would change the verdict."""
    return _about(finding, "change", lang, words)


def groups_sentence(n: int, lang: str = "en") -> str:
    """That errors are those of n groups of related rows; that so few hold for themselves alone."""
    return say("diagnosis.rows.groups" + ".few" * (n < FEWEST_GROUPS), lang, n=n)


def headline(finding: Finding, lang: str = "en", **words: Any) -> str:
    """The head of a diagnosis in which this is to be mended first."""
    key = f"headline.{finding.code}"
    return say(_variant(key, finding) or key, lang, **_filled(finding, lang, words))


def clause(text: str, lang: str = "en") -> str:
    """What another folder writes in English (the origin of data, the reason for a likelihood), in a language.

    A text of several clauses is translated clause by clause; names and what is not in the catalogue stay.

    >>> clause("digits, 1,797 images 8x8, integers 0..16, from scikit-learn", "vi")
    'digits, 1,797 ảnh 8x8, số nguyên 0..16, từ scikit-learn'
    """
    if lang == "en":
        return text
    for key, pattern in _clauses():
        found = pattern.fullmatch(text)
        if found:
            return say(key, lang, **found.groupdict())
    for mark in ("; ", ", "):
        if mark in text:
            return mark.join(clause(part, lang) for part in text.split(mark))
    return text


def plain(text: str) -> str:
    """Text for a console without utf-8: ± becomes +-, → becomes ->; letters stay.

    >>> plain("1.6 ± 0.2, 97 % → 3 %")
    '1.6 +- 0.2, 97 % -> 3 %'
    """
    return text.translate(_ASCII)


def _sentences(lang: str) -> dict[str, str]:
    if lang not in LANGUAGES:
        raise InputError(f"Unknown language {lang!r}; Latentfit speaks: {', '.join(LANGUAGES)}.")
    return LANGUAGES[lang]


def _variant(key: str, finding: Finding) -> str:
    """The key of the finding's variant where there is such a sentence, else nothing."""
    longer = f"{key}.{finding.parameters.get('variant', '')}"
    return longer if longer in ENGLISH else ""


def _about(finding: Finding, what: str, lang: str, words: dict[str, str]) -> str:
    key = f"finding.{finding.code}.{what}"
    key = _variant(key, finding) or key
    return say(key, lang, **_filled(finding, lang, words)) if key in ENGLISH else ""


def _filled(finding: Finding, lang: str, words: dict[str, Any]) -> dict[str, Any]:
    numbers = finding.parameters.items()
    own = {key: value.text(lang) if isinstance(value, Understood) else value for key, value in numbers}
    return {"unit": say("unit.row", lang), "p": "N(0, I)", **words, **own}


@lru_cache(maxsize=1)
def _clauses() -> list[tuple[str, re.Pattern[str]]]:
    """The English clauses as patterns: a placeholder stands for a word, or, at the end, for the rest."""
    found = []
    for key in keys("clause."):
        parts = [
            re.escape(text) + ("" if name is None else f"(?P<{name}>.+)" if name == "columns" else rf"(?P<{name}>\S+)")
            for text, name, _, _ in _FORMATTER.parse(ENGLISH[key])
        ]
        found.append((key, re.compile("".join(parts))))
    return found
