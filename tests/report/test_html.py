"""The report: complete without script, offline, small, escaped, and honest about what it cannot show."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from latentfit.comparison.result import Comparison, Pictures
from latentfit.diagnosis.catalogue import say
from latentfit.diagnosis.findings import Finding
from latentfit.errors import InputError
from latentfit.report import parts, render, report_png, verdict_lines, write

EVIL = "<script>alert(1)</script>\"'&"


class Page(HTMLParser):
    """The tags, their attributes, the visible text, and the order of section ids and scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.stack: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag in ("script", "style", "title"):
            self.stack.append(tag)

    def handle_endtag(self, tag):
        if self.stack and self.stack[-1] == tag:
            self.stack.pop()

    def handle_data(self, data):
        if not self.stack:
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).replace("\u00a0", " ").split())

    def ids(self) -> list[str]:
        return [a["id"] for tag, a in self.tags if tag == "section" and a.get("id")]


def empty_pictures() -> Pictures:
    none = np.empty(0)
    return Pictures(none, none, none, none, {}, {}, {}, none, none, none, none, none)


@pytest.fixture(scope="module")
def html(digit_result) -> str:
    return render(digit_result)


def test_the_first_screens_need_no_script(html):
    before_script = html[: html.index("<script")]
    page = Page(before_script)
    assert (
        "N(0, I) costs this VAE at least 1.6 ± 0.2 nats of log p(x) per image. Use mixture trained jointly"
        in page.words
    )
    assert "On the 359 test images, opened once: +1.5 ± 0.2." in page.words
    assert sum(a.get("class") == "tile" for _, a in page.tags) == 4
    for value in (
        "at least 0.9 ± 0.1 nats per image",
        "6 % of the 14.2 nats",
        "31 % → 2 %",
        "0.41 → 0.22",
        "24 s",
    ):
        assert value in page.words
    grids = [a["src"] for tag, a in page.tags if tag == "img" and (a.get("src") or "").startswith("data:image/png")]
    assert len(grids) == 3
    assert page.ids()[:4] == ["see", "error", "gains", "leaderboard"]
    assert page.words.count("LF-") == 6


def test_nothing_is_loaded_from_anywhere(html):
    for tag, attributes in Page(html).tags:
        for name in ("src", "href", "srcset", "action", "data"):
            value = attributes.get(name) or ""
            assert not value or value.startswith(("data:", "#")), (tag, name, value[:60])
    style = re.findall(r"<style>(.*?)</style>", html, flags=re.S)
    assert not [s for s in style if "url(" in s or "@import" in s]
    assert "default-src 'none'" in html


def test_the_interactive_part_is_one_script_below_the_fold(html):
    assert html.count("plotly.js v") <= 2
    assert html.index("plotly.js v") > html.index("</main>")
    assert len(html.encode()) < 8e6


def test_the_largest_report_stays_under_eight_megabytes(digit_result):
    noise = np.random.default_rng(0).random((600, 3, 96, 96))  # noise is what PNG cannot make smaller
    p = replace(
        digit_result.pictures,
        null_samples=noise[:36],
        best_samples=noise[36:72],
        reconstructions=noise[:36],
        originals=noise[:36],
        map_images=noise,
    )
    big = replace(digit_result, pictures=p, setting=replace(digit_result.setting, data_shape=(3, 96, 96)))
    assert len(render(big).encode()) < 8e6


