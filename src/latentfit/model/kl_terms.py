"""Shapes of the KL's pressure beyond a weight: free bits, a capacity, a constraint on the reconstruction.

A term takes the KL's place in the loss, before the objective's weight: loss = -E_q[log p(x|z)] + w(t) term(KL).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, Literal

import torch
from torch import Tensor, nn

from latentfit.errors import InputError
from latentfit.registry import Component, registry

#: soft free bits: a weight moves by this share per step, and rests while its KL is up to this share above the floor
SOFT_RATE, SOFT_BAND = 0.01, 0.05
#: GECO's multiplier stays within these, in logarithms, whatever the constraint does
LOG_MULTIPLIER_RANGE = (-10.0, 10.0)


class KLTerm(Component, nn.Module, ABC):
    """What the KL is turned into. Implement `forward`; the rest are defaults that may be overridden."""

    #: whether `forward` is given the KL of each unit, (D,); otherwise the whole, (1,)
    per_unit: bool = False
    #: the first step from which the term is the same function
    settled_at: int = 0
    #: whether values of different steps may be compared; not where a state follows the training
    comparable: bool = True

    def bind(self, n_units: int) -> None:
        """Receive D before training, where a state has that size. Nothing by default."""

    @abstractmethod
    def forward(self, kl: Tensor, distortion: Tensor, step: int) -> Tensor:
        """The batch's mean KL (D,) or (1,), and its -E_q[log p(x|z)] (), detached, in nats per row -> a scalar."""


class FreeBits(KLTerm):
    r"""A floor under the KL: sum_g max(nats, KL_g), so that what is below it costs nothing.

    KL_g is the minibatch's mean over rows, of group g. `soft` replaces the maximum, whose gradient jumps, by a weight
    of each group: sum_g w_g KL_g, with w_g in (0, 1] lowered by 1 % a step while KL_g is below the floor and raised by
    1 % while it is more than 5 % above it.

    Args:
        nats: the floor of each group, nats per row.
        groups: "unit" (each unit is one), "all" (one group) or how many groups of consecutive units of equal size.
        soft: weights instead of the maximum.

    Raises:
        InputError: a floor that is not positive, units that do not split into that many groups.

    Source: Kingma et al. (2016), arXiv:1606.04934, appendix C; soft: Chen et al. (2017), arXiv:1611.02731, appendix C,
        and Pelsmaeker & Aziz (2020), arXiv:1904.08194.

    Example:
        >>> FreeBits(nats=0.5)(torch.tensor([0.1, 2.0]), torch.zeros(()), step=0).item()
        2.5
    """

    log_weight: Tensor

    def __init__(self, nats: float = 0.25, groups: Literal["unit", "all"] | int = "unit", soft: bool = False) -> None:
        super().__init__()
        if nats <= 0:
            raise InputError(f"free_bits: nats must be positive, got {nats}.")
        if isinstance(groups, int) and groups < 1:
            raise InputError(f"free_bits: groups must be 'unit', 'all' or at least 1, got {groups}.")
        self.nats, self.groups, self.soft = nats, groups, soft
        self.per_unit, self.comparable = groups not in ("all", 1), not soft
        self.register_buffer("log_weight", torch.zeros(groups if isinstance(groups, int) else 1))

    def bind(self, n_units: int) -> None:
        n_groups = n_units if self.groups == "unit" else len(self.log_weight)
        if n_units % n_groups:
            raise InputError(f"free_bits: {n_units} units do not split into {n_groups} groups of equal size.")
        if len(self.log_weight) != n_groups:
            self.log_weight = self.log_weight.new_zeros(n_groups)

    def forward(self, kl: Tensor, distortion: Tensor, step: int) -> Tensor:
        if self.per_unit:
            self.bind(len(kl))
        grouped = kl.view(len(self.log_weight), -1).sum(1) if self.per_unit else kl  # (G,)
        if not self.soft:
            return grouped.clamp_min(self.nats).sum()
        if self.training:
            with torch.no_grad():
                low, high = grouped < self.nats, grouped > (1 + SOFT_BAND) * self.nats
                move = math.log1p(SOFT_RATE) * (high.to(grouped) - low.to(grouped))
                self.log_weight.add_(move).clamp_(max=0.0)
        return (self.log_weight.exp() * grouped).sum()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        stored = state_dict.get(f"{prefix}log_weight")
        if stored is not None and self.groups == "unit":
            self.bind(len(stored))
        super()._load_from_state_dict(state_dict, prefix, *args)


