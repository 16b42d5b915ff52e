"""A scale and a shift per coordinate whose start is taken from data."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from latentfit.flows.bijection import Bijection


class ActNorm(Bijection):
    r"""u = (z - shift) exp(log_scale), a learned affine map per coordinate.

    `initialise(z)` sets both so that u has mean 0 and variance 1 on those rows, once: a second call, also
    after saving and loading, changes nothing. It is a call of its own and not a side effect of `forward`, so
    `forward` stays one graph under `torch.compile`. Before it the layer is the identity.

    Source: Kingma & Dhariwal (2018), Glow, arXiv:1807.03039.

    Example:
        >>> layer = ActNorm(2)
        >>> layer.initialise(torch.tensor([[1.0, 0.0], [3.0, 4.0]]))
        >>> layer(torch.tensor([2.0, 2.0]))[0]
        tensor([0., 0.], grad_fn=<MulBackward0>)
    """

    initialised: Tensor

    def __init__(self, features: int) -> None:
        super().__init__(features)
        self.shift = nn.Parameter(torch.zeros(features))
        self.log_scale = nn.Parameter(torch.zeros(features))
        self.register_buffer("initialised", torch.tensor(False))

    @torch.no_grad()
    def initialise(self, z: Tensor, context: Tensor | None = None) -> None:
        if bool(self.initialised):
            return
        rows = z.reshape(-1, self.features)
        std = rows.std(0, unbiased=False)
        # a constant coordinate has no scale to take: it keeps its own
        std = torch.where(std > 1e-6 * rows.abs().amax(0).clamp_min(1e-6), std, torch.ones_like(std))
        self.shift.copy_(rows.mean(0))
        self.log_scale.copy_(-std.log())
        self.initialised.fill_(True)

    def reset_parameters(self) -> None:
        with torch.no_grad():
            self.shift.zero_()
            self.log_scale.zero_()
            self.initialised.fill_(False)

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return (z - self.shift) * self.log_scale.exp(), self.log_scale.sum().expand(z.shape[:-1])

    def inverse(self, u: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return u * (-self.log_scale).exp() + self.shift, self.log_scale.sum().expand(u.shape[:-1])
