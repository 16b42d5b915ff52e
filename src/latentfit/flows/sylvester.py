"""Sylvester flow: planar steps in several directions at once, all of them functions of the context."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from latentfit.errors import CapabilityError, InputError
from latentfit.flows.bijection import Bijection
from latentfit.flows.mixing import lower_index, unpack_lower
from latentfit.networks.linear import Linear


class Sylvester(Bijection):
    r"""f = f_T o ... o f_1 with f_t(z) = z + Q R tanh(S Q^T z + b), and Q, R, S, b linear in the context.

    Q (D, M) has orthonormal columns, R and S (M, M) are triangular. By Sylvester's identity

        log |det df_t/dz| = sum_i log(1 + tanh'(.)_i R_ii S_ii),

    and |R_ii S_ii| < 1 makes the step invertible. Q is the first M columns of a product of Householder reflections,
    orthonormal to rounding whatever the context. With M reflections that is any orthonormal frame (the paper's
    orthogonal flow, which it reaches by an iteration that need not converge); with M = D and fewer reflections it
    is the paper's Householder flow. R starts at 0, hence f at the identity.

    The inverse has no closed form: of use for a posterior, which scores its own draws.

    Args:
        features: D.
        transforms: T, the number of steps.
        columns: M, the width of each step's bottleneck, at most D.
        reflections: Householder reflections that make Q.
        context_features: C, the width of the context.
        max_log_scale: bound on |log |det|| per coordinate, in nats.

    Source: van den Berg et al. (2018), Sylvester normalizing flows, arXiv:1803.05649.

    Example:
        >>> z, log_det = Sylvester(4, columns=2, reflections=2, context_features=3)(torch.ones(5, 4), torch.ones(5, 3))
        >>> bool((z == 1).all()), log_det.tolist()
        (True, [0.0, 0.0, 0.0, 0.0, 0.0])
    """

    below: Tensor
    frame: Tensor

    def __init__(
        self,
        features: int,
        transforms: int = 4,
        columns: int = 8,
        reflections: int = 8,
        context_features: int = 1,
        max_log_scale: float = 12.0,
    ) -> None:
        super().__init__(features)
        if min(transforms, columns, reflections, context_features) < 1 or columns > features:
            raise InputError(
                f"Sylvester needs 1 to {features} columns, and transforms, reflections and a context; got {columns} "
                f"columns, {transforms} transforms, {reflections} reflections, {context_features} context features."
            )
        self.transforms, self.columns, self.reflections = transforms, columns, reflections
        self.max_log_scale = max_log_scale
        n_below = columns * (columns - 1) // 2
        #: reflections, diagonals of R and S, entries below them, b
        self.sizes = (reflections * features, 2 * columns, 2 * n_below, columns)
        self.amortised = Linear(context_features, transforms * sum(self.sizes))
        self.register_buffer("below", lower_index(columns), persistent=False)
        self.register_buffer("frame", torch.eye(features, columns), persistent=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        self.amortised.reset_parameters()
        nn.init.normal_(self.amortised.bias)  # type: ignore[arg-type]  # frames that differ where the context is 0
        for numbers in (self.amortised.weight.T, self.amortised.bias):
            _, diagonals, belows, _ = self._parts(numbers)  # type: ignore[arg-type]
            diagonals[..., : self.columns].zero_()
            belows.zero_()

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if context is None:
            raise InputError(f"This flow needs a context (..., {self.amortised.in_features}), got none.")
        axes, diagonals, belows, offset = self._parts(self.amortised(context.to(z.dtype)))
        frame = self._frame(axes.unflatten(-1, (self.reflections, self.features)))  # (..., T, D, M)
        # |R_ii S_ii| stays so far below 1 that no step shrinks a coordinate by more than its share of the bound
        largest = math.sqrt(-math.expm1(-self.max_log_scale / self.transforms))
        diagonals = largest * torch.tanh(diagonals.unflatten(-1, (2, self.columns)))
        outer, inner = unpack_lower(diagonals, belows.unflatten(-1, (2, -1)), self.below).unbind(-3)  # (..., T, M, M)
        outward, inward = frame @ outer, frame @ inner.mT  # (..., T, D, M)
        stretch = diagonals[..., 0, :] * diagonals[..., 1, :]  # (..., T, M)
        total = z.new_zeros(z.shape[:-1])
        for t in range(self.transforms):
            place = torch.einsum("...d,...dm->...m", z, inward[..., t, :, :])
            bend = torch.tanh(place + offset[..., t, :])  # (..., M)
            z = z + torch.einsum("...m,...dm->...d", bend, outward[..., t, :, :])
            total = total + torch.log1p((1 - bend.square()) * stretch[..., t, :]).sum(-1)
        return z, total

    def inverse(self, u: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        raise CapabilityError("A Sylvester flow has no inverse in closed form; only its own draws can be scored.")

    def _frame(self, axes: Tensor) -> Tensor:
        """H_1 ... H_k [e_1 .. e_M] with H = I - 2 a a^T / |a|^2: axes (..., k, D) -> (..., D, M)."""
        axes = nn.functional.normalize(axes, dim=-1).unsqueeze(-1)  # (..., k, D, 1)
        frame = self.frame.to(axes.dtype).expand(*axes.shape[:-3], self.features, self.columns)
        for k in reversed(range(self.reflections)):
            axis = axes[..., k, :, :]  # (..., D, 1)
            frame = frame - 2 * axis * (axis * frame).sum(-2, keepdim=True)
        return frame

    def _parts(self, numbers: Tensor) -> list[Tensor]:
        """The numbers of all steps by kind: (..., T n) -> (..., T, n of the kind)."""
        return list(numbers.unflatten(-1, (self.transforms, sum(self.sizes))).split(self.sizes, -1))
