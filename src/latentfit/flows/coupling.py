"""Coupling: one half of the coordinates is transformed by functions of the other half."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latentfit.errors import InputError
from latentfit.flows.bijection import Bijection, bend_for, draw_bent, soft_bound
from latentfit.flows.spline import rational_quadratic_spline
from latentfit.networks.products import dense


class Coupling(Bijection):
    r"""u_b = g(z_b; h(z_a, c)), u_a = z_a, with g elementwise and h a network. Both directions cost one call of h.

    The network's last layer starts at zero, so the layer starts as the identity. One feature has no other half: h then
    depends on the context alone.

    Implement `transform`; `n_outputs` is how many numbers of h each changed coordinate takes.
    """

    def __init__(
        self,
        features: int,
        hidden_features: tuple[int, ...],
        context_features: int,
        flip: bool,
        n_outputs: int,
    ) -> None:
        super().__init__(features)
        self.flip = flip and features > 1
        self.split = (features // 2, features - features // 2)
        kept, self.n_changed = reversed(self.split) if self.flip else self.split
        self.n_outputs = n_outputs
        self.conditioner = Conditioner(kept, hidden_features, n_outputs * self.n_changed, context_features)

    @abstractmethod
    def transform(self, x: Tensor, raw: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        """x (..., B) by raw (..., n_outputs B) -> its image (..., B) and log |dg/dz| (..., B) of the forward map."""

    def reset_parameters(self) -> None:
        self.conditioner.reset_parameters()

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._map(z, context, inverse=False)

    def inverse(self, u: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._map(u, context, inverse=True)

    def _map(self, z: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        first, second = z.split(self.split, -1)
        kept, changed = (second, first) if self.flip else (first, second)
        changed, log_slope = self.transform(changed, self.conditioner(kept, context), inverse)
        return torch.cat((changed, kept) if self.flip else (kept, changed), -1), log_slope.sum(-1)


class AffineCoupling(Coupling):
    r"""u_b = z_b exp(s(z_a, c)) + t(z_a, c), u_a = z_a, with |s| <= `max_log_scale`.

    Args:
        features: D.
        hidden_features: widths of the network's hidden layers.
        context_features: C, the width of the context that the network sees beside z_a; 0 for none.
        flip: transform the first half given the second, not the second given the first.
        max_log_scale: bound on |s| per coordinate, in nats.

    Source: Dinh, Sohl-Dickstein & Bengio (2017), Density estimation using Real NVP, arXiv:1605.08803.

    Example:
        >>> layer = AffineCoupling(4, hidden_features=(16,))
        >>> u, log_det = layer(torch.ones(3, 4))
        >>> u.shape, log_det.shape
        (torch.Size([3, 4]), torch.Size([3]))
    """

    def __init__(
        self,
        features: int,
        hidden_features: tuple[int, ...] = (128, 128),
        context_features: int = 0,
        flip: bool = False,
        max_log_scale: float = 2.0,
    ) -> None:
        if max_log_scale <= 0:
            raise InputError(f"max_log_scale must be positive, got {max_log_scale}.")
        super().__init__(features, hidden_features, context_features, flip, n_outputs=2)
        self.max_log_scale = max_log_scale

    def transform(self, x: Tensor, raw: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        log_scale, shift = raw.chunk(2, -1)
        log_scale = soft_bound(log_scale, self.max_log_scale)
        if inverse:
            return (x - shift) * (-log_scale).exp(), log_scale
        return torch.addcmul(shift, x, log_scale.exp()), log_scale


class SplineCoupling(Coupling):
    r"""u_b = rational-quadratic splines of z_b, whose bins and slopes are functions of z_a; u_a = z_a.

    A spline maps [-box, box] onto itself and leaves all else as it is, so its average scale there is 1 whatever is
    learned: it is not among the scales that `Sequence` bounds. **What lies outside the box is not transformed**:
    whiten first.

    Args:
        features: D.
        hidden_features: widths of the network's hidden layers.
        context_features: C, the width of the context that the network sees beside z_a; 0 for none.
        flip: transform the first half given the second, not the second given the first.
        bins: K.
        box: in units of z.
        max_log_slope: bound on the log slope at a knot, in nats.

    Source: Durkan, Bekasov, Murray & Papamakarios (2019), Neural spline flows, arXiv:1906.04032.

    Example:
        >>> layer = SplineCoupling(4, hidden_features=(16,))
        >>> u, log_det = layer(torch.ones(3, 4))
        >>> u.shape, log_det.shape
        (torch.Size([3, 4]), torch.Size([3]))
    """

    def __init__(
        self,
        features: int,
        hidden_features: tuple[int, ...] = (128, 128),
        context_features: int = 0,
        flip: bool = False,
        bins: int = 8,
        box: float = 5.0,
        max_log_slope: float = 2.0,
    ) -> None:
        if bins < 2 or box <= 0 or max_log_slope <= 0:
            raise InputError(
                f"A spline needs at least 2 bins, a positive box and max_log_slope; got {bins}, {box}, {max_log_slope}."
            )
        super().__init__(features, hidden_features, context_features, flip, n_outputs=3 * bins - 1)
        self.bins, self.box, self.max_log_slope = bins, box, max_log_slope

    def transform(self, x: Tensor, raw: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        raw = raw.unflatten(-1, (self.n_changed, self.n_outputs))
        bins, log_slopes = raw.split((2 * self.bins, self.bins - 1), -1)
        bins = bins.unflatten(-1, (2, self.bins))
        return rational_quadratic_spline(x, bins, log_slopes, self.box, self.max_log_slope, inverse)


class Conditioner(nn.Sequential):
    """A SiLU network of z (..., A) and a context (..., C), whose last layer starts at zero; without inputs, a learned
    constant.

    Args:
        features: A.
        hidden_features: widths of the hidden layers.
        out_features: numbers that come out.
        context_features: C; with 0 a context is not used.
    """

    def __init__(
        self, features: int, hidden_features: tuple[int, ...], out_features: int, context_features: int = 0
    ) -> None:
        n_inputs = features + context_features
        widths = (n_inputs, *hidden_features, out_features) if n_inputs else ()
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise(widths):
            layers += [nn.Linear(a, b), nn.SiLU()]
        super().__init__(*(layers[:-1] if n_inputs else [_Constant(out_features)]))
        self.features, self.context_features = features, context_features
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew, the last layer's zero."""
        bend = bend_for(self.features + self.context_features)
        for layer in self:
            if isinstance(layer, nn.Linear):
                draw_bent(layer.weight, layer.bias, bend)
        self._start_at_zero()

    def forward(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        # the functions and not the modules: five calls of modules cost as much as a small matrix product
        layers: list[Any] = list(self)
        first, *others = layers[::2]
        if isinstance(first, _Constant):
            return first.forward(z)
        if not self.context_features:
            h = dense(z, first.weight, first.bias)
        elif context is None:
            raise InputError(f"This flow needs a context (..., {self.context_features}), got none.")
        else:  # the context's part once for all draws that share it
            of_context = F.linear(context.to(z.dtype), first.weight[:, self.features :], first.bias)
            h = F.linear(z, first.weight[:, : self.features]) + of_context
        for layer in others:
            h = dense(F.silu(h), layer.weight, layer.bias)
        return h

    def _start_at_zero(self) -> None:
        for parameter in self[-1].parameters():
            nn.init.zeros_(parameter)


class _Constant(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(features))

    def forward(self, nothing: Tensor) -> Tensor:
        return self.value.expand(*nothing.shape[:-1], -1)
