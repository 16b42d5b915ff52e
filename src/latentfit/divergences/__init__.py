"""Divergences between two samples, as functions."""

from latentfit.divergences.frechet import frechet_distance

__all__ = ["frechet_distance"]
