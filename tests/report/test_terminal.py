"""The live line of a comparison: the time left is there in any window."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from latentfit.comparison.plan import Plan
from latentfit.report.terminal import Terminal

RECIPE = {"max_steps": 1500, "batch_size": 128}
METHODS = ["standard", "annealed", "mixture", "realnvp"]


@pytest.mark.parametrize("lang", ["en", "vi"])
@pytest.mark.parametrize("width", [40, 60, 80, 100])
def test_the_live_line_fits_and_says_how_long(width, lang):
    plan = Plan({"recipe": RECIPE}, METHODS, ["mixture"], 3, dict.fromkeys(METHODS, 0.01), n_scored=500)
    terminal = Terminal(io.StringIO(), command="latentfit compare digits", folder=Path("run"), lang=lang, width=width)
    terminal.plan = plan
    for number, jobs in ((1, plan.first), (2, plan.second)):
        terminal.stage(number, plan, None)
        for done in range(len(jobs)):
            line = terminal.status()
            assert f" {done}/{len(jobs)} " in line
            assert line.endswith(" left" if lang == "en" else line[-4:])
            assert any(char == ":" for char in line)  # m:ss
            assert len(line) <= max(width, 52)  # below that a title and a time have no room
            if width >= 80:
                assert "[" in line
            terminal.job_done(jobs[done], {}, done + 1, len(jobs), 10.0)
