"""Binarisation and dequantisation of rows: fresh in training, once and stored for scoring."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Generator, Tensor

from latentfit.data.batch import Batch
from latentfit.errors import InputError


class Binarise:
    """Draws x ~ Bernoulli(grey) anew each time: the dynamic binarisation of Salakhutdinov & Murray (2008).

    Args:
        generator: of the draws; torch's current RNG state by default (the training loop seeds a fork of it).

    Example:
        >>> binarise = Binarise(torch.Generator().manual_seed(0))
        >>> binarise(Batch(torch.tensor([[0.0, 1.0]]))).x
        tensor([[0., 1.]])
    """

    def __init__(self, generator: Generator | None = None) -> None:
        self.generator = generator
        self._seen = False

    def __call__(self, batch: Batch) -> Batch:
        if not self._seen:  # once, for it is the same data all along
            _require_unit(batch.x)
            self._seen = True
        return replace(batch, x=(_uniform(batch.x, self.generator) < batch.x).to(batch.x.dtype))


class Dequantise:
    r"""Adds u ~ U(0, width) anew each time, which makes integers reals.

    .. math:: \log P(x) \ge E_u[\log p(x + u)] + D \log \mathrm{width}

    so a density of dequantised data is a lower bound on the mass of the data (Theis et al. 2016,
    arXiv:1511.01844).

    Args:
        width: distance between neighbouring values.
        generator: of the draws; torch's current RNG state by default.
    """

    def __init__(self, width: float = 1.0, generator: Generator | None = None) -> None:
        self.width = _positive(width)
        self.generator = generator

    def __call__(self, batch: Batch) -> Batch:
        return replace(batch, x=batch.x + self.width * _uniform(batch.x, self.generator))


def grey_to_unit(x: np.ndarray) -> np.ndarray:
    """8-bit values 0..255 as float32 in [0, 1].

    Raises:
        InputError: values outside 0..255.

    Example:
        >>> grey_to_unit(np.array([[0, 51, 255]], dtype=np.uint8)).tolist()
        [[0.0, 0.20000000298023224, 1.0]]
    """
    if x.size and (x.min() < 0 or x.max() > 255):
        raise InputError(f"Expected 8-bit grey values 0..255, got {x.min()} to {x.max()}.")
    return x.astype(np.float32) / np.float32(255)


def binarise_once(x: Tensor, random_state: int = 0) -> Tensor:
    """The one stored binarisation for scoring: x in [0, 1] -> 0/1 of the same shape and dtype.

    The draws are PCG64's (numpy), made on the CPU: the same seed gives the same images on every machine.

    Raises:
        InputError: values outside [0, 1].

    Example:
        >>> binarise_once(torch.tensor([[0.0, 0.5, 1.0]]))[:, [0, 2]]
        tensor([[0., 1.]])
    """
    _require_unit(x)
    return (_stored_uniform(x, random_state) < x).to(x.dtype)


def dequantise_once(x: Tensor, width: float = 1.0, random_state: int = 0) -> Tensor:
    """The one stored dequantisation for scoring, x + U(0, width), drawn as `binarise_once` draws."""
    return x + _positive(width) * _stored_uniform(x, random_state)


def _uniform(x: Tensor, generator: Generator | None) -> Tensor:
    return torch.rand(x.shape, dtype=x.dtype, device=x.device, generator=generator)


def _stored_uniform(x: Tensor, random_state: int) -> Tensor:
    if not x.is_floating_point():
        raise InputError(f"Expected floating-point values, got {x.dtype}; grey_to_unit divides 8-bit ones by 255.")
    draws = np.random.default_rng(random_state).random(tuple(x.shape), dtype=np.float32)
    return torch.from_numpy(draws).to(x)


def _require_unit(x: Tensor) -> None:
    low, high = (float(v) for v in torch.aminmax(x))
    if not (low >= 0 and high <= 1):
        raise InputError(
            f"Binarisation takes grey values in [0, 1], got {low:.3g} to {high:.3g}; grey_to_unit "
            "divides 8-bit ones by 255."
        )


def _positive(width: float) -> float:
    if not width > 0:
        raise InputError(f"width must be positive, got {width}.")
    return width
