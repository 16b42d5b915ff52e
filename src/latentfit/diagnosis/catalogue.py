"""Every sentence Latentfit shows, by key and language: findings, verdicts, terminal, report.

`say(key, lang, **parameters)` fills a sentence; `keys(prefix)` lists what there is; `parameters(key)` what a
sentence needs. The sentences are in `sentences_en.py` and `sentences_vi.py`, one entry per key, with
identical placeholders. Groups of keys:

    unit.*  word.*  status.*  method.*      words: say("method.mixture") -> "a mixture of Gaussians"
    finding.CODE.name | .STATUS | .remedy   one finding; `finding_sentence(finding)` picks the sentence
    verdict.*                               the recommendation; `latentfit.report.verdict_lines` composes it
    terminal.*  column.*                    the command line
    report.*  glossary.*                    the HTML report

The parameters, the same word everywhere:

    unit, units          "image", "images": say("unit.image", lang), say("unit.images", lang)
    gain, best_gain      Estimate, nats per row; `{gain:+}` prints it with its sign
    gap                  Estimate, nats per row; always stands behind "at least"
    share                a float in [0, 1]; printed as a per cent
    kl, kl_weight        floats: mean KL in nats per row, the KL weight reached
    step, steps, k, n    integers: training steps, importance samples, rows
    active, total        active units (float: a mean over seeds) and all units
    method, best, key    names of methods and rows, as users type them
    duration, left       text, "2 min 20 s"
    command              text, a command line to type

Parameters of the findings (`Finding.parameters`; all may carry more, which is ignored):

    LF-TRAIN-01            ok: step | know: kl_weight | improve, fix: slope (nats per row), steps
    LF-DECODER-01          ok, know: likelihood | ok.scale: likelihood, scale | improve, fix: scale, kl_weight
                           (the effective beta)
    LF-COLLAPSE-01         ok, know, small, improve, fix: active, total
    LF-INFERENCE-01        ok, know, small, improve, fix: gap, k, unit
    LF-PRIOR-01            ok, know, small, improve, fix: gap, share, unit
    LF-PRIOR-02            ok, know, small: gap, unit
    LF-HOLES-01            ok, know, small, improve, fix: share
    LF-LATENTS-SATURATED   know: kl, log_n

A parameter `variant` picks the sentence `finding.CODE.STATUS.VARIANT` where it exists.
"""

from __future__ import annotations

import string
from typing import Any

from latentfit.diagnosis.findings import Finding
from latentfit.diagnosis.sentences_en import SENTENCES as ENGLISH
from latentfit.diagnosis.sentences_vi import SENTENCES as VIETNAMESE
from latentfit.errors import InputError
from latentfit.evaluation.estimate import Estimate

LANGUAGES: dict[str, dict[str, str]] = {"en": ENGLISH, "vi": VIETNAMESE}

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
    return [key for key in ENGLISH if key.startswith(prefix)]


def parameters(key: str, lang: str = "en") -> set[str]:
    """The names of the placeholders of a sentence.

    >>> sorted(parameters("verdict.test"))
    ['gain', 'n', 'units']
    """
    parsed = _FORMATTER.parse(_sentences(lang)[key])
    return {name for _, name, _, _ in parsed if name}


def finding_name(finding: Finding, lang: str = "en") -> str:
    """The short name of what was looked at: "training", "prior"."""
    return say(f"finding.{finding.code}.name", lang)


def finding_sentence(finding: Finding, lang: str = "en") -> str:
    """The sentence of a finding, for its status and, where there is one, its variant.

    >>> finding_sentence(Finding("LF-COLLAPSE-01", "ok", {"active": 11, "total": 16}))
    '11 of 16 units active'

    Raises:
        InputError: no sentence for this code and status, or a parameter is missing.
    """
    key = f"finding.{finding.code}.{finding.status}"
    variant = f"{key}.{finding.parameters.get('variant', '')}"
    values = {"unit": say("unit.row", lang), **finding.parameters}
    return say(variant if variant in ENGLISH else key, lang, **values)


def finding_remedy(finding: Finding, lang: str = "en") -> str:
    """What to do about a finding: one sentence, empty where there is nothing to do."""
    key = f"finding.{finding.code}.remedy"
    return say(key, lang) if finding.status != "ok" and key in ENGLISH else ""


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
