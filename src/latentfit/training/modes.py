"""Training and eval mode of modules, for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def modes_kept(*modules: nn.Module) -> Iterator[None]:
    """Each part's own mode again afterwards, whatever is done to it inside."""
    modes = [(part, part.training) for module in modules for part in module.modules()]
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


@contextmanager
def in_eval(*modules: nn.Module) -> Iterator[None]:
    """Eval mode, each part's own mode afterwards: dropout would freeze one draw, batch statistics would move."""
    with modes_kept(*modules):
        for module in modules:
            module.eval()
        yield


@contextmanager
def in_training(*modules: nn.Module) -> Iterator[None]:
    """Training mode, each part's own mode afterwards."""
    with modes_kept(*modules):
        for module in modules:
            module.train()
        yield
