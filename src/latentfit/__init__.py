"""Latentfit: what the N(0, I) prior costs your VAE, at least, in nats, and how to win it back."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

#: public name -> where it is; imported at first use, so that `import latentfit` costs next to nothing
_LAZY = {
    "Batch": "latentfit.data:Batch",
    "ELBO": "latentfit.model:ELBO",
    "Estimate": "latentfit.evaluation.estimate:Estimate",
    "VAE": "latentfit.estimator:VAE",
    "VAEModule": "latentfit.model:VAEModule",
    "adapt": "latentfit.adapters:adapt",
    "bayes": "latentfit.bayes",
    "compare": "latentfit.comparison:compare",
    "data": "latentfit.data",
    "diagnose": "latentfit.diagnosis.model:diagnose",
    "diagnose_latents": "latentfit.diagnosis.latents:diagnose_latents",
    "errors": "latentfit.errors",
    "evaluation": "latentfit.evaluation",
    "fit": "latentfit.model:fit",
    "kl_terms": "latentfit.model.kl_terms",
    "likelihoods": "latentfit.likelihoods",
    "load": "latentfit.estimator:load",
    "methods": "latentfit.methods",
    "networks": "latentfit.networks",
    "penalties": "latentfit.penalties",
    "posteriors": "latentfit.posteriors",
    "priors": "latentfit.priors",
    "retrofit": "latentfit.retrofitting:retrofit",
    "save": "latentfit.estimator:save",
    "schedules": "latentfit.model.schedules",
    "tune_beta": "latentfit.comparison.tune:tune_beta",
}

__all__ = ["__version__", *_LAZY]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'latentfit' has no attribute {name!r}")
    module, _, attribute = _LAZY[name].partition(":")
    value = importlib.import_module(module)
    if attribute:
        value = getattr(value, attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
