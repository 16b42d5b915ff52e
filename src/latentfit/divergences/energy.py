"""The energy distance."""

from __future__ import annotations

from numpy.typing import ArrayLike
from torch import Tensor

from latentfit.divergences.mmd import mmd2


def energy_distance(a: ArrayLike | Tensor, b: ArrayLike | Tensor, *, unbiased: bool = True) -> float:
    r"""2 E|a - b| - E|a - a'| - E|b - b'|, exactly: the MMD^2 of the kernel -|x - y|.

    It has no bandwidth, and vanishes only between equal distributions.

    Args:
        a: (n, D), n >= 2.
        b: (m, D), m >= 2.
        unbiased: pairs of a row with itself are left out; it may be negative.

    Returns:
        The distance in the units of the samples; `scipy.stats.energy_distance` is its square root, with
        `unbiased=False`, in one dimension.

    Raises:
        InputError: other shapes, or entries that are not finite.

    Source: Szekely & Rizzo (2013), Journal of Statistical Planning and Inference 143.

    Example:
        >>> import torch
        >>> round(energy_distance(torch.zeros(2, 1), torch.full((3, 1), 2.0)), 6)
        4.0
    """
    return mmd2(a, b, kernel="energy", unbiased=unbiased)
