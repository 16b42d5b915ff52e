"""Posteriors q(z given x): what the encoder's output is turned into."""

from latentfit.posteriors.diagonal import DiagonalPosterior
from latentfit.posteriors.full import FullGaussianPosterior
from latentfit.posteriors.gaussian import DiagonalGaussian, FullGaussian
from latentfit.posteriors.iaf import IAFPosterior
from latentfit.posteriors.planar import PlanarPosterior
from latentfit.posteriors.realnvp import RealNVPPosterior
from latentfit.posteriors.support import SupportPosterior
from latentfit.posteriors.sylvester import SylvesterPosterior
from latentfit.registry import registry
from latentfit.training.rng import standard_normal

registry.register("posterior", "diagonal", DiagonalPosterior, aliases=("gaussian", "normal", "mean_field"))
registry.register("posterior", "full", FullGaussianPosterior, aliases=("full_gaussian", "full_covariance"))
registry.register("posterior", "planar", PlanarPosterior)
registry.register("posterior", "sylvester", SylvesterPosterior, aliases=("snf", "householder", "orthogonal"))
registry.register("posterior", "iaf", IAFPosterior, aliases=("inverse_autoregressive",))
registry.register("posterior", "realnvp_posterior", RealNVPPosterior, aliases=("realnvp", "real_nvp"))
registry.register("posterior", "support", SupportPosterior, aliases=("simplex", "sphere", "square"))

__all__ = [
    "DiagonalGaussian",
    "DiagonalPosterior",
    "FullGaussian",
    "FullGaussianPosterior",
    "IAFPosterior",
    "PlanarPosterior",
    "RealNVPPosterior",
    "SupportPosterior",
    "SylvesterPosterior",
    "standard_normal",
]
