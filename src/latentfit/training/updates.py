"""One update of the weights: the optimiser, the gradient's norm, the moving average."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from latentfit.errors import InputError
from latentfit.training.recipe import Recipe


class Adam:
    r"""Adam, decoupled (AdamW) where weights decay, by torch's fused kernels.

    What `torch.optim.Adam(fused=True)` computes, to the bit. That one imports torch's compiler, which takes two
    seconds in every process, and walks through hooks and options that no loop here uses.

    Args:
        groups: dicts of "params" and their "lr"; both may be changed between steps.
        weight_decay: per step, times the rate.
        betas: decays of the averages of the gradient and of its square.

    Source: Kingma & Ba (2015), arXiv 1412.6980; Loshchilov & Hutter (2019), arXiv 1711.05101.

    Example:
        >>> weight = nn.Parameter(torch.ones(1))
        >>> weight.grad = torch.ones(1)
        >>> Adam([{"params": [weight], "lr": 0.5}]).step()
        >>> round(weight.item(), 3)
        0.5
    """

    def __init__(
        self, groups: Sequence[dict[str, Any]], weight_decay: float = 0.0, betas: tuple[float, float] = (0.9, 0.999)
    ) -> None:
        self.param_groups = list(groups)
        self.weight_decay, self.betas = weight_decay, betas
        #: parameter -> "step", "exp_avg" and "exp_avg_sq", named as torch names them
        self.state: dict[Tensor, dict[str, Tensor]] = {}

    @torch.no_grad()
    def step(self) -> None:
        """Move every parameter that has a gradient."""
        for group in self.param_groups:
            alike: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    alike.setdefault((p.device, p.dtype), []).append(p)
            for parameters in alike.values():  # a kernel takes one device and one dtype
                self._move(parameters, group["lr"])

    def _move(self, parameters: list[Tensor], rate: float) -> None:
        states = [self.state.get(p) or self._start(p) for p in parameters]
        steps = [state["step"] for state in states]
        torch._foreach_add_(steps, 1)
        kernel = torch._fused_adamw_ if self.weight_decay > 0 else torch._fused_adam_
        kernel(
            parameters,
            [p.grad for p in parameters if p.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            steps,
            lr=rate,
            beta1=self.betas[0],
            beta2=self.betas[1],
            weight_decay=self.weight_decay,
            eps=1e-8,
            amsgrad=False,
            maximize=False,
        )

    def _start(self, p: Tensor) -> dict[str, Tensor]:
        step = torch.zeros((), dtype=torch.float32, device=p.device)
        self.state[p] = {"step": step, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        return self.state[p]


def make_optimiser(
    parameters: Iterable[nn.Parameter], groups: Sequence[Mapping[str, Any]] | None, recipe: Recipe
) -> Adam:
    """Adam over the parameters, each in its group.

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
    return Adam(all_groups, recipe.weight_decay)


def set_rate(optimiser: Adam, factor: float) -> None:
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
