"""A fitted prior put in a model's place, and the proof that nothing else changed."""

from __future__ import annotations

from typing import Any

from latentfit.adapters import AdaptedVAE
from latentfit.data.batch import Batch
from latentfit.model import Prior, VAEModule
from latentfit.saving import weights_sha256


def put_in_place(model: Any, vae: VAEModule, prior: Prior, rows: Batch) -> Any:
    """The model under another prior, networks shared: an `lf.VAE` stays one, anything else is a `VAEModule`.

    Args:
        model: what the user gave; it is not changed.
        vae: it behind the contract.
        prior: what it samples from and is scored by from now on.
        rows: training rows, on which an `lf.VAE` fits its evaluation proposal again.
    """
    if hasattr(model, "_with_prior"):
        return model._with_prior(prior, rows.x)
    return vae.with_parts(prior=prior)


def own_weights_sha256(vae: VAEModule) -> str:
    """SHA-256 of all weights and buffers but the prior's; of a foreign model's, all that is its own."""
    return vae.weights_sha256() if isinstance(vae, AdaptedVAE) else weights_sha256(vae, without="prior.")
