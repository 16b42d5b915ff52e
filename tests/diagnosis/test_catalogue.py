"""The catalogue: the same keys and placeholders in every language, and sentences that can be filled."""

from __future__ import annotations

import re
import string

import pytest

from latentfit.adapters import Understood
from latentfit.diagnosis import catalogue, verdicts
from latentfit.diagnosis.catalogue import (
    clause,
    counted,
    finding_change,
    finding_name,
    finding_price,
    finding_remedy,
    finding_sentence,
    finding_status,
    headline,
    keys,
    parameters,
    plain,
    say,
)
from latentfit.diagnosis.findings import Finding
from latentfit.errors import InputError
from latentfit.evaluation.estimate import Estimate

GAP = Estimate(0.94, 0.11, (0.72, 1.16))

PRESSED = {"steps": 500, "gain": GAP, "pressure": GAP}
FINDINGS = [
    # as `compare` says them
    Finding("LF-TRAIN-01", "ok", {"step": 400}),
    Finding("LF-TRAIN-01", "know", {"steps": 40, "variant": "short"}),
    Finding("LF-TRAIN-01", "improve", {"slope": 2.1, "steps": 400}),
    Finding("LF-DECODER-01", "ok", {"likelihood": "binomial"}),
    Finding("LF-DECODER-01", "ok", {"likelihood": "normal", "scale": "optimal", "variant": "scale"}),
    Finding("LF-DECODER-01", "know", {"likelihood": "normal"}),
    # as `diagnose` says them: every branch of verdicts.py
    verdicts.training_finding(0.25, Understood("warmup.epochs", {"done": 100, "length": 400}), None),
    verdicts.training_finding(0.25, None, None),
    verdicts.training_finding(1.0, None, False),
    verdicts.training_finding(None, None, None),
    verdicts.training_finding(1.0, None, True),
    verdicts.decoder_finding("discretised_logistic", (1.0, 0.11), Estimate.from_error(1234.5, 0.3), None),
    verdicts.decoder_finding("normal", (0.13, 0.11), Estimate.from_error(2.5, 0.3), None),
    verdicts.decoder_finding("normal", (0.11, 0.11), None, 154.2),
    verdicts.decoder_finding("normal", (0.11, 0.11), None, 2.1),
    verdicts.decoder_finding("normal", (0.11, 0.11), None, 1.0),
    verdicts.decoder_finding("normal", (0.11, 0.10), Estimate.from_error(0.05, 0.1), 1.0),
    verdicts.decoder_finding("bernoulli", None, None, 1.0, explained=Estimate.from_error(-2.35, 0.01), kl=5.92),
    verdicts.collapse_finding(61, 128),
    verdicts.collapse_finding(10.7, 16),
    *[verdicts.inference_finding(Estimate.from_error(gap, 0.1), 10.0, 4096) for gap in (0.5, 1.5, 3.0)],
    *[verdicts.inference_finding(Estimate.from_error(gap, 0.1), 10.0, 4096, "ais") for gap in (0.5, 1.5, 3.0)],
    *[verdicts.inference_finding(Estimate.from_error(gap, 0.1), 10.0, 4096, failed=0.3) for gap in (0.5, 1.5, 3.0)],
    *[
        verdicts.inference_finding(Estimate.from_error(3.0, 0.1), 10.0, 4096, trained_otherwise=how)
        for how in ("sigma", "grey")
    ],
    verdicts.prior_finding(GAP, 0.06),
    verdicts.prior_finding(Estimate.from_error(0.41, 0.01), 0.02),
    verdicts.prior_finding(Estimate.from_error(0.01, 0.02), 0.0),
    verdicts.prior_finding(Estimate.from_error(0.3, 0.2), 0.0),
    verdicts.decoder_finding(
        "continuous_bernoulli",
        None,
        None,
        None,
        explained=Estimate.from_error(0.38, 0.01),
        by_sigmoid=Estimate.from_error(0.54, 0.01),
        kl=5.92,
    ),
    verdicts.holes_finding(Estimate.from_error(0.31, 0.01), 5_000),
    verdicts.holes_finding(Estimate.from_error(0.09, 0.05), 10),
    verdicts.holes_finding(Estimate.from_error(0.01, 0.002), 5_000),
    verdicts.functional_hole_finding(Estimate.from_error(126.3, 1.2), 131.0),
    verdicts.functional_hole_finding(Estimate.from_error(0.1, 1.2), 131.0),
    Finding("LF-PROBE-01", "ok", PRESSED),
    Finding("LF-PROBE-01", "improve", PRESSED),
    Finding("LF-PROBE-01", "improve", {**PRESSED, "variant": "rising"}),
    verdicts.embedding_finding(Estimate.from_error(0.61, 0.01), GAP, 10),
    verdicts.embedding_finding(GAP, Estimate.from_error(0.61, 0.01), 10),
    verdicts.groups_finding({"a": (9, GAP), "b": (9, GAP)}, GAP),
    verdicts.groups_finding({"a": (9, GAP), "plate 14": (9, Estimate.from_error(5.0, 0.2))}, GAP),
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
    assert bool(finding_price(finding, lang)) == (finding.status != "ok")
    assert finding_change(finding, lang)
    assert finding_status(finding, lang)
    if finding.grave:
        values = {"prior_gap": GAP, "gain": GAP, "units": "rows"}
        assert not re.search(r"[{}]", headline(finding, lang, **values))


def test_every_sentence_of_a_finding_is_said_by_some_finding():
    said = {f"finding.{f.code}.{f.status}" for f in FINDINGS if "variant" not in f.parameters} | {
        f"finding.{f.code}.{f.status}.{f.parameters['variant']}" for f in FINDINGS if "variant" in f.parameters
    }
    about = re.compile(r"finding\.[\w-]+\.((remedy|price)(\.\w+)?|name|change|\w+\.status)")
    ours = {key for key in keys("finding.") if not about.fullmatch(key)}
    assert ours == said


def test_the_model_s_own_prior_is_called_by_its_name():
    holes = verdicts.holes_finding(Estimate.from_error(0.31, 0.01), 5_000)
    assert finding_sentence(holes) == "31 % of the draws from N(0, I) fall in holes"
    assert finding_sentence(holes, p="the model's prior") == "31 % of the draws from the model's prior fall in holes"
    assert finding_status(Finding("LF-PROBE-01", "improve", PRESSED)) == "N(0, I) PRESSES"


def test_beta_above_three_says_calibrate_the_decoder_first():
    found = verdicts.decoder_finding("normal", (0.11, 0.11), None, 154.2)
    assert finding_sentence(found) == "effective beta 154, not 1: calibrate the decoder first"
    assert "Calibrate the decoder first" in finding_remedy(found)


CLAUSES = [
    "digits, 1,797 images 8x8, integers 0..16, from scikit-learn",
    "MNIST, 70,000 images 28x28, integers 0..255, 10,000 of them for testing",
    "5,000 rows of 30 columns, reals -3.1 to 12.4",
    "counts of 0..16",
    "grey values, binarised: dynamically in training, once and stored for scoring",
    "density in the units of the data",
    "probability mass",
    "2 constant columns are left out of the model: a, b",
    "no likelihood was given",
]


@pytest.mark.parametrize("text", CLAUSES)
def test_clauses_of_other_folders_are_translated_and_keep_their_numbers(text):
    translated = clause(text, "vi")
    assert clause(text, "en") == text
    assert translated != text
    assert re.findall(r"\d+", translated) == re.findall(r"\d+", text)
    left = {"images", "rows", "columns", "integers", "reals", "counts", "grey", "epochs", "density", "constant", "from"}
    assert not left & set(re.findall(r"\w+", translated))


def test_an_unknown_clause_stays_as_it_is():
    assert clause("my shoes, size 42", "vi") == "my shoes, size 42"


def test_one_is_not_plural():
    assert [counted("method", n) for n in (1, 2, 1200)] == ["1 method", "2 methods", "1,200 methods"]
    assert counted("job", 1, "vi") == "1 lượt"


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
    assert finding_sentence(verdicts.training_finding(0.25, None, None)) == "KL weight ended at 0.25, not 1"
    assert "31 %" in say("finding.LF-HOLES-01.ok", share=0.313, p="p")


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


@pytest.mark.parametrize("lang", ["en", "vi"])
def test_a_training_of_ours_is_judged_by_its_own_curve(lang):
    rising = verdicts.training_finding(1.0, None, False, steps=1_000, late_gain=2.04)
    assert "2 nat" in finding_sentence(rising, lang)
    assert "200" in finding_sentence(rising, lang)
    assert "1,000" in finding_sentence(verdicts.training_finding(1.0, None, None, steps=1_000), lang)


@pytest.mark.parametrize(
    ("explained", "kl", "blamed"),
    [
        (Estimate.from_error(-2.0, 0.1), 5.0, True),
        (Estimate.from_error(-0.001, 0.002), 5.0, True),  # the decoder ignores codes that carry something
        (Estimate.from_error(-0.001, 0.002), 0.05, False),  # collapsed: the mean row is right
        (Estimate.from_error(0.004, 0.001), 5.0, False),  # little, but something
        (Estimate.from_error(-0.5, 1.0), 5.0, False),  # heavy tails: a few rows decide
        (None, 5.0, False),  # no unit is active
    ],
)
def test_a_decoder_is_blamed_for_explaining_nothing_only_where_codes_carry_something(explained, kl, blamed):
    found = verdicts.decoder_finding("bernoulli", None, None, 1.0, explained=explained, kl=kl)
    assert (found.status == "fix") == blamed
    assert (found.parameters.get("variant") == "nothing") == blamed


def test_a_decoder_trained_by_cross_entropy_is_told_from_one_that_gives_nothing_back():
    low, high = Estimate.from_error(-0.1, 0.02), Estimate.from_error(0.6, 0.02)
    found = verdicts.decoder_finding("continuous_bernoulli", None, None, None, explained=low, by_sigmoid=high, kl=5.0)
    assert (found.status, found.parameters["variant"]) == ("fix", "cross_entropy")
    trained = verdicts.decoder_finding("continuous_bernoulli", None, None, None, explained=high, by_sigmoid=low, kl=5.0)
    assert trained.status == "ok"
