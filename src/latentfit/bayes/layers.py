"""Which weights of a network are uncertain, and copies of it with other weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Generator, Tensor, nn

from latentfit.errors import CapabilityError
from latentfit.networks.linear import Linear

DENSE = (Linear, nn.Linear)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def layers_of(network: nn.Module) -> dict[str, nn.Module]:
    """The dense and convolutional layers by name, in the order in which they were registered.

    Their weights and biases are what is uncertain; scales of normalisations and parameters outside such layers are not.

    Raises:
        CapabilityError: there is none, one whose weight is computed from others, or two that share one.
    """
    found: dict[str, nn.Module] = {
        name: m for name, m in network.named_modules() if isinstance(m, DENSE + CONVOLUTIONS)
    }
    owners: dict[int, str] = {}
    for name, layer in found.items():
        own = dict(layer.named_parameters(recurse=False))
        if "weight" not in own or set(own) - {"weight", "bias"}:
            raise CapabilityError(
                f"The weight of layer {name!r} is computed from other parameters (weight_norm, spectral_norm, ...), so "
                "it has no distribution of its own. Make it plain first (torch.nn.utils.parametrize."
                "remove_parametrizations), or take an ensemble."
            )
        for parameter in own.values():
            other = owners.setdefault(id(parameter), name)
            if other != name:
                raise CapabilityError(
                    f"Layers {other!r} and {name!r} share a parameter; its distribution would be counted twice. Give "
                    "each layer its own, or take an ensemble."
                )
    if not found:
        raise CapabilityError(
            f"{type(network).__name__} has no dense or convolutional layer, so there are no weights to be uncertain of."
        )
    return found


def weights_of(network: nn.Module) -> dict[str, nn.Parameter]:
    """The uncertain parameters by their names in the network."""
    return {
        f"{name}.{kind}" if name else kind: parameter
        for name, layer in layers_of(network).items()
        for kind, parameter in layer.named_parameters(recurse=False)
    }


def called_layers_of(network: nn.Module) -> dict[str, nn.Module]:
    """Those of `layers_of` that are called in a forward pass: attention reads the weights of its last layer itself."""
    read = [name for name, m in network.named_modules() if isinstance(m, nn.MultiheadAttention)]
    return {name: m for name, m in layers_of(network).items() if name.rpartition(".")[0] not in read}


def fan_in(weight: Tensor, layer: nn.Module) -> int:
    """How many inputs each output of the layer sums."""
    transposed = isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d)
    return weight.shape[0] if transposed else weight[0].numel()


def with_weights(network: nn.Module, values: Mapping[str, Tensor]) -> nn.Module:
    """A copy of the network with these parameters; the others are copied as they are."""
    changed = copy.deepcopy(network)
    parameters = dict(changed.named_parameters())
    with torch.no_grad():
        for name, value in values.items():
            parameters[name].copy_(value)
    return changed


def normal_like(x: Tensor, generator: Generator | None) -> Tensor:
    """Standard normal noise of a tensor's shape, drawn on the generator's device."""
    device = x.device if generator is None else generator.device
    return torch.randn(x.shape, dtype=x.dtype, device=device, generator=generator).to(x.device)


def key_of(name: str) -> str:
    """A parameter's name as a key of a `ParameterDict`, which takes no dots."""
    return name.replace(".", "/")
