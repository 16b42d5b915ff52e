"""A diagnosis as people see it: lines that fit a terminal, a table, a notebook, a page that loads nothing."""

from __future__ import annotations

import re
import struct
from dataclasses import replace

import numpy as np
import pytest

from latentfit.adapters import Understood
from latentfit.diagnosis.budget import Budget
from latentfit.diagnosis.findings import Finding
from latentfit.diagnosis.result import Diagnosis
from latentfit.diagnosis.verdicts import decoder_finding, training_finding
from latentfit.errors import InputError
from latentfit.evaluation.estimate import Estimate
from latentfit.report import figures
from latentfit.report.diagnosis_page import render_diagnosis, write_diagnosis
from latentfit.report.diagnosis_text import diagnosis_html, diagnosis_markdown, diagnosis_text, head_sentence

EVIL = "<script>alert(1)</script>\"'&|"


def evil(dx: Diagnosis) -> Diagnosis:
    """A diagnosis whose every user-given name would break out of HTML if it could."""
    setting = replace(
        dx.setting,
        model=EVIL,
        likelihood=EVIL,
        understood=[Understood("likelihood.name", {"name": EVIL})],
        missing={EVIL: EVIL},
    )
    groups = {EVIL: dx.gap_by_group["plate 1"], "b": dx.gap_by_group["plate 2"]}
    worst = Finding("LF-GROUPS-01", "know", {"low": 1.0, "high": 2.0, "worst": EVIL, "least": EVIL, "error": 0.1})
    labels = np.array([EVIL, "b"] * 300)
    return replace(
        dx,
        setting=setting,
        gap_by_group=groups,
        findings=[*dx.findings, worst],
        pictures=replace(dx.pictures, map_labels=labels),
        beta_formula=EVIL,
    )


@pytest.mark.parametrize("width", [60, 80, 100])
@pytest.mark.parametrize("lang", ["en", "vi"])
def test_no_line_is_longer_than_a_terminal(diagnosis, quiet, lang, width):
    for dx in (diagnosis, quiet):
        lines = dx.summary(lang, width).split("\n")
        assert max(map(len, lines)) <= width
        assert not [line for line in lines if line != line.rstrip()]


def test_findings_are_numbered_and_their_status_is_at_the_right_edge(diagnosis):
    lines = diagnosis_text(diagnosis).split("\n")
    numbered = [line for line in lines if re.match(r" ?\d+ [a-z]", line)]
    assert [int(line.split()[0]) for line in numbered] == list(range(1, 11))
    edges = [line for line in lines if line.endswith((" ok", " improve", " PRESSES", " low"))]
    assert {len(line) for line in edges} == {80}
    assert any(line.endswith("N(0, I) PRESSES") for line in lines)


def test_what_to_do_comes_with_price_gain_and_what_would_change_it(diagnosis):
    text = diagnosis_text(diagnosis)
    after = text[text.index("pressing on your encoder") :]
    assert [after.index(word) for word in ("\nNext", "\nPrice", "\nGain", "\nChanged by")] == sorted(
        after.index(word) for word in ("\nNext", "\nPrice", "\nGain", "\nChanged by")
    )
    assert "52.1 ± 0.5 nats per image" in after
    without = replace(diagnosis, findings=diagnosis.findings[:7], probe=None)
    text = " ".join(diagnosis_text(without).split())
    # beside nats: the share of the KL and bits per dimension, 38.5 / (64 log 2)
    assert "Gain at least 38.5 ± 0.4 nats per image, 16 % of the 238.0 its codes carry, 0.87 bits" in text
    assert "latentfit.retrofit(model, X_train)" in text


def test_rows_that_judge_and_rows_that_fit_are_named_or_the_same(diagnosis, quiet):
    assert "Scored on 800 test images; priors fitted on 7,200 training images" in diagnosis_text(diagnosis)
    text = " ".join(diagnosis_text(quiet).split())
    assert (
        "No separate test data: r fitted on one half and scored on the other, and swapped. If X trained the VAE, "
        "this describes your training set, not the population." in text
    )
    assert "Not measured: log p(x): no likelihood was given" in text
    assert "No separate test data" not in diagnosis_text(diagnosis)


def test_nothing_to_win_is_said_of_the_frozen_model_only(quiet):
    assert "without training" in head_sentence(quiet)
    assert "probe=True" in diagnosis_text(quiet)


def test_a_decoder_that_is_wrong_comes_first_whatever_the_prior(diagnosis):
    first = decoder_finding("normal", (0.1, 0.1), None, 154.0)
    dx = replace(diagnosis, findings=[training_finding(1.0, None, True), first])
    assert dx.first is first
    assert "calibrate the decoder first" in diagnosis_text(dx)
    assert "Calibrate the decoder first" in head_sentence(dx)
    unfinished = training_finding(0.25, Understood("warmup.epochs", {"done": 100, "length": 400}), None)
    dx = replace(diagnosis, findings=[unfinished, *diagnosis.findings[1:]])
    assert "its weight ended at 0.25" in head_sentence(dx)
    assert "400" in diagnosis_text(dx, "vi")
    assert "epochs of a" not in diagnosis_text(dx, "vi")


