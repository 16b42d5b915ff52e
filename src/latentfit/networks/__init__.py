"""Encoders' and decoders' bodies: one network, one file."""

from __future__ import annotations

from typing import Any

from latentfit.networks.base import Network
from latentfit.networks.gated import GatedMLP
from latentfit.networks.linear import Linear
from latentfit.networks.mlp import MLP
from latentfit.networks.residual import ResidualConv
from latentfit.networks.skip import SkipMLP
from latentfit.registry import registry

registry.register("network", "mlp", MLP)
registry.register("network", "gated_mlp", GatedMLP)
registry.register("network", "skip_mlp", SkipMLP)
registry.register("network", "residual_conv", ResidualConv, aliases=("conv", "cnn", "resnet"))


def create(name: str, **arguments: Any) -> Network:
    """A network by name, its arguments validated; weights come from torch's current random state.

    Raises:
        InputError: an unknown name or argument.

    Example:
        >>> create("mlp", in_shape=2, out_shape=1, hidden=[8]).config()["args"]["hidden"]
        [8]
    """
    return registry.create("network", name, **arguments)


def names() -> list[str]:
    """The names that `create` takes."""
    return registry.names("network")


__all__ = ["MLP", "GatedMLP", "Linear", "Network", "ResidualConv", "SkipMLP", "create", "names"]
