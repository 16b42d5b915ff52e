"""Which latent units carry anything."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from latentfit.errors import InputError
from latentfit.evaluation.codes import FLOAT64_ROWS, Codes, unit_kl
from latentfit.evaluation.rows import blocks, to_numpy


@dataclass(frozen=True)
class ActiveUnits:
    """The units of a latent, flattened to D.

    Attributes:
        active: (D,) bool, whether the variance over rows of E[z_d given x] exceeds the threshold.
        mean_variance: (D,) that variance.
        kl: (D,) mean KL of each unit's q(z_d given x) from N(0, 1), nats.
        std: (D,) standard deviation of the aggregate posterior.
        threshold: on `mean_variance`.
    """

    active: np.ndarray
    mean_variance: np.ndarray
    kl: np.ndarray
    std: np.ndarray
    threshold: float

    def __int__(self) -> int:
        return int(self.active.sum())

    @property
    def total(self) -> int:
        """D."""
        return self.active.size

    def __str__(self) -> str:
        return f"{int(self)} of {self.total}"


def active_units(codes: Codes, threshold: float = 0.01) -> ActiveUnits:
    """Units whose mean moves with x: Var_x E[z_d given x] > threshold.

    The threshold is in units of a N(0, 1) prior's variance: it means little where z has another scale.

    Source: Burda et al. 2016, arXiv 1509.00519.

    Raises:
        InputError: the codes of a single row.

    >>> import torch
    >>> mean = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    >>> print(active_units(Codes(mean, torch.full((2, 2), 0.5))))
    1 of 2
    """
    if len(codes) < 2:
        raise InputError(f"active_units: whether a mean moves with x shows in 2 rows or more, got {len(codes)}.")
    mean, std = codes.mean.flatten(1), codes.std.flatten(1)
    n, parts = len(mean), list(blocks(len(mean), FLOAT64_ROWS))  # float64 in blocks: N may be a million
    centre = torch.stack([mean[rows].double().sum(0) for rows in parts]).sum(0) / n
    variance = torch.stack([(mean[rows].double() - centre).square().sum(0) for rows in parts]).sum(0) / (n - 1)
    spread = torch.stack([std[rows].double().square().sum(0) for rows in parts]).sum(0) / n
    kl = torch.stack([unit_kl(mean[rows], std[rows]).sum(0) for rows in parts]).sum(0) / n
    return ActiveUnits(
        active=(variance > threshold).cpu().numpy(),
        mean_variance=to_numpy(variance),
        kl=to_numpy(kl),
        std=to_numpy((variance + spread).sqrt()),
        threshold=threshold,
    )
