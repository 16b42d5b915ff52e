"""A foreign function together with the modules that it runs."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from latentfit.errors import CapabilityError


class ForeignCall(nn.Module):
    """One foreign function of a tensor, and the modules behind it: their mode, device, dtype and weights are known.

    A method is kept as its owner and its name, so that a copy calls its own weights. A plain function is searched for
    the modules it refers to; it cannot be copied, for a copy would go on calling the originals.

    Args:
        function: a method of a module or of any object, a module, or a function.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        owner = function if isinstance(function, nn.Module) else getattr(function, "__self__", None)
        self.method = "__call__" if owner is function else getattr(function, "__name__", "")
        self.function = function if owner is None or not hasattr(owner, self.method) else None
        self.owner = None if self.function is not None else owner  # registered where it is a module
        self.modules_behind = nn.ModuleList(modules_behind(function))

    def forward(self, x: Tensor) -> Any:
        x = x if self.dtype is None else x.to(self.dtype)
        return self.function(x) if self.function is not None else getattr(self.owner, self.method)(x)

    @property
    def dtype(self) -> torch.dtype | None:
        """The floating dtype of the first parameter, or None."""
        return next((p.dtype for p in self.parameters() if p.is_floating_point()), None)

    def __reduce_ex__(self, protocol: Any) -> Any:
        if self.function is not None:
            raise CapabilityError(
                "a plain function cannot be copied together with the weights it uses; give the model itself: "
                "adapt(model, ...), or its bound methods encode=model.encode, decode=model.decode"
            )
        return super().__reduce_ex__(protocol)


def modules_behind(thing: Any) -> list[nn.Module]:
    """The modules that a callable is, belongs to, or refers to by closure or global name, each once."""
    found = {id(module): module for module in _search(thing, depth=2)}
    return list(found.values())


def _search(thing: Any, depth: int) -> Iterable[nn.Module]:
    if isinstance(thing, nn.Module):
        yield thing
        return
    inside: Iterable[Any] = ()
    if isinstance(thing, functools.partial):
        inside = (thing.func, *thing.args, *thing.keywords.values())
    elif inspect.ismethod(thing):
        inside = (thing.__self__,)
    elif inspect.isfunction(thing):
        used = inspect.getclosurevars(thing)
        inside = (*used.nonlocals.values(), *used.globals.values())
    elif not (inspect.isclass(thing) or inspect.ismodule(thing) or inspect.isbuiltin(thing)):
        inside = tuple(getattr(thing, "__dict__", {}).values())
    if depth:
        for part in inside:
            yield from _search(part, depth - 1)