@pytest.mark.parametrize("lang", ["en", "vi"])
def test_whatever_users_name_is_escaped(digit_result, lang):
    evil_rows = [replace(r, method=EVIL, note=EVIL, command=EVIL) for r in digit_result.rows]
    setting = replace(
        digit_result.setting,
        data=EVIL,
        likelihood=EVIL,
        base_measure=EVIL,
        command=EVIL,
        versions={EVIL: EVIL},
    )
    pictures = replace(
        digit_result.pictures,
        map_labels=np.array([EVIL, "b"] * 300),
        map_axes=(EVIL, EVIL),
        curves={EVIL: digit_result.pictures.curves["standard"]},
    )
    findings = [Finding(EVIL, "ok", {EVIL: EVIL}), Finding("LF-DECODER-01", "ok", {"likelihood": EVIL})]
    evil = replace(digit_result, rows=evil_rows, setting=setting, pictures=pictures, findings=findings)
    html = render(evil, lang=lang, title=EVIL)
    assert "<script>alert" not in html
    assert "alert(1)</script>" not in html
    assert "onerror=" not in re.sub(r"<script>.*?</script>", "", html, flags=re.S)
    clean = [tag for tag, _ in Page(render(digit_result, lang=lang)).tags if tag == "script"]
    assert [tag for tag, _ in Page(html).tags if tag == "script"] == clean


def test_data_is_shown_only_when_asked(digit_result):
    for show in (False, None):
        hidden = replace(digit_result, setting=replace(digit_result.setting, show_data=False))
        html = render(hidden, show_data=show)
        assert '"images": []' in html
        assert html.split("<script")[0].count("data:image/png") == 2  # what either prior draws; nothing made from a row
        assert "show_data=True turns them on" in html
        assert "This file contains 0 thumbnails of your data" in html
    assert "This file contains 436 thumbnails of your data" in render(digit_result)


def test_a_table_has_quantiles_instead_of_pictures(table_result):
    page = Page(render(table_result))
    assert "nats per row" in page.words
    assert "column 5" in page.words
    assert "One seed" in page.words
    assert not [a for tag, a in page.tags if tag == "img" and (a.get("src") or "").startswith("data:image")]


def test_columns_are_called_as_the_user_calls_them(table_result):
    def page(columns):
        return render(replace(table_result, setting=replace(table_result.setting, columns=columns)))

    named = page(["age", "<b>", "c", "d", "e"])
    assert ">age</text>" in named
    assert ">&lt;b&gt;</text>" in named
    assert "column 1" not in named
    numbered = page([0, 2, 3, 4, 6])  # columns 1 and 5 are constant and left out
    assert ">column 7</text>" in numbered
    assert "column 2<" not in numbered


def test_sections_without_numbers_are_left_out(digit_result):
    bare = replace(
        digit_result, pictures=empty_pictures(), budget={}, findings=[], test_rows=[], holes=(np.nan, np.nan)
    )
    page = Page(render(bare))
    assert page.ids() == ["gains", "leaderboard", "trust", "cost", "repeat", "glossary"]
    assert "nan" not in page.words.split()
    assert sum(a.get("class") == "tile" for _, a in page.tags) == 3


def test_a_finding_the_catalogue_cannot_say_is_shown_by_its_numbers(digit_result):
    odd = replace(digit_result, findings=[Finding("LF-PRIOR-01", "improve", {"surprise": 3})])
    assert "surprise = 3" in Page(render(odd)).words


def verdicts(result: Comparison) -> dict[str, Comparison]:
    r = result.recommendation
    keep = replace(r, key="standard", gain=None, test_gain=None, without_training=None)
    kept = [replace(row, prior="standard") if row.key == "annealed" else row for row in result.rows]
    frozen = [row for row in result.rows if row.fitted == "post hoc" or row.key == "standard"]
    return {
        "use": result,
        "post hoc": replace(
            result, recommendation=replace(r, key="mixture@standard", without_training="mixture@standard")
        ),
        "best": replace(result, recommendation=replace(r, key="realnvp")),
        "other goal": replace(result, recommendation=replace(r, other_goals={"samples": "realnvp"})),
        "open goal": replace(result, recommendation=replace(r, other_goals={"samples": None})),
        "kept": replace(result, rows=kept, recommendation=replace(r, key="annealed", gain=None)),
        "by samples": replace(result, recommendation=replace(r, goal="samples", other_goals={"likelihood": "realnvp"})),
        "by embedding": replace(
            result,
            rows=[replace(row, knn=0.9) for row in result.rows],
            recommendation=replace(keep, goal="embedding", verdict="no_clear_winner"),
        ),
        "no better samples": replace(
            result, recommendation=replace(keep, goal="samples", verdict="change_nothing", best_key="standard")
        ),
        "no winner": replace(result, recommendation=replace(keep, verdict="no_clear_winner")),
        "nothing": replace(result, recommendation=replace(keep, verdict="change_nothing")),
        "frozen": replace(
            result,
            rows=frozen,
            recommendation=replace(keep, verdict="change_nothing", best_key="realnvp@standard"),
        ),
        "alone": replace(
            result,
            rows=[result.null],
            recommendation=replace(keep, verdict="change_nothing", best_key="standard"),
        ),
    }


