"""Standard normal noise from the generator that was given, wherever it lives."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor


def standard_normal(shape: Sequence[int], like: Tensor, generator: Generator | None = None) -> Tensor:
    """N(0, 1) noise of a shape, with the dtype and device of `like`.

    A generator's own device is used and the noise then moved: a CPU generator gives the same draws on every
    machine.
    """
    device = like.device if generator is None else generator.device
    return torch.randn(tuple(shape), generator=generator, device=device, dtype=like.dtype).to(like.device)
