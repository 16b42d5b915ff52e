"""Velocity fields of flow matching whose divergence costs one more pass: by a formula, or along a direction."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latentfit.networks import Linear

#: sines and cosines that the angle is described by
FREQUENCIES = 8
#: hidden units between these and what the angle changes
TIME_FEATURES = 64
#: numbers of a spatial latent up to which its divergence is computed exactly, one direction after the other
EXACT_UP_TO = 64


class Velocity(nn.Module, ABC):
    """F(y, angle): y (R, *event_shape), angle (R,) or () -> (R, *event_shape). Starts at 0.

    Implement `forward` and `with_divergence`; set `exact`, whether the divergence is one and no estimate.
    """

    exact: bool = True

    @abstractmethod
    def forward(self, y: Tensor, angle: Tensor, context: Tensor | None = None) -> Tensor:
        """The velocities: (R, *event_shape)."""

    @abstractmethod
    def with_divergence(
        self, y: Tensor, angle: Tensor, context: Tensor | None = None, probe: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Velocities and sum_d dF_d / dy_d (R,); `probe`, like y, of signs, where the latter is an estimate."""

    @abstractmethod
    def reset_parameters(self) -> None:
        """Draw the weights again, from torch's current random state."""


class VelocityMLP(Velocity):
    r"""F(y, t) = V [g(t) o s(W s(U y + b(t)) + c(t))] + a(t) o y, s = SiLU; shifts and gates are functions of t.

    With two hidden layers the divergence is a bilinear form of the slopes d = s', one more matrix product at any D:

        sum_d dF_d / dy_d = (g o d_2)^T [W o (U V)^T] d_1 + sum_d a_d(t)

    A third layer would make it D products, hence two layers and wide ones.

    Args:
        dim: D.
        hidden: units of each hidden layer.
        context_features: width of a context beside y.
    """

    def __init__(self, dim: int, hidden: int, context_features: int = 0) -> None:
        super().__init__()
        self.dim, self.hidden = dim, hidden
        self.first = Linear(dim + context_features, hidden, gain=math.sqrt(2))
        self.second = Linear(hidden, hidden, gain=math.sqrt(2))
        self.last = Linear(hidden, dim)
        self.time = _AngleNetwork(3 * hidden + dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for layer in (self.first, self.second, self.last, self.time):
            layer.reset_parameters()
        nn.init.zeros_(self.last.weight)

    def forward(self, y: Tensor, angle: Tensor, context: Tensor | None = None) -> Tensor:
        shift, shift_2, gate, slope = self._at(angle)
        hidden = F.silu(self.second(F.silu(self.first(_beside(y, context)) + shift)) + shift_2)
        return self.last(hidden * (1 + gate)) + slope * y

    def with_divergence(
        self, y: Tensor, angle: Tensor, context: Tensor | None = None, probe: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        shift, shift_2, gate, slope = self._at(angle)
        first, slope_1 = _silu(self.first(_beside(y, context)) + shift)
        second, slope_2 = _silu(self.second(first) + shift_2)
        velocity = self.last(second * (1 + gate)) + slope * y
        through = self.second.weight * (self.first.weight[:, : self.dim] @ self.last.weight).T  # (H, H)
        divergence = ((slope_1 @ through.T) * slope_2 * (1 + gate)).sum(-1) + slope.sum(-1)
        return velocity, divergence

    def _at(self, angle: Tensor) -> tuple[Tensor, ...]:
        return self.time(angle).split((self.hidden, self.hidden, self.hidden, self.dim), -1)


class VelocityConv(Velocity):
    """Residual convolutions over a spatial latent (C, H, W), shifted by the angle, and a(t) o y per channel.

    The divergence is that along each direction in turn for at most 64 numbers; beyond, Hutchinson's estimate
    along one random direction of signs (Hutchinson 1990), which `exact` says.

    Args:
        shape: (C, H, W).
        hidden: channels inside.
        blocks: residual blocks of two convolutions.
    """

    def __init__(self, shape: torch.Size, hidden: int = 32, blocks: int = 2) -> None:
        super().__init__()
        self.shape, self.hidden = shape, hidden
        self.exact = shape.numel() <= EXACT_UP_TO
        channels = shape[0]
        self.first = nn.Conv2d(channels, hidden, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Conv2d(hidden, hidden, 3, padding=1) for _ in range(2 * blocks))
        self.last = nn.Conv2d(hidden, channels, 3, padding=1)
        self.time = _AngleNetwork(blocks * hidden + channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for layer in (self.first, *self.blocks, self.last, self.time):
            layer.reset_parameters()
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]

    def forward(self, y: Tensor, angle: Tensor, context: Tensor | None = None) -> Tensor:
        return self._pass(y, None, angle)[0]

    def with_divergence(
        self, y: Tensor, angle: Tensor, context: Tensor | None = None, probe: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        if probe is not None:
            velocity, along = self._pass(y, probe, angle)
            return velocity, (probe * along).flatten(1).sum(-1)
        divergence = y.new_zeros(len(y))
        for number in range(self.shape.numel()):
            direction = y.new_zeros(self.shape.numel())
            direction[number] = 1.0
            velocity, along = self._pass(y, direction.view(self.shape).expand_as(y), angle)
            divergence = divergence + along.flatten(1)[:, number]
        return velocity, divergence

    def _pass(self, y: Tensor, direction: Tensor | None, angle: Tensor) -> tuple[Tensor, Tensor]:
        """F and its derivative along a direction, carried through by hand: no graph is needed for it."""
        n = len(self.blocks) // 2
        *shifts, slope = self.time(angle).unsqueeze(-1).unsqueeze(-1).split([self.hidden] * n + [self.shape[0]], -3)
        moved = y[:0] if direction is None else direction
        h, dh = self.first(y), _linear(self.first, moved)
        for number, shift in enumerate(shifts):
            inner, outer = self.blocks[2 * number], self.blocks[2 * number + 1]
            a, d_a = _silu(h)
            da = d_a[: len(dh)] * dh
            b, d_b = _silu(inner(a) + shift)
            db = d_b[: len(dh)] * _linear(inner, da)
            h, dh = h + outer(b), dh + _linear(outer, db)
        return self.last(h) + slope * y, _linear(self.last, dh) + (slope * moved if len(moved) else moved)


class _AngleNetwork(nn.Module):
    """angle (...) -> (..., n), by sines and cosines of its multiples; starts at 0."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.first, self.last = Linear(2 * FREQUENCIES, TIME_FEATURES, gain=math.sqrt(2)), Linear(TIME_FEATURES, n)

    def reset_parameters(self) -> None:
        self.first.reset_parameters()
        self.last.reset_parameters()
        nn.init.zeros_(self.last.weight)

    def forward(self, angle: Tensor) -> Tensor:
        turns = angle.unsqueeze(-1) * torch.arange(1, FREQUENCIES + 1, dtype=angle.dtype, device=angle.device)
        return self.last(F.silu(self.first(torch.cat((turns.sin(), turns.cos()), -1))))


def _silu(a: Tensor) -> tuple[Tensor, Tensor]:
    """SiLU and its derivative."""
    gate = a.sigmoid()
    value = a * gate
    return value, gate + value * (1 - gate)


def _linear(layer: nn.Module, h: Tensor) -> Tensor:
    """A convolution without its bias."""
    return F.conv2d(h, layer.weight, padding=1)  # type: ignore[arg-type]


def _beside(y: Tensor, context: Tensor | None) -> Tensor:
    return y if context is None else torch.cat((y, context), -1)
