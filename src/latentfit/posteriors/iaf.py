"""An inverse autoregressive flow as posterior."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from latentfit.errors import InputError
from latentfit.flows.autoregressive import MaskedNetwork
from latentfit.flows.bijection import Bijection, soft_bound
from latentfit.flows.mixing import Permutation
from latentfit.flows.sequence import Sequence
from latentfit.model.contracts import Shape
from latentfit.posteriors.flow import FlowPosterior

#: the gate's bias, so that it starts open, and how far it is closed then
OPEN = 2.0
CLOSED = 1 / (1 + math.exp(OPEN))


class GatedAutoregressive(Bijection):
    r"""u_i = [g_i z_i + (1 - g_i) m_i] / g_0, g_i = sigmoid(s_i + 2), m_i and s_i functions of z_{<i} and the context.

    The gate of the paper, over the value g_0 = sigmoid(2) at which it starts: so the layer starts as the identity,
    and a coordinate is shrunk by `max_log_scale` nats or stretched by log 1.13 at most. `forward` is one call of the
    network; `inverse`, which training never needs, is one per coordinate.

    Args:
        features: D.
        hidden_features: widths of the network's hidden layers.
        context_features: C.
        max_log_scale: bound on |s|, in nats.

    Source: Kingma et al. (2016), Improving variational inference with inverse autoregressive flow, arXiv:1606.04934.

    Example:
        >>> u, log_det = GatedAutoregressive(4, (16,), context_features=3)(torch.ones(5, 4), torch.ones(5, 3))
        >>> bool((u == 1).all()), log_det.tolist()
        (True, [0.0, 0.0, 0.0, 0.0, 0.0])
    """

    def __init__(
        self,
        features: int,
        hidden_features: tuple[int, ...] = (128, 128),
        context_features: int = 0,
        max_log_scale: float = 4.0,
    ) -> None:
        super().__init__(features)
        self.max_log_scale = max_log_scale
        self.conditioner = MaskedNetwork(features, hidden_features, context_features, outputs=2)

    def reset_parameters(self) -> None:
        self.conditioner.reset_parameters()

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        log_gate, shift = self._gate_and_shift(z, context)
        return torch.addcmul(shift, z, log_gate.exp()), log_gate.sum(-1)

    def inverse(self, u: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        z = torch.zeros_like(u)
        for i in range(self.features):
            log_gate, shift = self._gate_and_shift(z, context)
            column = ((u - shift) * (-log_gate).exp())[..., i : i + 1]
            z = torch.cat((z[..., :i], column, z[..., i + 1 :]), -1)
        return z, self._gate_and_shift(z, context)[0].sum(-1)

    def _gate_and_shift(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """log (g / g_0) and (1 - g) m / g_0: (..., D) each."""
        gate, shift = self.conditioner(z, context).unbind(-2)
        gate = soft_bound(gate, self.max_log_scale)
        # log sigmoid(s + 2) - log sigmoid(2) without a difference of two: exactly 0 at s = 0
        log_gate = -torch.log1p(CLOSED * torch.expm1(-gate))
        return log_gate, torch.sigmoid(-OPEN - gate) / (1 - CLOSED) * shift


class IAFPosterior(FlowPosterior):
    r"""q(z given x): z = f(u; h(x)), u ~ N(mean(x), diag exp(logvar(x))), f gated autoregressive steps.

    The order of the coordinates is reversed between steps. A draw and its log q cost one network call per step; a z
    from elsewhere would cost D of them, so it scores its own draws only. f starts as the identity, hence q as the
    diagonal Gaussian.

    Args:
        latent_dim: D, or a shape (flattened).
        transforms: number of steps.
        hidden_features: widths of each network's hidden layers.
        context_features: C, how many features h the encoder gives beside the mean and the log-variance.
        max_log_scale: bound on the total log-scale, in nats.

    Source: Kingma et al. (2016), arXiv:1606.04934.

    Example:
        >>> IAFPosterior(4, transforms=2, context_features=8).n_parameters
        16
    """

    def __init__(
        self,
        latent_dim: Shape,
        transforms: int = 4,
        hidden_features: tuple[int, ...] = (128, 128),
        context_features: int = 64,
        max_log_scale: float = 12.0,
    ) -> None:
        super().__init__(latent_dim, context_features)
        if transforms < 1:
            raise InputError(f"transforms must be at least 1, got {transforms}.")
        layers: list[Bijection] = []
        for _ in range(transforms):
            layers += [GatedAutoregressive(self.dim, hidden_features, context_features), Permutation(self.dim)]
        if transforms % 2:  # the encoder's i-th mean is the i-th latent's
            layers.append(Permutation(self.dim))
        self.flow = Sequence(layers, max_log_scale)
