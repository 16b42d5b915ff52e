"""The report of a comparison: HTML, the card for chat, the README of a saved model, the verdict in sentences."""

from __future__ import annotations

from latentfit.report.card import card
from latentfit.report.html import render, report_png, write
from latentfit.report.verdict import evidence, headline, verdict_lines

__all__ = ["card", "evidence", "headline", "render", "report_png", "verdict_lines", "write"]