class Capacity(KLTerm):
    r"""A target for the KL: |KL - C(t)|, with C rising linearly from 0 to `nats` within `steps`, then constant.

    The objective's `kl_weight` is the gamma of the paper (100 there): how hard the KL is held at its target.

    Args:
        nats: the final C, nats per row.
        steps: in which it is reached; 0: at once.

    Raises:
        InputError: a negative target or number of steps.

    Source: Burgess et al. (2018), arXiv:1804.03599.

    Example:
        >>> Capacity(nats=10, steps=100)(torch.tensor([4.0]), torch.zeros(()), step=50).item()
        1.0
    """

    def __init__(self, nats: float = 25.0, steps: int = 0) -> None:
        super().__init__()
        if nats < 0 or steps < 0:
            raise InputError(f"capacity: nats and steps must not be negative, got {nats} and {steps}.")
        self.nats, self.steps = nats, steps
        self.settled_at = steps

    def forward(self, kl: Tensor, distortion: Tensor, step: int) -> Tensor:
        target = self.nats * min(1.0, step / self.steps) if self.steps else self.nats
        return (kl.sum() - target).abs()


class GECO(KLTerm):
    r"""The least KL at which the reconstruction is good enough: min KL subject to -E_q[log p(x|z)] <= `distortion`.

        loss = KL / lambda - E_q[log p(x|z)],  log lambda <- log lambda + rate C,  C <- decay C + (1 - decay) C_batch

    with C_batch = -E_q[log p(x|z)] - `distortion`: the paper's Lagrangian KL + lambda C divided by lambda, which keeps
    the loss in the units of the reconstruction. 1 / lambda is a KL weight that the constraint sets; it need not reach
    1, so what is trained is in general no bound. The state is in buffers.

    Args:
        distortion: the largest -E_q[log p(x|z)] wanted, nats per row.
        rate: of log lambda, per step and nat.
        decay: of the moving average of the constraint, in [0, 1).

    Raises:
        InputError: a rate that is not positive, a decay outside [0, 1).

    Source: Rezende & Viola (2018), Taming VAEs, arXiv:1810.00597.

    Example:
        >>> GECO(distortion=90.0)(torch.tensor([4.0]), torch.tensor(95.0), step=0).item() < 4.0
        True
    """

    comparable = False
    log_multiplier: Tensor
    average: Tensor

    def __init__(self, distortion: float, rate: float = 1e-3, decay: float = 0.99) -> None:
        super().__init__()
        if rate <= 0 or not 0 <= decay < 1:
            raise InputError(f"geco: rate must be positive and decay in [0, 1), got {rate} and {decay}.")
        self.distortion, self.rate, self.decay = distortion, rate, decay
        self.register_buffer("log_multiplier", torch.zeros(()))
        self.register_buffer("average", torch.tensor(torch.nan))  # until the first batch

    def forward(self, kl: Tensor, distortion: Tensor, step: int) -> Tensor:
        if self.training:
            with torch.no_grad():
                constraint = (distortion - self.distortion).float()
                self.average.copy_(torch.where(self.average.isnan(), constraint, self.average))
                self.average.lerp_(constraint, 1 - self.decay)
                self.log_multiplier.add_(self.rate * self.average).clamp_(*LOG_MULTIPLIER_RANGE)
        return kl.sum() * (-self.log_multiplier).exp()


registry.register("kl_term", "free_bits", FreeBits)
registry.register("kl_term", "capacity", Capacity)
registry.register("kl_term", "geco", GECO)

free_bits = FreeBits
capacity = Capacity
geco = GECO
