"""A retrofit as people see it: the ladder in a terminal, a notebook, the page that is forwarded."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from latentfit.adapters import Understood
from latentfit.evaluation.ladder import Ladder
from latentfit.report.retrofit_page import render_retrofit, write_retrofit
from latentfit.report.retrofit_text import kept_mark, retrofit_html, retrofit_text
from latentfit.retrofitting.result import Retrofit

EVIL = "<script>alert(1)</script>\"'&"


def evil(fix: Retrofit) -> Retrofit:
    """A retrofit whose every user-given name would break out of HTML if it could."""
    rows = [replace(row, name=EVIL) if row.name == "nsf" else row for row in fix.rows]
    rungs = [replace(rung, name=EVIL) if rung.name == "nsf" else rung for rung in fix.ladder.rungs]
    return replace(
        fix,
        rows=rows,
        ladder=Ladder(rungs, fix.ladder.nothing),
        setting=replace(
            fix.setting, model=EVIL, likelihood=EVIL, understood=[Understood("likelihood.name", {"name": EVIL})]
        ),
        guards={EVIL: (False, {EVIL: 1.0})},
        pictures=replace(fix.pictures, map_labels=np.array([EVIL, "b"] * 300)),
    )


@pytest.mark.parametrize("width", [60, 80, 100])
@pytest.mark.parametrize("lang", ["en", "vi"])
def test_no_line_is_longer_than_a_terminal(fix, unchanged, lang, width):
    for result in (fix, unchanged):
        text = result.summary(lang, width)
        lines = text.split("\n")
        assert max(map(len, lines)) <= width
        assert "<-" in text
        assert not [line for line in lines if line != line.rstrip()]


def test_the_ladder_goes_from_small_to_large_and_says_why_others_were_not_kept(fix):
    text = retrofit_text(fix)
    lines = text.split("\n\n")[1].split("\n")[1:6]
    rungs = [re.fullmatch(r" (\S.*?)  +(\S+) .* (?:s|-)(?:  (\S.*))?", line).groups("") for line in lines]
    assert [(name, mark) for name, _, mark in rungs] == [
        ("N(0, I)", ""),
        ("learned_gaussian", ""),
        ("mixture", "failed: bridges"),
        ("realnvp", "<-"),
        ("nsf", "+0.3 ± 0.4: too little"),
    ]
    assert [float(gap) for _, gap, _ in rungs] == [0, 2.1, 29.8, 38.2, 38.5]


def test_the_reason_is_the_paired_difference_on_the_selection_rows(fix):
    rows = {row.name: row for row in fix.rows}
    won = fix.ladder["nsf"].per_row - fix.ladder["realnvp"].per_row
    assert kept_mark(fix, rows["nsf"]).startswith(f"+{won.mean():.1f}")


def test_gain_share_bits_weights_and_encoder_are_said(fix):
    text = " ".join(retrofit_text(fix).split())
    # 38 nats of 238, over 64 log 2
    assert "ELBO +38.0 ± 0.3 nats per image, 16 % of the 238.0 its codes carry, 0.86 bits per dimension." in text
    assert "Kept realnvp: the smallest within 1 standard error or 0.1 nat of the best, all guards passed." in text
    assert "weights are unchanged (SHA-256 9f2c1e77ab04)" in text
    assert (
        "The encoder was not touched: transform(X) returns what it returned before. "
        "To change the embedding: train with the new prior." in text
    )
    assert "97 % → 3 %" in text


def test_nothing_kept_is_nothing_to_win_without_training(unchanged):
    text = " ".join(retrofit_text(unchanged).split())
    assert "Kept N(0, I): nothing to win without training." in text
    assert "No separate test data: 180,000 rows fitted, 800 chose, 400 measured the gain." in text
    assert "samples*" not in text
    page = render_retrofit(unchanged)
    assert "Nothing to win without training" in page
    assert "→" not in page.split("</header>")[0]


def test_which_rows_chose_is_said_and_a_bias_with_it(fix, unchanged):
    def text(chose: str) -> str:
        return " ".join(retrofit_text(replace(fix, setting=replace(fix.setting, chose=chose))).split())

    assert "800 test images chose" in text("test")
    assert "too few" not in text("test")
    assert "800 other training images chose" in text("train")
    assert "20,000 test images are too few to choose by and to measure by: training images chose" in text("train")
    assert "800 chose" in " ".join(retrofit_text(unchanged).split())


def test_codes_alone_have_no_weights_to_speak_of(fix):
    text = " ".join(retrofit_text(replace(fix, sha256=("", ""))).split())
    assert "no weight to change" in text
    assert "SHA-256" not in text
    assert "transform(X)" not in text


def test_changed_weights_are_not_passed_over(fix):
    broken = replace(fix, sha256=("a" * 64, "b" * 64))
    text = " ".join(retrofit_text(broken).split())
    assert "do not trust these numbers" in text
    assert "was not touched" not in text


def test_guards_that_forbid_every_winner_are_named(unchanged, fix):
    rows = [replace(row, kept=row.name == "nothing", failed=("memorisation",)) for row in fix.rows]
    text = retrofit_text(replace(fix, rows=[replace(r, failed=()) if r.kept else r for r in rows]))
    assert "what would win fails its guards (no copies)" in text


@pytest.mark.parametrize("lang", ["en", "vi"])
def test_whatever_users_name_is_escaped(fix, lang):
    wicked = evil(fix)
    page = render_retrofit(wicked, lang=lang, title=EVIL)
    assert "<script>alert" not in page
    assert page.count("<script") == render_retrofit(fix, lang=lang).count("<script")
    assert "<script" not in retrofit_html(wicked, lang)
    assert "&lt;script&gt;" in retrofit_html(wicked, lang)


def test_the_page_is_complete_without_script_and_loads_nothing(fix):
    html = render_retrofit(fix, show_data=True)
    first = html[: html.index("<script")]
    ids = re.findall(r'<section id="(\w+)"', first)
    sections = ["see", "error", "gains", "leaderboard", "codes", "units", "holes", "trust", "cost", "repeat"]
    assert ids == [*sections, "glossary"]
    assert "97 % of the codes drawn from N(0, I) fall where no image was ever encoded" in first.replace("\u00a0", " ")
    assert first.count('class="tile"') == 4
    assert first.count("data:image/png") == 3 + 3  # the grids, and draws in a hole
    assert not re.findall(r'(?:src|href)="(?!data:|#)', first)
    assert len(html.encode()) < 8e6


def test_two_lines_serve_the_prior(fix):
    page = render_retrofit(fix)
    assert "latentfit.priors.load(&#34;prior/&#34;)" in page
    assert "vae.decode(prior.sample(64))" in page


def test_a_failed_guard_and_a_shrunken_gain_are_warned_of(fix):
    page = render_retrofit(replace(fix, gain=replace(fix.gain, value=20.0)))
    warned = re.findall(r'<li class="warn">(.*?)</li>', page)
    assert len(warned) == 2
    assert "+20.0" in warned[0]
    assert "inverse error" in warned[1]


def test_data_is_shown_only_when_asked(fix):
    hidden = render_retrofit(fix)
    assert hidden.split("<script")[0].count("data:image/png") == 2 + 3
    assert "show_data=True turns them on" in hidden
    assert "contains 0 thumbnails" in hidden


def test_a_table_has_quantiles_instead_of_pictures(fix):
    rng = np.random.default_rng(0)
    names = ("null_samples", "new_samples", "reconstructions")
    pictures = replace(fix.pictures, **{name: rng.normal(size=(36, 5)) for name in names})
    table = replace(fix, setting=replace(fix.setting, data_shape=(5,)), pictures=pictures)
    html = render_retrofit(table).split("<script")[0]
    assert "column 5" in html
    assert "data:image/png" not in html
    assert "nats per row" in html


def test_the_columns_of_a_table_have_their_names(fix):
    flat = {
        name: getattr(fix.pictures, name).reshape(-1, 64)
        for name in ("originals", "reconstructions", "null_samples", "new_samples")
    }
    names = ["tuổi", EVIL, *map(str, range(62))]
    table = replace(fix, setting=replace(fix.setting, data_shape=(64,)), pictures=replace(fix.pictures, **flat))
    assert ">column 1</text>" in render_retrofit(table)
    named = render_retrofit(replace(table, setting=replace(table.setting, columns=names)))
    assert ">tuổi</text>" in named
    assert EVIL not in named
    assert ">column" not in named


@pytest.mark.parametrize("lang", ["en", "vi"])
def test_every_page_is_written_whole(fix, unchanged, tmp_path, lang):
    for result in (fix, unchanged):
        assert not (tmp_path / "fix.png").exists()
        path = write_retrofit(result, tmp_path / "fix.html", lang=lang)
        html = path.read_text(encoding="utf-8")
        assert html.startswith("<!doctype html>")
        assert (tmp_path / "fix.png").read_bytes().startswith(b"\x89PNG")
        (tmp_path / "fix.png").unlink()
        assert "nan" not in re.sub(r"<[^>]+>", " ", html.split("<script")[0]).split()
    assert fix.report(path, lang=lang) == path
