"""Monotone rational-quadratic splines: the numerics, apart from the networks that choose their knots."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

from latentfit.flows.bijection import soft_bound

#: no bin is narrower or flatter than this share of an even one, hence no slope beyond `bins` / this: what float32
#: inverts
SMALLEST_BIN = 0.1


def rational_quadratic_spline(
    x: Tensor, bins: Tensor, log_slopes: Tensor, box: float, max_log_slope: float, inverse: bool = False
) -> tuple[Tensor, Tensor]:
    r"""A monotone map of [-box, box] onto itself, the identity outside, and the log of its slope.

    K bins with knots (x_k, y_k) and slopes d_k at the knots, 1 at both ends; within a bin, with theta in [0, 1] its
    share, s = (y_{k+1} - y_k) / (x_{k+1} - x_k) and q = theta (1 - theta),

    y = y_k + (y_{k+1} - y_k) (s theta^2 + d_k q) / (s + (d_k + d_{k+1} - 2 s) q).

    Zeros in `bins` and `log_slopes` give the identity. Every branch is computed on clamped inputs, so neither values
    nor gradients are ever NaN for a finite x.

    Args:
        x: (...).
        bins: (..., 2, K), unnormalised logarithms of the bins' widths and heights.
        log_slopes: (..., K - 1), of the inner knots, bent into +-`max_log_slope`.
        box: in units of x.
        max_log_slope: in nats.
        inverse: map y to x; the log slope is still that of x to y, at the x found.

    Returns:
        The image and log dy/dx, each (...).

    Source: Durkan, Bekasov, Murray & Papamakarios (2019), Neural spline flows, arXiv:1906.04032; Gregory & Delbourgo
    (1982), IMA Journal of Numerical Analysis 2.

    Example:
        >>> x = torch.tensor([-7.0, 0.5, 2.0])
        >>> rational_quadratic_spline(x, torch.zeros(3, 2, 8), torch.zeros(3, 7), box=5.0, max_log_slope=3.0)[0]
        tensor([-7.0000,  0.5000,  2.0000])
    """
    knots = _knots(bins, box)  # (..., 2, K + 1)
    sought = knots[..., 1 if inverse else 0, 1:-1]
    k = (x.detach().unsqueeze(-1) >= sought.detach()).sum(-1, keepdim=True)  # (..., 1), the bin
    ends = torch.cat((k, k + 1), -1)  # (..., 2)
    corners = knots.gather(-1, ends.unsqueeze(-2).expand(*knots.shape[:-1], 2)).flatten(-2)  # (..., 4): x, x, y, y
    # the slopes at both ends of the box are 1: the chosen two alone are bent
    slopes = soft_bound(F.pad(log_slopes, (1, 1)).gather(-1, ends), max_log_slope)
    parts = (*corners.unbind(-1), *slopes.unbind(-1))
    if not inverse:
        return _Bin.apply(x, *parts, box)
    with torch.no_grad():
        root = _solve(x, *parts, box=box)
    # one Newton step: it mends the root's rounding, and its gradient is that of the implicit function
    y, log_slope = _Bin.apply(root, *parts, box)
    root = root - (y - x) * (-log_slope.detach()).exp()
    return root, _Bin.apply(root, *parts, box)[1]


def _knots(bins: Tensor, box: float) -> Tensor:
    """Positions of the knots, -box to box: (..., K) -> (..., K + 1), one matrix product of the bins' shares."""
    size = bins.shape[-1]
    # of the shares beyond the smallest bins'; no share enters the last knot, so that both ends are exact
    cumulate = torch.triu(bins.new_ones(size, size + 1), 1)
    cumulate[:, -1].zero_()
    smallest = SMALLEST_BIN * torch.linspace(0, 2, size + 1, dtype=bins.dtype, device=bins.device)
    smallest[-1].fill_(2)
    return _Shares.apply(bins) @ (2 * box * (1 - SMALLEST_BIN) * cumulate) + box * (smallest - 1)


