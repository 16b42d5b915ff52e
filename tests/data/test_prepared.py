"""From rows to what is scored: the floor of sigma, the measure, and the way there and back."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from latentfit.data.prepared import prepare_data, prepare_rows
from latentfit.data.units import Units
from latentfit.errors import InputError
from latentfit.registry import registry

ALL = np.arange(200)


def mixed(n: int = 200) -> np.ndarray:
    """Two Gaussian columns and a binary one."""
    rng = np.random.default_rng(0)
    return np.column_stack([rng.normal(size=(n, 2)) * [1.0, 50.0], rng.integers(0, 2, n)])


@pytest.mark.parametrize("args", [None, {"scale": "column", "n_columns": 3}, {"scale": "row"}])
def test_a_binary_column_earns_no_more_than_rounding_allows_beside_real_ones(args) -> None:
    x = mixed()
    likelihood = None if args is None else {"name": "normal", "args": args}
    data = prepare_data(x, ALL, likelihood=likelihood)
    normal = registry.build("likelihood", data.likelihood)
    y = data.preprocess(data.x)
    params = y if normal.n_parameters == 1 else torch.stack([y, torch.full_like(y, -100.0)], -1)
    for parameter in normal.parameters():
        torch.nn.init.constant_(parameter, -100.0)
    with torch.no_grad():  # the best there is: the mean on the row, sigma as small as it may be
        earned = normal.entry_log_prob(y, params)[0] - data.preprocess.scale.log()
    sigma = 0.3 * float(data.preprocess.scale[2])
    assert float(earned[2]) == pytest.approx(-math.log(sigma) - 0.5 * math.log(2 * math.pi), abs=1e-4)
    assert earned[2] < 1.0
    assert (earned[:2] > 1.0).all()


def test_each_column_has_the_floor_of_its_own_rounding() -> None:
    rng = np.random.default_rng(0)
    steps = np.array([0.01, 0.1, 1.0])
    x = np.round(rng.normal(size=(500, 3)) * [1.0, 1.0, 20.0] / steps) * steps
    data = prepare_data(x, np.arange(500), likelihood="normal")
    floors = torch.tensor(data.likelihood["args"]["floor"]) * data.preprocess.scale
    torch.testing.assert_close(floors, torch.tensor(0.29 * steps, dtype=torch.float32), rtol=1e-3, atol=0)


def test_one_sigma_for_all_columns_has_one_floor() -> None:
    for args in ({"scale": "learned"}, {"scale": "optimal"}):
        data = prepare_data(mixed(), ALL, likelihood={"name": "normal", "args": args})
        assert data.likelihood["args"]["floor"] == pytest.approx(1e-3)
    images = np.random.default_rng(0).normal(size=(50, 4, 4)).round(1)
    floor = prepare_data(images, np.arange(50)).likelihood["args"]["floor"]
    assert floor == pytest.approx(0.029 / images.std(), rel=1e-3)


@pytest.mark.parametrize(
    ("x", "likelihood", "measure", "is_bound"),
    [
        (np.arange(200).reshape(-1, 2) % 7 * 0.5, "normal", "density in the units of the data", False),
        (np.arange(200).reshape(-1, 2) % 7, "normal", "density in the units of the data", True),
        (np.arange(200).reshape(-1, 2) % 7, "continuous_bernoulli", "density on the scale [0, 1]", True),
        (np.arange(200).reshape(-1, 2) % 7 / 6, "continuous_bernoulli", "density in the units of the data", False),
        (np.arange(200).reshape(-1, 2) % 7, "binomial", "probability mass", False),
        (np.arange(200).reshape(-1, 2) % 2 * 255, "bernoulli", "probability mass", False),
    ],
)
def test_the_measure_is_told(x, likelihood, measure, is_bound) -> None:
    data = prepare_data(x, np.arange(len(x)), likelihood=likelihood)
    assert (data.measure, data.is_bound) == (measure, is_bound)


def arrays() -> dict[str, tuple[np.ndarray, str | None]]:
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (200, 6, 5, 3), dtype=np.uint8)
    return {
        "real": (rng.normal(size=(200, 4)).astype(np.float32), None),
        "constant": (np.insert(rng.normal(size=(200, 2)), 1, 7.0, axis=1).astype(np.float32), None),
        "integers": (rng.integers(-9, 9, (200, 3)), "normal"),
        "unit scale": (rng.integers(0, 18, (200, 3)), "continuous_bernoulli"),
        "counts": (rng.poisson(20, (200, 3)), "poisson"),
        "colours last": (grey, None),
        "bits of colours": (255 * (grey > 127).astype(np.uint8), "bernoulli"),
    }


@pytest.mark.parametrize("case", arrays())
def test_rows_come_back_as_they_went_in_and_new_rows_go_the_same_way(case) -> None:
    x, likelihood = arrays()[case]
    data = prepare_rows(x, ALL, likelihood=likelihood)
    units = Units.from_json(json.loads(json.dumps(data.units.to_json())))
    assert units == data.units
    units.check(x)
    assert data.x.shape[1:] == units.model_shape
    for rows in (data.x, units.to_model(x)):
        np.testing.assert_allclose(units.to_data(rows, drawn=True), x, rtol=1e-6)
    if data.noise is None:
        assert torch.equal(units.to_model(x), data.x)


def test_grey_values_are_binarised_for_a_bernoulli_whatever_the_source_is() -> None:
    x = np.random.default_rng(0).integers(0, 256, (200, 6, 6), dtype=np.uint8)
    named, asked = prepare_rows(x, ALL, source_name="mnist"), prepare_rows(x, ALL, likelihood="bernoulli")
    assert named.noise == asked.noise == {"name": "binarise", "args": {}}
    assert torch.equal(named.x, asked.x)
    assert [("binarised" in " ".join([data.reason, *data.notes])) for data in (named, asked)] == [True, True]
    assert prepare_rows(x, ALL, source_name="mnist", likelihood="discretised_logistic").noise is None


def test_columns_that_are_left_out_are_those_of_the_training_rows() -> None:
    x = np.column_stack([mixed(), np.full(200, 7.0)])
    x[150:, 3] = 8.0
    data = prepare_rows(x, np.arange(100), columns=list("abcd"))
    assert data.units.constants == ((3, 7.0),)
    assert data.notes == ["1 constant column is left out of the model: d"]
    few = np.tile(x[:1], (5, 1))
    data.units.check(few, list("abcd"))  # constant here, and modelled all the same
    assert data.units.to_model(few).shape == (5, 3)
    with pytest.raises(InputError, match=r"Column d was 7 in all training rows, .* in 50 of these 200 rows"):
        data.units.check(x)


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        (np.zeros((3, 2)), None, r"The rows have shape \(2,\); the model was trained on rows of \(3,\)"),
        (np.zeros((3, 3)), list("acb"), "Column 1 is 'c'; the model was trained with 'b' there"),
    ],
)
def test_other_rows_are_refused_in_one_line(rows, columns, message) -> None:
    units = prepare_rows(mixed(), ALL, columns=list("abc")).units
    with pytest.raises(InputError, match=message):
        units.check(rows, columns)


@pytest.mark.parametrize("rows", [np.full((3, 2, 2), 0.5), np.ones((3, 2, 2)), np.full((3, 2, 2), 256)])
def test_what_is_not_grey_is_not_binarised(rows) -> None:
    x = np.random.default_rng(0).integers(0, 256, (200, 2, 2), dtype=np.uint8)
    units = prepare_rows(x, ALL, likelihood="bernoulli").units
    with pytest.raises(InputError, match=r"binarises 8-bit grey values 0\.\.255; these rows hold"):
        units.check(rows)
