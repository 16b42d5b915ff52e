"""One update of the weights: the optimiser, the gradient's norm, the moving average."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from latentfit.errors import InputError
from latentfit.training.recipe import Recipe


def make_optimiser(
    parameters: Iterable[nn.Parameter], groups: Sequence[Mapping[str, Any]] | None, recipe: Recipe
) -> torch.optim.Optimizer:
    """Fused Adam, or AdamW where weights decay.

    Each group's own "lr" is scaled by the recipe's schedule like the common one; what no group names forms
    one more group with the recipe's settings.

    Args:
        parameters: everything to train.
        groups: torch's parameter groups, or None.
        recipe: the rate and the weight decay.

    Raises:
        InputError: there is nothing to train.
    """
    named = [dict(group, params=[p for p in group["params"] if p.requires_grad]) for group in groups or ()]
    taken = {id(p) for group in named for p in group["params"]}
    rest = [p for p in parameters if id(p) not in taken]
    all_groups = [group for group in [{"params": rest}, *named] if group["params"]]
    if not all_groups:
        raise InputError("There is nothing to train: no parameter requires a gradient.")
    for group in all_groups:
        group.setdefault("lr", recipe.learning_rate)
        group["peak"] = group["lr"]
    kind = torch.optim.AdamW if recipe.weight_decay > 0 else torch.optim.Adam
    return kind(all_groups, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True)


def set_rate(optimiser: torch.optim.Optimizer, factor: float) -> None:
    """Every group's learning rate: its peak times `factor`."""
    for group in optimiser.param_groups:
        group["lr"] = group["peak"] * factor


def gradient_norm(gradients: list[Tensor]) -> Tensor:
    """Euclidean norm of all gradients together, (); one pass over them, also the test that all are finite."""
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))


def clip(gradients: list[Tensor], norm: float, largest: float | None) -> None:
    """Scale the gradients to norm `largest`, touching them only where they are longer."""
    if largest is not None and norm > largest:
        torch._foreach_mul_(gradients, largest / norm)


class WeightAverage:
    r"""Exponential moving average of parameters, updated every k steps with the decay of k steps at once.

    .. math:: e \leftarrow d^k e + (1 - d^k) \theta, \qquad d = \min(\text{decay}, (1 + t) / (10 + t))

    A pass over the weights costs up to 2 % of a small model's step, and they hardly move in a fiftieth of the
    averaging horizon 1 / (1 - decay): that is k, at most 32. The smaller decay of the first steps forgets the
    initial weights.

    Args:
        parameters: the tensors to average.
        decay: per step, in [0, 1).
    """

    def __init__(self, parameters: list[nn.Parameter], decay: float) -> None:
        self.parameters = [p.detach() for p in parameters]
        self.decay = decay
        self.every = max(1, min(32, round(0.02 / (1.0 - decay))))
        self.values = [p.clone() for p in self.parameters]

    def update(self, step: int) -> None:
        """Take in the weights after `step` steps."""
        if step % self.every:
            return
        decay = min(self.decay, (1 + step) / (10 + step)) ** self.every
        torch._foreach_lerp_(self.values, self.parameters, 1.0 - decay)

    def swap(self) -> None:
        """Exchange the averaged and the current weights; twice is nothing."""
        for value, parameter in zip(self.values, self.parameters, strict=True):
            kept = parameter.clone()
            parameter.copy_(value)
            value.copy_(kept)
