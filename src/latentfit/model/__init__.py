"""The contracts, the VAE that composes them, the objective and its training."""

from latentfit.model.contracts import (
    RANKABLE,
    LatentDistribution,
    Likelihood,
    Penalty,
    Posterior,
    Prior,
    as_std,
)
from latentfit.model.fitting import RECIPE, fit
from latentfit.model.objective import ELBO
from latentfit.model.vae import VAEModule

__all__ = [
    "ELBO",
    "RANKABLE",
    "RECIPE",
    "LatentDistribution",
    "Likelihood",
    "Penalty",
    "Posterior",
    "Prior",
    "VAEModule",
    "as_std",
    "fit",
]
