"""Training and eval mode of modules, for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

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
def in_training(*modules: nn.Module, mode: bool = True) -> Iterator[None]:
    """Training mode, or eval mode where `mode` is False, and each part's own mode afterwards."""
    with modes_kept(*modules):
        for module in modules:
            module.train(mode)
        yield


def in_eval(*modules: nn.Module) -> AbstractContextManager[None]:
    """Eval mode, each part's own mode afterwards: dropout would freeze one draw, batch statistics would move."""
    return in_training(*modules, mode=False)
