"""ONE loop that minimises a loss over data, for models, flows, second stages and proposals alike."""

from __future__ import annotations

from latentfit.training.history import SETTLED, late_slope, short_record
from latentfit.training.loop import TrainingResult, minimise
from latentfit.training.progress import (
    LiveProgress,
    PlainProgress,
    Progress,
    ProgressEvent,
    show_progress,
)
from latentfit.training.recipe import Recipe
from latentfit.training.rng import independent_seeds, isolated_rng

__all__ = [
    "SETTLED",
    "LiveProgress",
    "PlainProgress",
    "Progress",
    "ProgressEvent",
    "Recipe",
    "TrainingResult",
    "independent_seeds",
    "isolated_rng",
    "late_slope",
    "minimise",
    "short_record",
    "show_progress",
]
