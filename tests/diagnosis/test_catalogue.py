"""The catalogue: the same keys and placeholders in every language, and sentences that can be filled."""

from __future__ import annotations

import re
import string

import pytest

from latentfit.diagnosis import catalogue
from latentfit.diagnosis.catalogue import (
    finding_name,
    finding_remedy,
    finding_sentence,
    keys,
    parameters,
    plain,
    say,
)
from latentfit.diagnosis.findings import Finding
from latentfit.errors import InputError
from latentfit.evaluation.estimate import Estimate

GAP = Estimate(0.94, 0.11, (0.72, 1.16))

FINDINGS = [
    Finding("LF-TRAIN-01", "ok", {"step": 400}),
    Finding("LF-TRAIN-01", "know", {"kl_weight": 0.25}),
    Finding("LF-TRAIN-01", "know", {"steps": 40, "variant": "short"}),
    Finding("LF-TRAIN-01", "improve", {"slope": 2.1, "steps": 400}),
    Finding("LF-TRAIN-01", "fix", {"slope": 2.1, "steps": 400}),
    Finding("LF-DECODER-01", "ok", {"likelihood": "binomial"}),
    Finding("LF-DECODER-01", "ok", {"likelihood": "normal", "scale": 0.11, "variant": "scale"}),
    Finding("LF-DECODER-01", "know", {"likelihood": "normal"}),
    Finding("LF-DECODER-01", "fix", {"scale": 0.11, "kl_weight": 1.3}),
    *[Finding("LF-COLLAPSE-01", s, {"active": 10.7, "total": 16}) for s in ("ok", "know", "small", "improve", "fix")],
    *[Finding("LF-INFERENCE-01", s, {"gap": GAP, "k": 1024}) for s in ("ok", "know", "small", "improve", "fix")],
    *[Finding("LF-PRIOR-01", s, {"gap": GAP, "share": 0.06}) for s in ("ok", "know", "small", "improve", "fix")],
    *[Finding("LF-PRIOR-02", s, {"gap": GAP}) for s in ("ok", "know", "small")],
    *[Finding("LF-HOLES-01", s, {"share": 0.31}) for s in ("ok", "know", "small", "improve", "fix")],
    Finding("LF-LATENTS-SATURATED", "know", {"kl": 14.2, "log_n": 7.0}),
]


def placeholders(sentence: str) -> set[tuple[str, str]]:
    return {(name, spec or "") for _, name, spec, _ in string.Formatter().parse(sentence) if name is not None}


@pytest.mark.parametrize("lang", [name for name in catalogue.LANGUAGES if name != "en"])
def test_every_language_has_the_same_keys_in_the_same_order(lang):
    assert list(catalogue.LANGUAGES[lang]) == list(catalogue.LANGUAGES["en"])


@pytest.mark.parametrize("lang", [name for name in catalogue.LANGUAGES if name != "en"])
def test_every_language_has_the_same_placeholders(lang):
    different = {
        key: (placeholders(sentence), placeholders(catalogue.LANGUAGES["en"][key]))
        for key, sentence in catalogue.LANGUAGES[lang].items()
        if placeholders(sentence) != placeholders(catalogue.LANGUAGES["en"][key])
    }
    assert not different


@pytest.mark.parametrize("lang", catalogue.LANGUAGES)
def test_no_sentence_is_empty_or_badly_spaced(lang):
    bad = [k for k, s in catalogue.LANGUAGES[lang].items() if not s.strip() or s != s.strip() or "  " in s.strip()]
    assert [key for key in bad if key not in ("terminal.job", "terminal.job.kept")] == []


@pytest.mark.parametrize("lang", catalogue.LANGUAGES)
@pytest.mark.parametrize("finding", FINDINGS, ids=lambda f: f"{f.code}.{f.status}")
def test_every_finding_is_said(finding, lang):
    text = finding_sentence(finding, lang)
    assert finding_name(finding, lang)
    assert not re.search(r"[{}]", text)
    assert len(text) < 110
    assert bool(finding_remedy(finding, lang)) == (finding.status != "ok")


def test_the_list_of_findings_here_covers_every_sentence():
    said = {f"finding.{f.code}.{f.status}" for f in FINDINGS} | {
        f"finding.{f.code}.{f.status}.{f.parameters['variant']}" for f in FINDINGS if "variant" in f.parameters
    }
    said.add("finding.LF-DECODER-01.improve")
    ours = {key for key in keys("finding.") if not key.endswith((".name", ".remedy"))}
    assert ours == said


def test_a_prior_gap_is_always_a_lower_bound():
    for key in [
        *keys("finding.LF-PRIOR"),
        "report.tile.gap.value",
        "report.error.at_least",
        *keys("verdict.change"),
    ]:
        if "gap" in parameters(key):
            assert "at least" in say(key, **dict.fromkeys(parameters(key), GAP) | {"share": 0.1, "unit": "row"})


def test_the_frozen_model_only_speaks_of_itself():
    assert "without training" in finding_sentence(Finding("LF-PRIOR-02", "ok", {"gap": GAP}))
    assert "without training" in say("verdict.change_nothing.frozen", gap=GAP, unit="row")


def test_estimates_and_floats_are_printed_short():
    assert say("verdict.test", n=12345, units="rows", gain=GAP) == "On the 12,345 test rows, opened once: +0.9 ± 0.1."
    minus = Estimate(-0.62, 0.3, (-1.2, 0.0))
    assert say("verdict.test", n=1, units="rows", gain=minus).endswith(": -0.6 ± 0.3.")
    assert finding_sentence(FINDINGS[1]) == "KL weight ended at 0.25, not 1"
    assert "31 %" in say("finding.LF-HOLES-01.ok", share=0.313)


def test_vietnamese_keeps_the_decimal_point_and_names_the_english_term():
    text = say("verdict.use.jointly.best", "vi", gain=GAP, unit=say("unit.image", "vi"), method="nsf")
    assert "0.9 ± 0.1" in text
    assert "ít nhất" in text
    for key, term in [
        ("tile.gap", "prior"),
        ("tile.holes", "prior hole"),
        ("error.inference", "inference gap"),
    ]:
        assert f"({term})" in say(f"report.{key}", "vi")


def test_errors_say_what_is_known():
    with pytest.raises(InputError, match=r"Unknown language 'fr'; Latentfit speaks: en, vi\."):
        say("unit.image", "fr")
    with pytest.raises(InputError, match=r"No sentence 'unit\.imagee'"):
        say("unit.imagee")
    with pytest.raises(InputError, match=r"needs the parameter 'units'; got: n"):
        say("verdict.test", n=3)
    with pytest.raises(InputError, match="cannot be filled"):
        say("verdict.test", n="three", units="rows", gain=GAP)
    with pytest.raises(InputError, match=r"finding\.LF-NONE-01\.ok"):
        finding_sentence(Finding("LF-NONE-01", "ok"))


def test_plain_text_is_ascii_in_english():
    values = {"gain": GAP, "best_gain": GAP, "gap": GAP, "best": "nsf", "method": "nsf", "unit": "image"}
    for key in keys("verdict."):
        if parameters(key) <= set(values):
            assert plain(say(key, **{name: values[name] for name in parameters(key)})).isascii(), key
    for key in [*keys("terminal."), *keys("column.")]:
        assert plain(catalogue.LANGUAGES["en"][key]).isascii(), key