EXPECTED = {
    "use": ["N(0, I) costs this VAE at least 1.6 ± 0.2 nats of log p(x) per image. Use `mixture` trained jointly, the "
            "smallest within one standard error of the best (realnvp, +1.8 ± 0.2).",
            "On the 359 test images, opened once: +1.5 ± 0.2.", "By sample quality the choice is the same.",
            "No retraining? mixture post hoc, +0.8 ± 0.1."],
    "post hoc": ["post hoc, without retraining"],
    "best": ["the best of all that were tried"],
    "other goal": ["By sample quality it would be `realnvp` (jointly)."],
    "open goal": ["By sample quality nothing is decided"],
    "kept": ["Keep N(0, I), train it by `annealed`: that wins 0.1 ± 0.2 nats of log p(x) per image over"],
    "by samples": ["For samples use `mixture` (jointly): Fréchet distance 0.22, `standard` 0.41, reconstructions 0.17",
                   "log p(x) changes by +1.6 ± 0.2 nats per image.", "opened once: 0.22, `standard` 0.41",
                   "By likelihood it would be `realnvp` (jointly).", "No retraining? mixture post hoc, 0.27."],
    "by embedding": ["No clear winner by the embedding: the best, realnvp (jointly), has 15-NN accuracy 0.90"],
    "no better samples": ["Keep N(0, I): nothing that was tried draws better samples"],
    "no winner": ["No clear winner: the best, realnvp, is +1.8 ± 0.2 nats per image",
                  "1,078 training images are few; "
                  "try: latentfit compare mnist --quick"],
    "nothing": ["Keep N(0, I): no remedy wins enough to pay for the change"],
    "frozen": ["nothing to win without training", "at least 0.9 ± 0.1"],
    "alone": ["nothing to win without training"],
}  # fmt: skip


@pytest.mark.parametrize("case", EXPECTED)
def test_every_verdict_is_said_and_rendered(digit_result, case):
    result = verdicts(digit_result)[case]
    text = " ".join(verdict_lines(result))
    for sentence in EXPECTED[case]:
        assert sentence in text
    assert len(verdict_lines(result, "vi")) == len(verdict_lines(result))
    page = Page(render(result))
    assert verdict_lines(result)[0].replace("`", "") in re.sub(" ([,.:])", r"\1", page.words)
    assert ("→" in page.words.split("See it")[0]) == (result.recommendation.key != "standard")


def test_the_leaderboard_is_sortable_by_keyboard_and_has_every_column(digit_result):
    page = Page(render(digit_result))
    heads = [a for tag, a in page.tags if tag == "th" and a.get("scope") == "col"]
    assert len(heads) == 2 * 12
    assert [a["aria-sort"] for a in heads if "aria-sort" in a] == ["descending"]
    with_labels = replace(digit_result, rows=[replace(r, knn=0.9) for r in digit_result.rows])
    assert say("column.knn") in Page(render(with_labels)).words


def test_the_vietnamese_report_says_nothing_in_english(digit_result):
    page = Page(render(digit_result, lang="vi"))
    assert ("html", {"lang": "vi"}) in page.tags
    for key in (
        "see.title",
        "error.title",
        "gain.title",
        "table.title",
        "map.title",
        "trust.title",
        "cost.title",
    ):
        assert say(f"report.{key}", "vi") in page.words
        assert say(f"report.{key}") not in page.words


