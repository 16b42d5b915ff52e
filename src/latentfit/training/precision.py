"""bf16 for the networks, float32 for the densities."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from latentfit.errors import ReliabilityWarning

#: what networks are cast to while everything else is not; None where autocast is as the caller has it
_OF_NETWORKS: ContextVar[torch.dtype | None] = ContextVar("autocast of networks", default=None)


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """What a recipe's precision, "fp32" or "bf16", runs a step in.

    Warns:
        ReliabilityWarning: bf16 on a processor that has no instructions for it, where it is many times slower.
    """
    if precision != "bf16":
        return nullcontext()
    if device.type == "cpu" and not _cpu_has_bf16():
        warnings.warn(
            "precision is bf16, for which this processor has no instructions: a step takes many times as long as in "
            'fp32. Choose precision="fp32".',
            ReliabilityWarning,
            stacklevel=3,
        )
    return torch.autocast(device.type, torch.bfloat16)


def _cpu_has_bf16() -> bool:
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


@contextmanager
def only_networks(device: torch.device) -> Iterator[None]:
    """Autocast, where the caller has turned it on, for what `run_network` runs alone.

    A log density is a difference of large sums: with the products of a mixture or a flow in bf16 the densities of
    single codes are a tenth of a nat off and more, and their mean is biased.
    """
    if not torch.is_autocast_enabled(device.type):
        yield
        return
    token = _OF_NETWORKS.set(torch.get_autocast_dtype(device.type))
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        _OF_NETWORKS.reset(token)


@contextmanager
def in_float32() -> Iterator[None]:
    """`run_network` in float32 inside `only_networks` too: networks that are themselves a density."""
    token = _OF_NETWORKS.set(None)
    try:
        yield
    finally:
        _OF_NETWORKS.reset(token)


def run_network(network: nn.Module, x: Tensor, *context: Tensor) -> Any:
    """network(x, *context); within `only_networks` under its autocast, the result in float32."""
    dtype = _OF_NETWORKS.get()
    if dtype is None:
        return network(x, *context)
    with torch.autocast(x.device.type, dtype):
        result = network(x, *context)
    return [part.float() for part in result] if isinstance(result, tuple | list) else result.float()
