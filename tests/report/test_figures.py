"""Figures: positions follow the numbers, labels are escaped, odd numbers do not break them."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentfit.evaluation.estimate import Estimate
from latentfit.report import figures, pictures

NUMBERS = st.floats(-1e4, 1e4, allow_nan=False)


def numbers_in(svg: str) -> list[float]:
    return [float(v) for v in re.findall(r' (?:x|y|cx|cy|r|x1|x2|y1|y2|width|height)="([^"%]+)"', svg)]


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_lie_inside_and_are_even(low, span):
    values = figures.ticks(low, low + span)
    slack = 1e-6 * (abs(low) + span) + 1e-9
    assert all(low - slack <= v <= low + span + slack for v in values)
    assert len(values) <= 8
    if len(values) > 2 and span > 1e-3:
        steps = np.diff(values)
        assert np.allclose(steps, steps[0], atol=1e-6 * (abs(low) + span))


def marks(values: list[float], errors: list[float]) -> list[figures.Mark]:
    known = [
        figures.Mark(f"m{i}", "jointly", Estimate.from_error(v, e), "3.0", i == 0)
        for i, (v, e) in enumerate(zip(values, errors, strict=True))
    ]
    return [*known, figures.Mark("standard", "jointly", None, "2.0")]


@pytest.mark.parametrize("width", [880, 350])
def test_dots_stand_in_the_order_of_their_gains(width):
    svg = figures.gains(marks([1.8, 1.6, 0.2, -0.6], [0.2, 0.2, 0.1, 0.3]), "nats", "fit, s", width)
    x = [float(v) for v in re.findall(r'<circle cx="([\d.]+)"', svg)]
    assert x == sorted(x, reverse=True)
    assert svg.count('class="dot full"') == 1
    zero = float(re.search(r'<line x1="([\d.]+)"[^>]*class="zero"', svg).group(1))
    assert x[2] > zero > x[3]


@given(st.lists(st.tuples(NUMBERS, st.one_of(st.floats(0, 1e5), st.just(float("nan")))), min_size=0, max_size=6))
def test_any_gains_draw_a_valid_figure_inside_its_frame(pairs):
    svg = figures.gains(marks([v for v, _ in pairs], [e for _, e in pairs]), "nats", "s", 350)
    ET.fromstring(svg)
    assert "nan" not in svg
    assert all(-400 <= v <= 400 + 46 * 8 for v in numbers_in(svg))


@given(st.lists(st.tuples(NUMBERS, st.floats(0, 1e5)), min_size=1, max_size=3))
def test_any_budget_draws_a_valid_figure(pairs):
    parts = [("part", "1", Estimate.from_error(v, e), "bar") for v, e in pairs]
    svg = figures.budget(parts, "nats", 880)
    ET.fromstring(svg)
    assert "nan" not in svg
    assert all(0 <= v <= 900 for v in numbers_in(svg))


def test_labels_are_escaped():
    evil = '<script>"'
    drawn = [
        figures.gains([figures.Mark(evil, evil, Estimate.from_error(1.0, 0.1), evil)], evil, evil),
        figures.budget([(evil, evil, Estimate.from_error(1.0, 0.1), "bar")], evil),
        figures.curves([(evil, np.arange(5.0), np.arange(5.0), "mute")], evil, evil, 880),
        figures.histogram([(evil, np.arange(9.0), "mute")], 3.0, evil, evil),
        figures.quantile_panel(evil, np.arange(9.0), np.arange(9.0), np.arange(9.0)),
        figures.scatter(np.zeros((3, 2)), [(np.ones((3, 2)), "null")], (evil, evil)),
    ]
    for svg in drawn:
        assert "<script>" not in svg
        ET.fromstring(svg)


def test_constant_and_infinite_numbers_are_survived():
    constant = np.zeros(8)
    ET.fromstring(figures.quantile_panel("c", constant, constant, constant))
    ET.fromstring(figures.histogram([("c", constant, "mute")], 0.0, "line", "axis"))
    ET.fromstring(figures.units(np.zeros(3), np.ones(3), "KL"))
    y = np.array([np.inf, 5.0, np.nan, 4.0])
    svg = figures.curves([("m", np.arange(4.0), y, "mute")], "x", "y", 350)
    assert "nan" not in svg
    assert "inf" not in svg


def test_collapsed_units_are_hollow():
    svg = figures.units(np.array([2.0, 0.001, 0.5]), np.ones(3), "KL")
    assert svg.count('class="unit hollow"') == 1
    assert svg.count('class="unit"') == 2


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_our_png_is_read_back_by_others(channels):
    image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(0).integers(0, 256, (7, 5, channels), dtype=np.uint8)
    read = np.asarray(image.open(io.BytesIO(pictures.png(pixels))))
    assert np.array_equal(read.reshape(7, 5, channels), pixels)


@pytest.mark.parametrize("shape", [(8, 8), (1, 8, 8), (8, 8, 1), (3, 64, 64), (64, 64, 3), (1, 200, 100)])
def test_grids_take_every_layout_and_keep_the_order(shape):
    image = pytest.importorskip("PIL.Image")
    assert pictures.is_image(shape)
    images = np.zeros((36, *shape))
    images[1] = 1.0  # the second of the first row
    sheet = np.asarray(image.open(io.BytesIO(pictures.grid_png(images, (0.0, 1.0, False)))))
    height, width = sheet.shape[0] // 6, sheet.shape[1] // 6
    assert sheet[height // 2, width // 2, 0] == 0
    assert sheet[height // 2, width + width // 2, 0] == 255
    assert sheet[height + height // 2, width // 2, 0] == 0
    assert max(width, height) <= 75


def test_strokes_on_an_empty_ground_are_drawn_dark_on_white():
    strokes = np.zeros((4, 8, 8))
    strokes[:, 2:6, 3] = 16.0
    assert pictures.scale_of([np.empty(0), strokes]) == (0.0, 16.0, True)
    photographs = np.random.default_rng(0).random((4, 8, 8))
    assert pictures.scale_of([photographs])[2] is False
    assert pictures.scale_of([np.zeros((4, 3, 8, 8))])[2] is False
    assert pictures.scale_of([np.empty(0)]) == (0.0, 1.0, False)