def test_failed_importance_weights_are_said_under_the_headline(digit_result):
    rows = [replace(r, reliability=0.96) for r in digit_result.rows]
    html = render(replace(digit_result, rows=rows))
    top = Page(html[: html.index('class="tiles"')]).words
    assert "unreliable for 96 % of the rows: log p(x) is too low there" in top
    assert "unreliable for" not in Page(render(digit_result)).words
    # a winner stands on the null's log p(x) too, and the verdict says so in the terminal as well
    doubtful = [replace(r, reliability=0.5) if r.key == "standard" else r for r in digit_result.rows]
    assert "unreliable for 50 % of the rows" in verdict_lines(replace(digit_result, rows=doubtful))[-1]


def test_rows_corrected_by_annealing_are_marked_with_the_nats(digit_result):
    rows = [replace(r, n_annealed=64, correction=0.143) if r.key == "realnvp" else r for r in digit_result.rows]
    words = Page(render(replace(digit_result, rows=rows))).words
    assert "a +0.14" in words
    assert "corrected by annealed importance sampling of 64 rows, by at most 0.14 nats" in words


def test_render_is_reproducible(digit_result):
    assert render(digit_result) == render(digit_result)


def test_an_unknown_language_is_refused(digit_result):
    with pytest.raises(InputError, match="Unknown language 'de'"):
        render(digit_result, lang="de")


@pytest.mark.parametrize("name", ["report.pdf", "report.png", "report"])
def test_a_page_is_not_written_under_another_kind_of_name(digit_result, tmp_path, name):
    with pytest.raises(InputError, match=rf"{name} must end in \.html"):
        write(digit_result, tmp_path / name, lang="en")
    assert not list(tmp_path.iterdir())


def test_one_component_divides_nothing(table_result):
    one = {"cluster_prior": "mixture", "cluster_shares": np.ones(1), "cluster_members": np.zeros(9, dtype=int)}
    one |= {"cluster_certainty": np.ones(9), "cluster_samples": np.zeros((1, 5)), "cluster_labels": np.empty(0)}
    page = render(replace(table_result, pictures=replace(table_result.pictures, **one)))
    assert "divide 9 held-out" not in page


def test_write_replaces_the_file_whole(digit_result, tmp_path):
    path = tmp_path / "run" / "report.html"
    assert write(digit_result, path) == path
    first = path.read_text(encoding="utf-8")
    write(digit_result, path, lang="vi")
    assert path.read_text(encoding="utf-8") != first
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
    broken = replace(digit_result, rows=[])
    with pytest.raises(StopIteration):
        write(broken, path)
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")


