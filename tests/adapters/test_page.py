"""docs/adapters.md: what it shows runs, and says what the page says it does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from latentfit.adapters import Loss

PAGE = Path(__file__).resolve().parents[2] / "docs" / "adapters.md"


def test_the_page_runs(capsys) -> None:
    scope: dict = {}
    for block in re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        exec(block, scope)
    printed = capsys.readouterr().out
    assert "Adapted Tutorial on cpu" in printed
    assert "read as log-variance" in printed
    assert "scale_factor = 1 / std of all z" in printed


@pytest.mark.parametrize(("sigma", "beta"), [(1.0, 1.5), (0.1, 150)])
def test_its_betas(sigma: float, beta: float) -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert f"beta {beta:g} at sigma {sigma:g}" in text
    assert Loss(0.00025, "mse_mean").effective_beta(64 * 64 * 3, sigma) == pytest.approx(beta, rel=0.03)
