"""Penalties: what presses the aggregate posterior q(z) toward the model's prior, or its units apart."""

from typing import Any

from latentfit.model.contracts import Penalty
from latentfit.penalties.adversarial import AdversarialPenalty
from latentfit.penalties.energy import EnergyPenalty
from latentfit.penalties.matching import MatchingPenalty
from latentfit.penalties.mmd import MMDPenalty
from latentfit.penalties.sliced_wasserstein import SlicedWassersteinPenalty
from latentfit.penalties.total_correlation import TotalCorrelationPenalty
from latentfit.registry import registry

registry.register("penalty", "mmd", MMDPenalty, aliases=("wae", "wae_mmd", "infovae", "info_vae"))
registry.register("penalty", "sliced_wasserstein", SlicedWassersteinPenalty, aliases=("swae", "sw", "wasserstein"))
registry.register("penalty", "energy", EnergyPenalty, aliases=("energy_distance",))
registry.register("penalty", "adversarial", AdversarialPenalty, aliases=("aae", "gan", "wae_gan", "critic"))
registry.register("penalty", "total_correlation", TotalCorrelationPenalty, aliases=("tc", "beta_tcvae", "factor_vae"))

mmd = MMDPenalty
sliced_wasserstein = SlicedWassersteinPenalty
energy = EnergyPenalty
adversarial = AdversarialPenalty
total_correlation = TotalCorrelationPenalty


def names() -> list[str]:
    """The names of all penalties."""
    return registry.names("penalty")


def create(name: str, **arguments: Any) -> Penalty:
    """A penalty by name; its arguments are those of its class.

    Raises:
        InputError: an unknown name or argument, with what is known.

    Example:
        >>> create("mmd", weight=300.0).weight
        300.0
    """
    penalty: Penalty = registry.create("penalty", name, **arguments)
    return penalty


__all__ = [
    "AdversarialPenalty",
    "EnergyPenalty",
    "MMDPenalty",
    "MatchingPenalty",
    "SlicedWassersteinPenalty",
    "TotalCorrelationPenalty",
    "adversarial",
    "create",
    "energy",
    "mmd",
    "names",
    "sliced_wasserstein",
    "total_correlation",
]