def test_markdown_has_a_row_per_finding_and_seven_columns(diagnosis):
    lines = diagnosis_markdown(evil(diagnosis)).strip().split("\n")
    assert len(lines) == 2 + len(diagnosis.findings) + 1
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {8}
    assert "<script>" not in "".join(lines)


@pytest.mark.parametrize("lang", ["en", "vi"])
def test_whatever_users_name_is_escaped(diagnosis, lang):
    wicked = evil(diagnosis)
    page = render_diagnosis(wicked, lang=lang, title=EVIL)
    scripts = render_diagnosis(diagnosis, lang=lang).count("<script")
    assert "<script>alert" not in page
    assert page.count("<script") == scripts
    assert "<script" not in diagnosis_html(wicked, lang)
    assert "&lt;script&gt;" in diagnosis_html(wicked, lang)


def test_the_page_has_its_sections_in_order_and_loads_nothing(diagnosis):
    html = render_diagnosis(diagnosis)
    ids = re.findall(r'<section id="(\w+)"', html)
    wanted = ["see", "error", "gains", "leaderboard", "groups", "codes", "units", "holes", "trust", "cost", "repeat"]
    assert ids == [*wanted, "glossary"]
    assert not re.findall(r'(?:src|href)="(?!data:|#)', html.split("<script")[0])
    assert len(html.encode()) < 8e6
    first = html[: html.index("<script")]
    assert first.count('class="tile"') == 4
    assert "at least 38.5 ± 0.4" in first


def test_data_is_shown_only_when_asked(diagnosis):
    page = render_diagnosis(diagnosis)
    hidden = page.split("<script")[0]
    assert hidden.count("data:image/png") == 2 + 3  # samples of both priors, draws in a hole: nothing of the data
    assert "show_data=True turns them on" in hidden
    assert "contains 0 thumbnails" in hidden
    assert '"images": []' in page
    page = render_diagnosis(diagnosis, show_data=True)
    shown = page.split("<script")[0]
    assert shown.count("data:image/png") == 3 + 3
    assert "contains 76 thumbnails" in shown  # 36 reconstructions, 40 in the map


def test_before_and_after_are_drawn_where_a_prior_is_worth_it_only(diagnosis, quiet):
    page = render_diagnosis(diagnosis)
    first = page.split("<script")[0]
    assert "Drawn from the fitted prior: realnvp" in first
    assert first.count('aria-pressed="') == 2
    assert first.count('class="area ') == 3  # codes, draws of either prior
    assert first.count('class="unit hollow"') == 5
    still = replace(diagnosis, ladder=quiet.ladder)
    first = render_diagnosis(still).split("<script")[0]
    assert "Drawn from the fitted prior" not in first
    assert first.count('aria-pressed="') == 0
    assert first.count('class="area ') == 2


def test_a_card_for_chat_lies_beside_the_page(diagnosis, quiet, tmp_path):
    for dx in (diagnosis, quiet):
        dx.report(tmp_path / "dx.html")
        content = (tmp_path / "dx.png").read_bytes()
        assert content.startswith(b"\x89PNG")
        assert struct.unpack(">II", content[16:24]) == (1200, 630)


def test_a_diagnosis_of_codes_has_a_page_too(quiet, tmp_path):
    path = write_diagnosis(quiet, tmp_path / "dx.html", lang="vi")
    html = path.read_text(encoding="utf-8")
    assert re.findall(r'<section id="(\w+)"', html)[:2] == ["error", "gains"]
    assert "nan" not in re.sub(r"<[^>]+>", " ", html).split()
    assert quiet.report(path, lang="en") == path
    assert "Nothing to win without training" in path.read_text(encoding="utf-8")


def test_an_unknown_language_is_refused(diagnosis):
    with pytest.raises(InputError, match="Unknown language 'de'"):
        diagnosis_text(diagnosis, "de")


def test_the_parts_of_the_budget_lie_end_to_end(diagnosis):
    parts = [(name, str(part), part, f"bar-{name}") for name, part in diagnosis.budget.parts.items()]
    svg = figures.budget(parts, "nats")
    bars = {
        css: (float(x), float(width))
        for x, width, css in re.findall(r'<rect x="([\d.]+)" y="8" width="([\d.]+)" height="34" class="([\w-]+)"', svg)
    }
    per_nat = bars["bar-inference"][1] / 6.0
    assert bars["bar-prior"][1] == pytest.approx(38.5 * per_nat, rel=1e-2)
    assert bars["bar-prior"][0] == pytest.approx(sum(bars["bar-inference"]), abs=0.2)
    overlap = [*parts, ("rest", "-5", Estimate.from_error(-5.0, 0.3), "bar-rest")]
    x, width = re.search(
        r'<rect x="([\d.]+)" y="8" width="([\d.]+)" height="34" class="bar-rest"', figures.budget(overlap, "n")
    ).groups()
    assert float(x) + float(width) == pytest.approx(sum(bars["bar-prior"]), abs=8)


def test_a_budget_without_a_likelihood_is_the_prior_alone(diagnosis):
    alone = replace(diagnosis, budget=Budget(None, None, diagnosis.prior_gap))
    assert "Error budget, nats per image: prior gap at least 38.5 ± 0.4" in diagnosis_text(alone)
