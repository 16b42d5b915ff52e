"""Masked autoregressive flow: every coordinate is scaled and shifted by functions of those before it."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latentfit.errors import InputError
from latentfit.flows.bijection import Bijection, bend_for, draw_bent, soft_bound
from latentfit.flows.mixing import LUMixing
from latentfit.flows.sequence import Sequence
from latentfit.networks.products import dense


class AutoregressiveAffine(Bijection):
    r"""u_i = z_i exp(s_i(z_{<i}, c)) + t_i(z_{<i}, c), with |s| <= `max_log_scale`.

    **`forward` is one call of one network, `inverse` is sequential**, a column at a time. As the density of any z
    (MAF) `forward` runs from z to the noise; as an encoder's posterior (IAF), which scores only its own draws,
    call `forward` on the noise: z = forward(noise), log q(z) = log N(noise) - log |det|. The last layer starts at
    zero, so the layer starts as the identity.

    Args:
        features: D.
        hidden_features: widths of the network's hidden layers.
        context_features: C, the width of the context that all coordinates see; 0 for none.
        max_log_scale: bound on |s| per coordinate, in nats.

    Source: Papamakarios, Pavlakou & Murray (2017), Masked autoregressive flow, arXiv:1705.07057; inverted Kingma
    et al. (2016), arXiv:1606.04934.

    Example:
        >>> layer = AutoregressiveAffine(4, hidden_features=(16,))
        >>> u, log_det = layer(torch.ones(3, 4))
        >>> u.shape, log_det.shape
        (torch.Size([3, 4]), torch.Size([3]))
    """

    def __init__(
        self,
        features: int,
        hidden_features: tuple[int, ...] = (128, 128),
        context_features: int = 0,
        max_log_scale: float = 2.0,
    ) -> None:
        super().__init__(features)
        if max_log_scale <= 0:
            raise InputError(f"max_log_scale must be positive, got {max_log_scale}.")
        self.max_log_scale = max_log_scale
        self.conditioner = MaskedNetwork(features, hidden_features, context_features, outputs=2)

    def reset_parameters(self) -> None:
        self.conditioner.reset_parameters()

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        log_scale, shift = self.conditioner(z, context).unbind(-2)  # (..., D) each
        log_scale = soft_bound(log_scale, self.max_log_scale)
        return torch.addcmul(shift, z, log_scale.exp()), log_scale.sum(-1)

    def inverse(self, u: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        next_column = _Columns(self.conditioner, context)
        z = u[..., :0]
        log_det = u.new_zeros(u.shape[:-1])
        for i in range(self.features):
            log_scale, shift = next_column(z).unbind(-1)
            log_scale = soft_bound(log_scale, self.max_log_scale)
            column = (u[..., i] - shift) * (-log_scale).exp()
            z = torch.cat((z, column.unsqueeze(-1)), -1)  # (..., i + 1)
            log_det = log_det + log_scale
        return z, log_det


class MaskedNetwork(nn.Module):
    r"""`outputs` numbers for each of D columns, the i-th column's functions of z_0 .. z_{i-1} and the context alone.

    A hidden unit of degree m sees z_0 .. z_{m-1}; the units are sorted by degree, so that what is known after i
    columns is a leading slice of each layer. The last layer starts at zero.

    Args:
        features: D.
        hidden_features: widths of the hidden layers, SiLU between them.
        context_features: C; 0 refuses nothing and uses none.
        outputs: numbers per column.

    Source: Germain et al. (2015), MADE, arXiv:1502.03509.

    Example:
        >>> MaskedNetwork(4, (16,), outputs=2)(torch.ones(3, 4)).shape
        torch.Size([3, 2, 4])
    """

    def __init__(
        self, features: int, hidden_features: tuple[int, ...], context_features: int = 0, outputs: int = 2
    ) -> None:
        super().__init__()
        self.features, self.context_features, self.outputs = features, context_features, outputs
        # a unit that sees nothing is of use only where the context reaches it
        lowest = 0 if context_features or features == 1 else 1
        degrees = [torch.linspace(lowest, features - 1, width).round().long() for width in hidden_features]
        columns = torch.arange(features)
        # an input of degree m is known after m columns; a context always is
        known = torch.cat((columns + 1, torch.zeros(context_features, dtype=torch.long)))
        seen = [known, *degrees, columns.repeat(outputs)]
        self.layers = nn.ModuleList(MaskedLinear(b[:, None] >= a) for a, b in itertools.pairwise(seen))
        #: how many units of each hidden layer are known after i columns
        self.n_known = [[int((d <= i).sum()) for i in range(features)] for d in degrees]
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew, the last layer's zero."""
        bend = bend_for(self.features + self.context_features)
        for layer in self.layers:
            layer.reset_parameters(bend)  # type: ignore[operator]
        for parameter in self.layers[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """z (..., D), context (..., C) broadcast against it -> (..., outputs, D)."""
        layers: list[Any] = list(self.layers)
        first, *others = layers
        h = self.of_inputs(z, first.masked(), context)
        for layer in others:
            h = dense(F.silu(h), layer.masked(), layer.bias)
        return h.unflatten(-1, (self.outputs, self.features))

    def of_inputs(self, z: Tensor, weight: Tensor, context: Tensor | None, rows: slice = slice(None)) -> Tensor:
        """Rows of the first layer given leading columns z (..., i); the context (..., C) is broadcast: (..., rows)."""
        bias: Tensor = self.layers[0].bias[rows]  # type: ignore[index]
        of_z = weight[rows, : z.shape[-1]]
        if not self.context_features:
            return dense(z, of_z, bias)
        if context is None:
            raise InputError(f"This flow needs a context (..., {self.context_features}), got none.")
        return F.linear(z, of_z) + F.linear(context.to(z.dtype), weight[rows, self.features :], bias)


class MaskedLinear(nn.Module):
    """x (W * mask)^T + b: the output i sees the input j where mask[i, j]; without a weight where it sees nothing."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask.to(torch.get_default_dtype()), persistent=False)
        self.weight = nn.Parameter(torch.empty(mask.shape)) if mask.any() else None
        self.bias = nn.Parameter(torch.empty(len(mask)))

    def reset_parameters(self, bend: float) -> None:
        """Each unit by the number of inputs that it sees; see `draw_bent`."""
        draw_bent(self.weight, self.bias, bend, self.mask.sum(1))

    def masked(self) -> Tensor:
        """W * mask: (out, in)."""
        return self.mask if self.weight is None else self.weight * self.mask


class _Columns:
    """A masked network column by column: weights are masked once, and every unit is computed once, as soon as the
    columns it sees are known."""

    def __init__(self, network: MaskedNetwork, context: Tensor | None) -> None:
        self.network, self.context = network, context
        self.weights: list[Tensor] = [layer.masked() for layer in network.layers]  # type: ignore[operator]
        self.biases: list[Tensor] = [layer.bias for layer in network.layers]  # type: ignore[misc]
        self.hidden: list[Tensor] = []

    def __call__(self, z: Tensor) -> Tensor:
        """z_0 .. z_{i-1} (..., i), one column more than last time -> the i-th column's numbers (..., outputs)."""
        network, i = self.network, z.shape[-1]
        known = z
        for level, counts in enumerate(network.n_known):
            new = slice(counts[i - 1] if i else 0, counts[i])
            if level == 0:
                h = F.silu(network.of_inputs(z, self.weights[0], self.context, new))
            else:
                h = F.silu(F.linear(known, self.weights[level][new, : known.shape[-1]], self.biases[level][new]))
            if i:
                self.hidden[level] = torch.cat((self.hidden[level], h), -1)
            else:
                self.hidden.append(h)
            known = self.hidden[level]
        own = slice(i, None, network.features)
        if not network.n_known:
            return network.of_inputs(z, self.weights[0], self.context, own)
        return F.linear(known, self.weights[-1][own, : known.shape[-1]], self.biases[-1][own])


def autoregressive_flow(
    features: int,
    transforms: int = 5,
    hidden_features: tuple[int, ...] = (128, 128),
    context_features: int = 0,
    max_log_scale: float = 12.0,
) -> Sequence:
    """[autoregressive affine, LU mixing] x `transforms`, each mixing starting as a reversal of the coordinates.

    Args:
        features: D.
        transforms: number of autoregressive layers: one network call each from z to u, D column by column back.
        hidden_features: widths of each network's hidden layers.
        context_features: width of the context, 0 for none.
        max_log_scale: bound on the total log-scale, in nats (see `Sequence`).
    """
    if transforms < 1:
        raise InputError(f"transforms must be at least 1, got {transforms}.")
    layers: list[Bijection] = []
    for _ in range(transforms):
        layers.append(AutoregressiveAffine(features, hidden_features, context_features))
        layers.append(LUMixing(features, torch.arange(features).flip(0), max_log_scale=0.5))
    return Sequence(layers, max_log_scale)
