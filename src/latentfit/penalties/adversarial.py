"""Matching by a critic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from latentfit.data.batch import Batch
from latentfit.errors import InputError
from latentfit.model.contracts import LatentDistribution, Prior
from latentfit.networks import MLP
from latentfit.penalties.matching import MatchingPenalty


class AdversarialPenalty(MatchingPenalty):
    r"""weight E_q[-c(z)] with a critic c trained to be log target(z) - log q(z): weight KL(q(z) || target), estimated.

    In the same backward pass the critic descends on the cross-entropy that tells the draws of q(z) from the target's,
    at a rate of its own, and the encoder on -c(z), whose gradient does not fade where the critic is sure (that of the
    cross-entropy reversed does). The critic's weights are saved with the objective.

    Args:
        weight: at least 0, a weight of nats.
        hidden: the critic's layers.
        learning_rate: the critic's; the recipe's schedule scales it.
        smoothness: weight of the squared gradient of c at the target's draws, which keeps the game from circling. It is
            in squared units of z, and blurs what is thinner than about its root: less of it for a thin target, and a
            longer run.
        target: by default the model's prior.
        latent_dim: D; by default found when training starts.

    Source: Makhzani et al. (2015), arXiv:1511.05644; the estimate of the KL: Mescheder et al. (2017), arXiv:1701.04722;
        the smoothness: Mescheder et al. (2018), arXiv:1801.04406.
    """

    comparable = False

    def __init__(
        self,
        weight: float = 1.0,
        hidden: Sequence[int] = (128, 128),
        learning_rate: float = 1e-3,
        smoothness: float = 0.1,
        target: Prior | None = None,
        latent_dim: int | None = None,
    ) -> None:
        super().__init__(weight, target)
        if learning_rate <= 0 or smoothness < 0:
            raise InputError(
                f"adversarial: learning_rate must be positive and smoothness at least 0, got {learning_rate} and "
                f"{smoothness}."
            )
        self.hidden, self.learning_rate, self.smoothness = list(hidden), learning_rate, smoothness
        self.latent_dim = latent_dim
        self.critic: MLP | None = None
        if latent_dim is not None:
            self.bind(latent_dim)

    def bind(self, n_units: int) -> None:
        if self.critic is None:
            self.latent_dim = n_units
            self.critic = MLP(in_shape=[n_units], out_shape=1, hidden=self.hidden)

    def config(self) -> dict[str, Any]:
        config = super().config()
        config["args"]["latent_dim"] = self.latent_dim  # the critic's weights are stored, so it must be built
        return config

    def parameter_groups(self) -> list[dict[str, Any]]:
        if self.critic is None:
            return []
        return [{"params": list(self.critic.parameters()), "lr": self.learning_rate}]

    def forward(self, z: Tensor, q: LatentDistribution, model: Any, batch: Batch, step: int) -> Tensor:
        if self.critic is None:
            self.bind(z[0, 0].numel())
            self.to(z.device)
        return super().forward(z, q, model, batch, step)

    def divergence(self, z: Tensor, t: Tensor) -> Tensor:
        critic = self.critic
        if critic is None:
            raise InputError("adversarial: give latent_dim, or train with fit.")
        frozen = {name: p.detach() for name, p in critic.named_parameters()}
        logits: Tensor = torch.func.functional_call(critic, frozen, (z,))
        matched = -logits.mean()
        if not (self.training and torch.is_grad_enabled()):
            return matched
        t = t.requires_grad_(self.smoothness > 0)
        of_target = critic(t)
        loss = F.softplus(-of_target).mean() + F.softplus(critic(z.detach())).mean()
        if self.smoothness > 0:
            (slope,) = torch.autograd.grad(of_target.sum(), t, create_graph=True)
            loss = loss + self.smoothness * slope.square().sum(-1).mean()
        # the critic's own loss trains it whatever the weight, and is no part of the value
        return matched + (loss - loss.detach()) / max(self.weight, 1e-12)
