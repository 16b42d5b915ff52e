"""What the priors that are made of an encoder share."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from latentfit.errors import CapabilityError
from latentfit.model.contracts import LatentDistribution
from latentfit.posteriors.gaussian import DiagonalGaussian, FullGaussian

#: rows that are encoded at once without gradients
ENCODED = 5_000


def gaussian(q: LatentDistribution, name: str) -> DiagonalGaussian | FullGaussian:
    """q itself, where it is a Gaussian.

    Raises:
        CapabilityError: it is not.
    """
    if isinstance(q, DiagonalGaussian | FullGaussian):
        return q
    raise CapabilityError(
        f"{name} is a mixture over the encoder's Gaussians (posterior 'diagonal' or 'full'); {type(q).__name__} is "
        "none. Take such a posterior, or a prior that does not ask for one: mixture, realnvp."
    )


def resize(module: nn.Module, state: Mapping[str, Tensor], prefix: str) -> None:
    """Give a module's own tensors the shapes that a saved state has, which the data decided; call it before loading."""
    held: dict[str, Tensor | None] = {**module._parameters, **module._buffers}
    for name, tensor in held.items():
        stored = state.get(prefix + name)
        if stored is None or (tensor is not None and tensor.shape == stored.shape):
            continue
        room = torch.empty_like(stored)
        setattr(module, name, nn.Parameter(room) if name in module._parameters else room)
