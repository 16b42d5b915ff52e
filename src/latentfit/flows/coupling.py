"""Affine coupling: one half of the coordinates is scaled and shifted by functions of the other half."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from latentfit.errors import InputError
from latentfit.flows.bijection import Bijection, soft_bound


class AffineCoupling(Bijection):
    r"""u_b = z_b exp(s(z_a, c)) + t(z_a, c), u_a = z_a, with |s| <= `max_log_scale`.

    Both directions cost one call of one network. The last layer starts at zero, so the layer starts as the
    identity. One feature has no other half: its scale and shift then depend on the context alone.

    Args:
        features: D.
        hidden_features: widths of the network's hidden layers.
        context_features: C, the width of the context that is appended to z_a; 0 for none.
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
        super().__init__(features)
        if max_log_scale <= 0:
            raise InputError(f"max_log_scale must be positive, got {max_log_scale}.")
        self.max_log_scale = max_log_scale
        self.flip = flip and features > 1
        self.split = (features // 2, features - features // 2)
        kept, changed = reversed(self.split) if self.flip else self.split
        self.context_features = context_features
        self.conditioner = conditioner(kept + context_features, hidden_features, 2 * changed)

    def reset_parameters(self) -> None:
        for layer in self.conditioner:
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()
        start_at_zero(self.conditioner)

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        kept, changed = self._halves(z)
        log_scale, shift = self._scale_and_shift(kept, context)
        return self._join(kept, changed * log_scale.exp() + shift), log_scale.sum(-1)

    def inverse(self, u: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        kept, changed = self._halves(u)
        log_scale, shift = self._scale_and_shift(kept, context)
        return self._join(kept, (changed - shift) * (-log_scale).exp()), log_scale.sum(-1)

    def _halves(self, z: Tensor) -> tuple[Tensor, Tensor]:
        first, second = z.split(self.split, -1)
        return (second, first) if self.flip else (first, second)

    def _join(self, kept: Tensor, changed: Tensor) -> Tensor:
        return torch.cat((changed, kept) if self.flip else (kept, changed), -1)

    def _scale_and_shift(self, kept: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        if self.context_features:
            if context is None:
                raise InputError(f"This flow needs a context (..., {self.context_features}), got none.")
            context = context.to(kept.dtype).expand(*kept.shape[:-1], self.context_features)
            kept = torch.cat((kept, context), -1)
        log_scale, shift = self.conditioner(kept).chunk(2, -1)  # (..., features - kept)
        return soft_bound(log_scale, self.max_log_scale), shift


def conditioner(in_features: int, hidden_features: tuple[int, ...], out_features: int) -> nn.Sequential:
    """A SiLU network whose last layer starts at zero; without inputs, a learned constant."""
    if in_features == 0:
        return nn.Sequential(_Constant(out_features))
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise((in_features, *hidden_features)):
        layers += [nn.Linear(a, b), nn.SiLU()]
    layers.append(nn.Linear((in_features, *hidden_features)[-1], out_features))
    network = nn.Sequential(*layers)
    start_at_zero(network)
    return network


def start_at_zero(network: nn.Sequential) -> None:
    """Zero the last layer, so that what it conditions starts as the identity."""
    for parameter in network[-1].parameters():
        nn.init.zeros_(parameter)


class _Constant(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(features))

    def forward(self, nothing: Tensor) -> Tensor:
        return self.value.expand(*nothing.shape[:-1], -1)
