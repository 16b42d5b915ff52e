"""VAEs that somebody else wrote, behind the contract: run on an example, described, never changed."""

from latentfit.adapters.adapt import adapt
from latentfit.adapters.adapted import AdaptedVAE, Loss, OwnRows, TrainingFacts
from latentfit.adapters.given import GivenGaussian
from latentfit.adapters.scale_card import LatentScaleCard, latent_scale_card
from latentfit.adapters.subject import Subject, subject
from latentfit.adapters.understood import Understood

__all__ = [
    "AdaptedVAE",
    "GivenGaussian",
    "LatentScaleCard",
    "Loss",
    "OwnRows",
    "Subject",
    "TrainingFacts",
    "Understood",
    "adapt",
    "latent_scale_card",
    "subject",
]
