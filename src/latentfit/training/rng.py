"""Randomness that leaves the caller's untouched."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Generator, Tensor


@contextmanager
def isolated_rng(seed: int, *devices: torch.device | str) -> Iterator[None]:
    """Run a block with torch's generators seeded, and put the caller's states back afterwards.

    Args:
        seed: any non-negative integer.
        devices: those whose generators are seeded beside the CPU's.

    Example:
        >>> import torch
        >>> before = torch.get_rng_state()
        >>> with isolated_rng(0):
        ...     a = torch.rand(1)
        >>> with isolated_rng(0):
        ...     b = torch.rand(1)
        >>> bool(a == b), torch.equal(before, torch.get_rng_state())
        (True, True)
    """
    on_gpu = [device for device in map(torch.device, devices) if device.type == "cuda"]
    with torch.random.fork_rng(devices=on_gpu):
        # torch.manual_seed would seed every other accelerator too, and those are the caller's
        torch.default_generator.manual_seed(seed)
        for device in on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def independent_seeds(random_state: int, n: int) -> list[int]:
    """n unrelated seeds from one integer: equal ones would tie the order of the rows to the noise."""
    return [int(seed) for seed in np.random.SeedSequence(random_state).generate_state(n, np.uint32)]


def standard_normal(shape: Sequence[int], like: Tensor, generator: Generator | None = None) -> Tensor:
    """N(0, 1) noise of a shape, with the dtype and device of `like`.

    A generator's own device is used and the noise then moved: a CPU generator gives the same draws on every
    machine.
    """
    device = like.device if generator is None else generator.device
    return torch.randn(tuple(shape), generator=generator, device=device, dtype=like.dtype).to(like.device)
