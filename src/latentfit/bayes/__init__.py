"""Distributions over the weights of an encoder or a decoder, the user's own included.

A network with such a distribution takes the network's place in a `VAEModule`; `model.draws(M)` then yields ordinary
VAEs, and p(x) is their mixture.
"""

from torch import nn

from latentfit.bayes.dropout import MCDropout
from latentfit.bayes.ensemble import Ensemble
from latentfit.bayes.iterates import SWAG
from latentfit.bayes.langevin import SGLD
from latentfit.bayes.last_layer import Laplace
from latentfit.bayes.mean_field import MeanField
from latentfit.bayes.post_hoc import laplace, sgld, swag
from latentfit.model.uncertain import N_DRAWS, UncertainNetwork
from latentfit.registry import registry

registry.register("weights", "bnn", MeanField, aliases=("mean_field", "bayes_by_backprop", "bbb", "flipout"))
registry.register("weights", "mc_dropout", MCDropout, aliases=("dropout", "mcdropout"))
registry.register("weights", "swag", SWAG)
registry.register("weights", "ensemble", Ensemble, aliases=("deep_ensemble", "ensembles"))
registry.register("weights", "sgld", SGLD, aliases=("langevin", "sghmc"))
registry.register("weights", "laplace", Laplace, aliases=("last_layer_laplace",))


def names() -> list[str]:
    """The names of all distributions over weights."""
    return registry.names("weights")


def create(name: str, network: nn.Module, **arguments: object) -> UncertainNetwork:
    """A network with a distribution over its weights, by name: `create("bnn", decoder, prior_scale=1.0)`.

    Raises:
        InputError: an unknown name or argument, with what is known.
    """
    found: UncertainNetwork = registry.create("weights", name, network=network, **arguments)
    return found


__all__ = [
    "N_DRAWS",
    "SGLD",
    "SWAG",
    "Ensemble",
    "Laplace",
    "MCDropout",
    "MeanField",
    "UncertainNetwork",
    "create",
    "laplace",
    "names",
    "sgld",
    "swag",
]
