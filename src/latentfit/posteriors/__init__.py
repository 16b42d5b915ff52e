"""Posteriors q(z given x): what the encoder's output is turned into."""

from latentfit.posteriors.diagonal import DiagonalPosterior
from latentfit.posteriors.full import FullGaussianPosterior
from latentfit.posteriors.gaussian import DiagonalGaussian, FullGaussian
from latentfit.posteriors.noise import standard_normal
from latentfit.posteriors.support import SupportPosterior
from latentfit.registry import registry

registry.register("posterior", "diagonal", DiagonalPosterior, aliases=("gaussian", "normal", "mean_field"))
registry.register("posterior", "full", FullGaussianPosterior, aliases=("full_gaussian", "full_covariance"))
registry.register("posterior", "support", SupportPosterior, aliases=("simplex", "sphere", "square"))

__all__ = [
    "DiagonalGaussian",
    "DiagonalPosterior",
    "FullGaussian",
    "FullGaussianPosterior",
    "SupportPosterior",
    "standard_normal",
]