@pytest.mark.parametrize("lang", ["en", "vi"])
def test_the_card_is_1200_by_630(digit_result, table_result, tmp_path, lang):
    for name, result in (("digits", digit_result), ("table", table_result)):
        content = report_png(result, tmp_path / f"{name}.png", lang=lang).read_bytes()
        assert content[:8] == b"\x89PNG\r\n\x1a\n"
        assert (int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")) == (1200, 630)


def clustered(result: Comparison, data: bool) -> Comparison:
    shown = replace(
        result.pictures,
        cluster_prior=EVIL,
        cluster_samples=result.pictures.best_samples[:3],
        cluster_shares=np.array([0.5, 0.25, 0.245, 0.005]),
        cluster_members=np.array([0, 0, 1, 2]),
        cluster_certainty=np.array([1.0, 0.9, 0.8, 0.7]),
        cluster_labels=np.array([EVIL, EVIL, "b", "c"]) if data else np.empty(0),
        cluster_on_rows=np.zeros(4, dtype=bool),
    )
    return replace(result, pictures=shown)


def test_clusters_are_counted_and_escaped(digit_result):
    page = Page(clean := render(clustered(digit_result, data=True)))
    assert "clusters" in page.ids()
    assert "How the 4 components of" in page.words
    assert "3 take 1 % or more each" in page.words  # the last holds half a per cent
    assert "as many as 2.9 of equal size" in page.words  # exp(1.0696)
    assert "adjusted Rand index (0: chance, 1: the same groups): 1.00" in page.words
    assert "(100 %)" in page.words
    assert EVIL not in clean
    assert "commonest label" not in Page(render(clustered(digit_result, data=False))).words
    assert "thành phần" in Page(render(clustered(digit_result, data=False), lang="vi")).words
    assert "clusters" not in Page(render(digit_result)).ids()


def test_uncertain_weights_have_bands(digit_result):
    x = np.linspace(-3, 3, 21)
    density = np.exp(-0.5 * x**2) / np.sqrt(2 * np.pi)
    shown = replace(
        digit_result.pictures,
        band_units=np.array([3, 0]),
        band_grid=np.stack([x, x]),
        band_low=0.9 * np.stack([density, density]),
        band_high=1.1 * np.stack([density, density]),
        weight_gaps=np.array([1.0, 1.5, 2.0]),
        weight_units=np.array([10, 11, 12]),
        weight_share=np.array([0.25, 0.7]),
        weight_method="ensemble",
    )
    page = Page(render(replace(digit_result, pictures=shown)))
    assert "prior gap 1.00 to 2.00 nats, 10 to 12 active units" in page.words
    assert "within with probability 50 %" in page.words  # of three draws
    assert "25 % is epistemic" in page.words
    assert "unit 4" in page.words
    assert "unit 1" in page.words
    apart = replace(shown, band_units=np.empty(0), weight_share=np.empty(0))
    assert "share no coordinates" in Page(render(replace(digit_result, pictures=apart))).words
    assert "weights" not in Page(render(digit_result)).ids()


MEANS = "Means of the components, decoded, the largest first</span>"


@pytest.mark.parametrize(
    ("on_rows", "show", "drawn", "hidden"),
    [
        ([1, 1, 1, 1], False, 0, "Not drawn: 4 of the 4 components"),
        ([1, 1, 1, 1], True, 3, ""),
        ([0, 1, 0, 0], False, 2, "Not drawn: 1 of the 4 components"),
        ([0, 0, 0, 0], False, 3, ""),
        ([], False, 0, "Not drawn: 4 of the 4 components"),  # a folder from before they were told apart
    ],
)
def test_means_that_are_rows_are_drawn_only_where_data_may_be(digit_result, monkeypatch, on_rows, show, drawn, hidden):
    grids = []
    monkeypatch.setattr(parts.pictures, "grid_png", lambda images, *rest, **more: grids.append(images) or b"")
    result = clustered(digit_result, data=False)
    result = replace(result, pictures=replace(result.pictures, cluster_on_rows=np.array(on_rows)))
    page = render(result, show_data=show)
    assert page.count(MEANS) == (drawn > 0)
    expected = result.pictures.cluster_samples[[not row or show for row in (on_rows or [1] * 4)[:3]]]
    assert any(np.array_equal(images, expected) for images in grids) == (drawn > 0)
    assert len(expected) == drawn
    assert ("Not drawn" in page) == bool(hidden)
    assert hidden in page


def test_of_a_table_the_columns_of_a_row_are_not_printed(table_result):
    result = clustered(table_result, data=False)
    secret = np.full_like(result.pictures.cluster_samples, 1.0)
    secret[1] = 7654321
    shown = replace(result.pictures, cluster_samples=secret, cluster_on_rows=np.array([False, True, False, False]))
    result = replace(result, pictures=shown)
    assert "7,654,321" not in render(result, show_data=False)
    assert "7,654,321" in render(result, show_data=True)


def test_where_no_component_has_a_hundredth_the_most_used_are_listed(digit_result):
    result = clustered(digit_result, data=False)
    shown = replace(
        result.pictures,
        cluster_shares=np.full(2_000, 1 / 2_000),
        cluster_on_rows=np.ones(2_000, dtype=bool),
    )
    words = Page(render(replace(result, pictures=shown), show_data=False)).words
    assert "None has 1 %: the 12 most used are listed." in words
    assert "Not drawn: 2,000 of the 2,000 components" in words
