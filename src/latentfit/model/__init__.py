"""The contracts, the VAE that composes them, the objective and its training."""

from latentfit.model.contracts import (
    RANKABLE,
    LatentDistribution,
    Likelihood,
    Penalty,
    Posterior,
    Prior,
)
from latentfit.model.fitting import RECIPE, fit
from latentfit.model.objective import ELBO
from latentfit.model.rows import CodeRows, FitOptions, as_std
from latentfit.model.vae import VAEModule

__all__ = [
    "ELBO",
    "RANKABLE",
    "RECIPE",
    "CodeRows",
    "FitOptions",
    "LatentDistribution",
    "Likelihood",
    "Penalty",
    "Posterior",
    "Prior",
    "VAEModule",
    "as_std",
    "fit",
]
