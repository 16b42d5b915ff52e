"""The report of a comparison: HTML, plain text, a card for chat, the README of a saved model."""

from __future__ import annotations

from latentfit.report.card import card
from latentfit.report.html import render, report_png, write
from latentfit.report.text import as_text
from latentfit.report.verdict import evidence, headline, verdict_lines

__all__ = ["as_text", "card", "evidence", "headline", "render", "report_png", "verdict_lines", "write"]
