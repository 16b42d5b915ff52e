"""Planar flow: each step bends space across one plane, whose place is a function of the context."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from latentfit.errors import CapabilityError, InputError
from latentfit.flows.bijection import Bijection, soft_bound
from latentfit.networks.linear import Linear


class Planar(Bijection):
    r"""f = f_T o ... o f_1 with f_t(z) = z + v tanh(w^T z + b), and u, w, b of every step linear in the context.

        v = u + (m(w^T u) - w^T u) w / |w|^2,   m(a) = expm1(B_t tanh(a / B_t)),   log |det| = log(1 + tanh'(.) w^T v)

    w^T v = m > -1 makes every step invertible. m is the identity near 0, and log(1 + m) is bounded by B_t =
    `max_log_scale` / T nats, so the flow's total is bounded too. u starts at 0, hence f at the identity.

    The inverse has no closed form: of use for a posterior, which scores its own draws.

    Args:
        features: D.
        transforms: T, the number of steps.
        context_features: C, the width of the context.
        max_log_scale: bound on |log |det||, in nats.

    Source: Rezende & Mohamed (2015), Variational inference with normalizing flows, arXiv:1505.05770, whose m(a) =
        log(1 + e^a) - 1 is neither the identity at 0 nor bounded.

    Example:
        >>> z, log_det = Planar(4, transforms=2, context_features=3)(torch.ones(5, 4), torch.ones(5, 3))
        >>> bool((z == 1).all()), log_det.tolist()
        (True, [0.0, 0.0, 0.0, 0.0, 0.0])
    """

    def __init__(
        self, features: int, transforms: int = 8, context_features: int = 1, max_log_scale: float = 12.0
    ) -> None:
        super().__init__(features)
        if transforms < 1 or context_features < 1:
            raise InputError(f"Planar needs transforms and a context, got {transforms}, {context_features} features.")
        self.transforms, self.max_log_scale = transforms, max_log_scale
        self.amortised = Linear(context_features, transforms * (2 * features + 1))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        self.amortised.reset_parameters()
        nn.init.normal_(self.amortised.bias)  # type: ignore[arg-type]  # planes that differ where the context is 0
        for numbers in (self.amortised.weight.T, self.amortised.bias):
            push, direction, _ = self._parts(numbers)  # type: ignore[arg-type]
            push.zero_()
            direction.mul_(self.features**-0.5)

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if context is None:
            raise InputError(f"This flow needs a context (..., {self.amortised.in_features}), got none.")
        push, direction, offset = self._parts(self.amortised(context.to(z.dtype)))  # (..., T, D), (..., T, 1)
        along = (direction * push).sum(-1, keepdim=True)  # w^T u
        stretch = torch.expm1(soft_bound(along, self.max_log_scale / self.transforms))  # w^T v
        squared = direction.square().sum(-1, keepdim=True).clamp_min(torch.finfo(z.dtype).tiny)
        push = push + (stretch - along) / squared * direction
        total = z.new_zeros(z.shape[:-1])
        for t in range(self.transforms):
            bend = torch.tanh((z * direction[..., t, :]).sum(-1, keepdim=True) + offset[..., t, :])
            z = z + push[..., t, :] * bend
            total = total + torch.log1p((1 - bend.square()) * stretch[..., t, :]).squeeze(-1)
        return z, total

    def inverse(self, u: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        raise CapabilityError("A planar flow has no inverse in closed form; only its own draws can be scored.")

    def _parts(self, numbers: Tensor) -> list[Tensor]:
        """u, w and b of all steps: (..., T (2 D + 1)) -> (..., T, D), (..., T, D), (..., T, 1)."""
        d = self.features
        return list(numbers.unflatten(-1, (self.transforms, 2 * d + 1)).split((d, d, 1), -1))
