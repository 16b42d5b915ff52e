"""Samples for the tests of divergences."""

import torch


def normal(n, dim, seed, shift=0.0, dtype=torch.float32):
    """n rows of N(shift, I)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, dim, generator=generator, dtype=torch.float64).to(dtype) + shift
