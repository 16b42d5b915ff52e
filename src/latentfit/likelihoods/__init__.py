"""p(x given z): one likelihood, one file, behind `latentfit.model.contracts.Likelihood`."""

from __future__ import annotations

from typing import Any

from latentfit.likelihoods.bernoulli import Bernoulli
from latentfit.likelihoods.binomial import Binomial
from latentfit.likelihoods.categorical import Categorical
from latentfit.likelihoods.continuous_bernoulli import ContinuousBernoulli
from latentfit.likelihoods.discretised_logistic import DiscretisedLogistic
from latentfit.likelihoods.negative_binomial import NegativeBinomial
from latentfit.likelihoods.normal import Normal
from latentfit.likelihoods.poisson import Poisson
from latentfit.likelihoods.zinb import ZeroInflatedNegativeBinomial
from latentfit.model.contracts import Likelihood
from latentfit.registry import registry

registry.register("likelihood", "bernoulli", Bernoulli)
registry.register("likelihood", "continuous_bernoulli", ContinuousBernoulli)
registry.register("likelihood", "binomial", Binomial)
registry.register("likelihood", "normal", Normal, synonyms=("gaussian",))
registry.register("likelihood", "discretised_logistic", DiscretisedLogistic, synonyms=("discretized_logistic",))
registry.register("likelihood", "categorical", Categorical)
registry.register("likelihood", "poisson", Poisson)
registry.register("likelihood", "negative_binomial", NegativeBinomial, synonyms=("nb",))
registry.register("likelihood", "zinb", ZeroInflatedNegativeBinomial)


def create(name: str, **arguments: Any) -> Likelihood:
    """A likelihood by name, its arguments validated; `gaussian` and `nb` are accepted too.

    Raises:
        InputError: an unknown name or argument.

    Example:
        >>> create("binomial", n=16).config()
        {'name': 'binomial', 'args': {'n': 16}}
    """
    return registry.create("likelihood", name, **arguments)


def names() -> list[str]:
    """The names that `create` takes."""
    return registry.names("likelihood")


__all__ = [
    "Bernoulli",
    "Binomial",
    "Categorical",
    "ContinuousBernoulli",
    "DiscretisedLogistic",
    "Likelihood",
    "NegativeBinomial",
    "Normal",
    "Poisson",
    "ZeroInflatedNegativeBinomial",
    "create",
    "names",
]
