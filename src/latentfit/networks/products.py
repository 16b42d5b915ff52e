"""Matrix products by the faster of the libraries inside torch."""

from __future__ import annotations

import math
import time
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

#: multiplications from which oneDNN is asked: below, what surrounds its call costs more than it wins
LARGE = 8_000_000
#: how much faster it must be in the one trial
CLEARLY = 0.75


def dense(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b: (..., n), (m, n), (m,) -> (..., m).

    torch hands float32 products to MKL, which leaves half of an AMD processor unused; oneDNN, in the same wheel, does
    not. Which one is faster is tried once in each process. Results differ by rounding. Whatever the direct call cannot
    do (autocast, `torch.func`, forward-mode derivatives, `torch.compile`) goes through torch's own.

    Example:
        >>> dense(torch.ones(2, 3), torch.ones(4, 3)).shape
        torch.Size([2, 4])
    """
    if x.numel() * weight.shape[0] < LARGE or not _for_one_dnn(x, weight):
        return F.linear(x, weight, bias)
    rows = x.reshape(-1, x.shape[-1])
    tracked = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (rows, weight, bias))
    result = _Linear.apply(rows, weight, bias) if tracked else _one_dnn(rows, weight, bias)
    return result.view(*x.shape[:-1], len(weight))


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _one_dnn(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            dense(gradient, weight.T) if of_x else None,
            dense(gradient.T, x.T) if of_weight else None,
            gradient.sum(0) if of_bias else None,
        )


def _for_one_dnn(x: Tensor, weight: Tensor) -> bool:
    return (
        not torch.compiler.is_compiling()
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and type(x) in (Tensor, nn.Parameter)
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
        and _one_dnn_is_faster()
    )


def _one_dnn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    result: Any = torch.ops.mkldnn._linear_pointwise(_whole(x), _whole(weight), bias, "none", [], "")
    return result


def _whole(matrix: Tensor) -> Tensor:
    """A part of a larger matrix is copied: on these the kernel is a thousand times slower."""
    return matrix if matrix.is_contiguous() or matrix.T.is_contiguous() else matrix.contiguous()


@lru_cache(maxsize=1)
def _one_dnn_is_faster() -> bool:
    """A few milliseconds, once."""
    left = right = torch.ones(256, 256)
    best = [math.inf, math.inf]
    try:
        with torch.inference_mode():
            for _ in range(6):
                for i, multiply in enumerate((lambda: left @ right.T, lambda: _one_dnn(left, right))):
                    began = time.perf_counter()
                    multiply()
                    best[i] = min(best[i], time.perf_counter() - began)
    except (AttributeError, RuntimeError):  # a build without it
        return False
    return best[1] < CLEARLY * best[0]
