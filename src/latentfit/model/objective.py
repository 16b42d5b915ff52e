"""What training minimises: the negative ELBO with a scheduled KL weight and penalties, its terms by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Generator, Tensor, nn

from latentfit.data.batch import Batch
from latentfit.errors import CapabilityError, InputError
from latentfit.model.contracts import LatentDistribution, Penalty, Prior
from latentfit.model.schedules import Constant, Schedule
from latentfit.model.vae import VAEModule
from latentfit.registry import Component, registry

KL = Literal["auto", "analytic", "monte_carlo"]


class ELBO(Component, nn.Module):
    r"""The negative evidence lower bound, in nats per row.

        loss = -E_q[log p(x|z)] + w(t) KL(q(z|x) || p(z)) + sum of penalties + KL(parameters) / n_train

    The KL is analytic where the posterior and the prior have a closed form, otherwise E_q[log q(z|x) - log p(z)] by
    the same draws as the reconstruction (Kingma & Welling 2014, arXiv 1312.6114).

    Args:
        kl_weight: w, a number or a schedule of the optimiser's step.
        penalties: terms added to the loss, each with its own weight.
        n_samples: draws of z per row and step.
        kl: "auto", or one of the two forms asked for by name.

    Raises:
        CapabilityError: an analytic KL asked for where there is none; a KL toward a prior without a density.
    """

    def __init__(
        self,
        kl_weight: float | Schedule = 1.0,
        penalties: Sequence[Penalty] = (),
        n_samples: int = 1,
        kl: KL = "auto",
    ) -> None:
        super().__init__()
        if n_samples < 1:
            raise InputError(f"ELBO: n_samples must be at least 1, got {n_samples}.")
        self.kl_weight = kl_weight if isinstance(kl_weight, Schedule) else Constant(float(kl_weight))
        self.penalties = nn.ModuleList(penalties)
        self.n_samples, self.kl = n_samples, kl
        #: rows of the training set, set by `fit`; KLs over parameters are divided by it
        self.n_train: int | None = None

    def forward(
        self, model: VAEModule, batch: Batch | Tensor, step: int = 0, generator: Generator | None = None
    ) -> dict[str, Tensor]:
        """Scalars by name, in nats per row: `loss`, `elbo` (at weight 1), `log_likelihood`, `kl`, `kl_weight`..."""
        batch = Batch.of(batch)
        q = model.encode(batch)
        z, log_q = q.rsample_with_log_prob(self.n_samples, generator)  # (S, N, *E), (S, N)
        log_likelihood = batch.mean(model.log_likelihood(batch, z).mean(0))
        weight = self.kl_weight(step)
        terms: dict[str, Tensor] = {}
        loss = -log_likelihood
        if model.prior.density != "none":
            kl = batch.mean(self._kl(model, q, z, log_q, batch))
            loss = loss + weight * kl
            terms |= {"log_likelihood": log_likelihood, "kl": kl, "elbo": log_likelihood - kl}
        elif weight > 0:
            raise CapabilityError(
                "This prior has no density, so there is no KL toward it: kl_weight=0 with a matching penalty."
            )
        else:
            terms["log_likelihood"] = log_likelihood
        for penalty in self.penalties:
            name = getattr(penalty, "name", "") or type(penalty).__name__
            terms[name] = penalty(z, model, batch, step)
            loss = loss + terms[name]
        uncertain: list[Any] = [m for m in model.modules() if _has_parameter_kl(type(m))]
        if uncertain:
            total = sum((m.parameter_kl() for m in uncertain), torch.zeros((), device=loss.device))
            terms["parameter_kl"] = total / self._rows()
            loss = loss + terms["parameter_kl"]
        return {"loss": loss, **terms, "kl_weight": torch.as_tensor(weight)}

    def _kl(self, model: VAEModule, q: LatentDistribution, z: Tensor, log_q: Tensor, batch: Batch) -> Tensor:
        if self.kl != "monte_carlo":
            closed = q.kl(model.prior)
            if closed is not None:
                return closed
            if self.kl == "analytic":
                raise CapabilityError(
                    f"No analytic KL from {type(q).__name__} to {type(model.prior).__name__}: kl='monte_carlo'."
                )
        return (log_q - model.prior.training_log_prob(z, batch)).mean(0)

    def _rows(self) -> int:
        if self.n_train is None:
            raise InputError("The objective must know the number of training rows: set objective.n_train, or use fit.")
        return self.n_train


def _has_parameter_kl(kind: type) -> bool:
    """Whether modules of this class carry a distribution over their parameters."""
    return getattr(kind, "parameter_kl", Prior.parameter_kl) is not Prior.parameter_kl


registry.register("objective", "elbo", ELBO)