class _Shares(Function):
    """Softmax over the last dimension in plain steps: torch's own takes four times as long over eight numbers."""

    generate_vmap_rule = True

    @staticmethod
    def forward(logits: Tensor) -> Tensor:
        shares = (logits - logits.amax(-1, keepdim=True)).exp_()
        return shares.div_(shares.sum(-1, keepdim=True))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (shares,) = ctx.saved_tensors
        product = gradient * shares
        return product - shares * product.sum(-1, keepdim=True)


class _Bin(Function):
    """One bin's map and log slope from its corners, the identity outside the box, with the derivatives written out:
    autograd would keep some thirty intermediates."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, x0: Tensor, x1: Tensor, y0: Tensor, y1: Tensor, l0: Tensor, l1: Tensor, box: float
    ) -> tuple[Tensor, Tensor]:
        width, height = x1 - x0, y1 - y0
        d0, d1, s = l0.exp(), l1.exp(), height / width
        theta = ((x - x0) / width).clamp(0, 1)
        q = theta * (1 - theta)
        denominator = s + (d0 + d1 - 2 * s) * q
        y = y0 + height * (s * theta.square() + d0 * q) / denominator
        slope = d1 * theta.square() + 2 * s * q + d0 * (1 - theta).square()
        inside = x.abs() <= box
        log_slope = (slope * (s / denominator).square()).log()
        return torch.where(inside, y, x), torch.where(inside, log_slope, 0.0)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        *tensors, ctx.box = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, gy: Tensor, gl: Tensor) -> tuple[Tensor | None, ...]:
        x, x0, x1, y0, y1, l0, l1 = ctx.saved_tensors
        inside = x.abs() <= ctx.box
        outer = torch.where(inside, 0.0, gy)
        gy, gl = torch.where(inside, gy, 0.0), torch.where(inside, gl, 0.0)
        width, height = x1 - x0, y1 - y0
        d0, d1, s = l0.exp(), l1.exp(), height / width
        theta = ((x - x0) / width).clamp(0, 1)
        rest = 1 - theta
        q = theta * rest
        curve = d0 + d1 - 2 * s
        denominator = s + curve * q
        share = (s * theta.square() + d0 * q) / denominator  # of the height
        slope = d1 * theta.square() + 2 * s * q + d0 * rest.square()
        of_share, of_slope = gy * height / denominator, gl / slope
        of_both = 2 * gl / denominator
        skew = rest - theta
        g_theta = of_share * s * slope / denominator + of_slope * 2 * (d1 * theta - d0 * rest + s * skew)
        g_theta = (g_theta - of_both * curve * skew) / width
        g_s = of_share * (theta.square() - share * (1 - 2 * q)) + 2 * (gl / s + of_slope * q) - of_both * (1 - 2 * q)
        g_s = g_s / width
        g_l0 = d0 * (of_share * q * (1 - share) + of_slope * rest.square() - of_both * q)
        g_l1 = d1 * (of_slope * theta.square() - of_share * q * share - of_both * q)
        g_height = gy * share + g_s
        g_width = -s * g_s - theta * g_theta
        return outer + g_theta, -g_theta - g_width, g_width, gy - g_height, g_height, g_l0, g_l1, None


def _solve(y: Tensor, x0: Tensor, x1: Tensor, y0: Tensor, y1: Tensor, l0: Tensor, l1: Tensor, *, box: float) -> Tensor:
    """The x of a y in its bin: the root in [0, 1] of a quadratic whose discriminant rounding may make negative."""
    width, height = x1 - x0, y1 - y0
    d0, d1, s = l0.exp(), l1.exp(), height / width
    share = ((y - y0) / height).clamp(0, 1)
    curve = share * (d0 + d1 - 2 * s)
    a, b, c = s - d0 + curve, d0 - curve, -s * share
    root = (b.square() - 4 * a * c).clamp_min(0).sqrt()
    theta = (2 * c / (-b - root)).clamp(0, 1)
    return torch.where(y.abs() <= box, x0 + theta * width, y)
