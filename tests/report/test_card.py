"""The README of a saved model."""

from __future__ import annotations

import ast
import json
import re

import pytest

from latentfit.evaluation.estimate import Estimate
from latentfit.report import card

CONFIG = {"family": "prior", "name": "mixture", "args": {"latent_dim": 16, "n_components": 20}}
FACTS = {
    "kind": "prior",
    "path": "runs/digits/prior",
    "data": "digits",
    "fingerprint": "9f2c1e77ab04",
    "base_measure": "probability mass of counts 0..16",
    "gain": Estimate(0.83, 0.11, (0.6, 1.0)),
    "log_px": Estimate(-113.3, 0.9, (-115.0, -111.5)).to_dict(),
    "kl": 14.234567,
    "n_parameters": 149320,
    "versions": {"latentfit": "0.1.0"},
}


def test_it_says_what_it_is_and_with_what_uncertainty():
    text = card(CONFIG, FACTS)
    for expected in (
        "# mixture",
        "0.8 ± 0.1",
        "-113.3 ± 0.9",
        "149,320",
        "14.23",
        "9f2c1e77ab04",
        "counts 0..16",
    ):
        assert expected in text


@pytest.mark.parametrize(("kind", "last"), [("prior", "prior.sample(64)"), ("vae", "vae.sample(64)")])
def test_loading_and_sampling_take_two_lines_that_are_python(kind, last):
    text = card(CONFIG, {**FACTS, "kind": kind})
    code = re.search(r"```python\n(.*?)```", text, flags=re.S).group(1)
    ast.parse(code)
    lines = [line for line in code.splitlines() if line.strip() and not line.startswith("import")]
    assert len(lines) == 2
    assert "runs/digits/prior" in lines[0]
    assert last in lines[1]


def test_the_configuration_is_there_as_json():
    fence = re.search(r"```json\n(.*?)```", card(CONFIG, {}), flags=re.S).group(1)
    assert json.loads(fence) == CONFIG


def test_missing_facts_leave_no_trace():
    text = card({"name": "nsf", "args": {}}, {})
    assert "None" not in text
    assert "| number |" not in text
    assert "Where it comes from" not in text


def test_foreign_names_cannot_break_out():
    text = card({"name": "x", "args": {"a": "``` <b>"}}, {"data": "<img src=x> | [a](b)", "fingerprint": "`x`"})
    assert "<img" not in text
    assert " | " not in text
    assert text.count("```") == 4


def test_a_prior_that_keeps_rows_says_so_wherever_it_stands():
    prior = {"family": "prior", "name": "exemplar", "args": {}}
    inside = {"name": "vae", "args": {"prior": {"family": "prior", "name": "defensive", "args": {"base": prior}}}}
    assert all("## Privacy" in card(config, {}) for config in (prior, inside))
    assert "Privacy" not in card({"name": "mixture", "args": {}}, {})
