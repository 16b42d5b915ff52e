"""Distributions over the weights of a VAE that is trained already."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

from torch import Tensor

from latentfit.bayes.iterates import SWAG
from latentfit.bayes.langevin import SGLD
from latentfit.bayes.last_layer import Covariance, Laplace
from latentfit.data.batch import Batch
from latentfit.data.rows import Rows, as_batch
from latentfit.errors import InputError
from latentfit.model.fitting import RECIPE
from latentfit.model.objective import ELBO
from latentfit.model.uncertain import UncertainNetwork
from latentfit.model.vae import VAEModule

Part = Literal["decoder", "encoder"]


def swag(module: VAEModule, X: Any, *, part: Part = "decoder", **options: Any) -> VAEModule:
    """The same VAE with SWAG weights in one network, which is trained on for some steps to find them.

    Args:
        module: a trained VAE; it is not touched.
        X: training rows (N, *data_shape).
        part: "decoder", or "encoder" (auxiliary: see `UncertainNetwork`).
        options: of `SWAG`, and of `explored`.

    Returns:
        A VAE whose `draws(M)` are ordinary VAEs.
    """
    return _around(SWAG, module, X, part, options)


def sgld(module: VAEModule, X: Any, *, part: Part = "decoder", **options: Any) -> VAEModule:
    """The same VAE with weights of one network sampled by Langevin dynamics; arguments as of `swag` and `SGLD`."""
    return _around(SGLD, module, X, part, options)


def laplace(
    module: VAEModule,
    X: Any,
    *,
    covariance: Covariance = "kron",
    prior_scale: float | None = None,
    prepare: Callable[[Batch], Batch] | None = None,
    random_state: int = 0,
) -> VAEModule:
    """The same VAE with a Gaussian over its decoder's last layer, by the curvature there: see `Laplace`.

    Args:
        module: a trained VAE; it is not touched.
        X: training rows (N, *data_shape), all of which are read once.
        covariance: "full", "kron" or "diagonal".
        prior_scale: s of the weights' prior; None: from the trained weights.
        prepare: as in training (dynamic binarisation).
        random_state: seed of the codes' draws.
    """
    options = {"covariance": covariance, "prior_scale": prior_scale, "prepare": prepare, "random_state": random_state}
    return _around(Laplace, module, X, "decoder", options)


def explored(
    changed: VAEModule,
    network: UncertainNetwork,
    X: Any,
    *,
    objective: ELBO | None = None,
    prepare: Callable[[Batch], Batch] | None = None,
    max_steps: int = RECIPE.max_steps,
    batch_size: int = RECIPE.batch_size,
    learning_rate: float = RECIPE.learning_rate,
    random_state: int = 0,
) -> VAEModule:
    """Let a network of `changed` find its distribution on rows X.

    Args:
        objective: that of the training; by default the ELBO.
        prepare: applied to each batch, as in training.
        max_steps, batch_size, learning_rate: of the training that is gone on with.
        random_state: seed.
    """
    objective = objective or ELBO()
    data = as_batch(X)
    objective.bind(changed, len(data))
    recipe = dataclasses.replace(
        RECIPE, max_steps=max_steps, batch_size=batch_size, learning_rate=learning_rate, device=str(changed.device)
    )

    def loss(batch: Batch) -> Mapping[str, Tensor]:
        return objective(changed, batch, objective.settled_at)

    network.explore(changed, loss, Rows(data, prepare), recipe, random_state)
    return changed.eval()


def _around(kind: type[UncertainNetwork], module: VAEModule, X: Any, part: str, options: dict[str, Any]) -> VAEModule:
    if part not in ("decoder", "encoder"):
        raise InputError(f"part is 'decoder' or 'encoder', got {part!r}.")
    if isinstance(getattr(module, part), UncertainNetwork):
        raise InputError(f"The {part}'s weights have a distribution already: {type(getattr(module, part)).__name__}.")
    known = {"objective", "prepare", "max_steps", "batch_size", "learning_rate", "random_state"}
    own = {key: value for key, value in options.items() if key not in known}
    network = kind(copy.deepcopy(getattr(module, part)), **own).to(module.device)
    changed = module.with_parts(**{part: network})
    return explored(changed, network, X, **{key: value for key, value in options.items() if key in known})
