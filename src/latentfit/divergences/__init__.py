"""Divergences between two samples, as functions."""

from latentfit.divergences.classifier import classifier_test
from latentfit.divergences.coverage import PRDC, precision_recall_density_coverage
from latentfit.divergences.energy import energy_distance
from latentfit.divergences.frechet import frechet_distance
from latentfit.divergences.mmd import mmd2, mmd_test
from latentfit.divergences.samples import TwoSampleTest
from latentfit.divergences.wasserstein import sliced_wasserstein

__all__ = [
    "PRDC",
    "TwoSampleTest",
    "classifier_test",
    "energy_distance",
    "frechet_distance",
    "mmd2",
    "mmd_test",
    "precision_recall_density_coverage",
    "sliced_wasserstein",
]
