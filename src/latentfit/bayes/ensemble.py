"""An ensemble: several networks trained together."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Generator, Tensor, nn

from latentfit.errors import CapabilityError, InputError
from latentfit.model.uncertain import UncertainNetwork


class Ensemble(UncertainNetwork):
    r"""M networks of one kind, each a draw with probability 1 / M.

        loss = 1/M sum_m -ELBO(network m)

    In training a call's rows are split into M equal blocks, one for each member. With `ELBO(n_samples=M)`, as the
    method `ensemble` trains, every member sees every row of the batch, each with a draw of z of its own; with one
    sample it sees a share 1/M of the rows. Eval mode is the first member. As a decoder the members share the encoder,
    hence the latent coordinates; VAEs trained wholly apart are an ensemble too, a list of VAEs.

    Args:
        network: the first member.
        n_members: M.
        start: "independent": the others' weights are drawn afresh; "shared": all begin as the network is, and differ by
            the noise of their training alone.

    Raises:
        InputError: fewer than two members.
        CapabilityError: independent starts of a network whose layers cannot draw their weights afresh.

    Source: Lakshminarayanan, Pritzel and Blundell 2017 (arXiv 1612.01474).
    """

    def __init__(
        self, network: nn.Module, n_members: int = 5, start: Literal["independent", "shared"] = "independent"
    ) -> None:
        super().__init__(network)
        if n_members < 2:
            raise InputError(f"Ensemble: n_members must be at least 2, got {n_members}.")
        others = [copy.deepcopy(network) for _ in range(n_members - 1)]
        if start == "independent":
            for other in others:
                _restart(other)
        self.others = nn.ModuleList(others)
        self.n_draws, self.shares_coordinates = n_members, False

    @property
    def members(self) -> list[nn.Module]:
        """All M networks."""
        return [self.network, *self.others]

    def forward(self, *inputs: Tensor) -> Any:
        if not self.training:
            return self.network(*inputs)
        blocks = zip(*(x.tensor_split(len(self.members)) for x in inputs), strict=True)
        parts = [member(*block) for member, block in zip(self.members, blocks, strict=True) if len(block[0])]
        if isinstance(parts[0], tuple | list):
            return tuple(torch.cat(values) for values in zip(*parts, strict=True))
        return torch.cat(parts)

    def draw(self, generator: Generator | None = None) -> nn.Module:
        return next(self.draws(1, generator))

    def draws(self, n: int, generator: Generator | None = None) -> Iterator[nn.Module]:
        yield from without_repetition(self.members, n, generator)


def without_repetition(members: list[nn.Module], n: int, generator: Generator | None) -> Iterator[nn.Module]:
    """Copies of n members in random order, all of them once before any comes again."""
    device = "cpu" if generator is None else generator.device
    drawn = 0
    while drawn < n:
        for i in torch.randperm(len(members), generator=generator, device=device)[: n - drawn].tolist():
            yield copy.deepcopy(members[i]).eval()
            drawn += 1


def _restart(network: nn.Module) -> None:
    """Draw the weights afresh, in every layer that knows how to."""
    started = False
    for module in network.modules():
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()
            started = True
    if not started:
        raise CapabilityError(
            f"{type(network).__name__} has no layer with reset_parameters(), so its members cannot start "
            "independently: start='shared'."
        )
