"""What training minimises: the negative ELBO with a scheduled KL weight and penalties, its terms by name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Literal

import torch
from torch import Generator, Tensor, nn

from latentfit.data.batch import Batch
from latentfit.errors import CapabilityError, InputError
from latentfit.model.contracts import LatentDistribution, Penalty, Prior
from latentfit.model.kl_terms import KLTerm
from latentfit.model.schedules import Constant, Schedule
from latentfit.model.vae import VAEModule
from latentfit.registry import Component, registry
from latentfit.training.precision import only_networks
from latentfit.training.rng import isolated_rng

KL = Literal["auto", "analytic", "monte_carlo"]


class ELBO(Component, nn.Module):
    r"""The negative evidence lower bound, in nats per row.

        loss = -E_q[log p(x|z)] + w(t) KL(q(z|x) || p(z)) + sum of penalties + KL(parameters) / n_train

    where networks with a decay of their weights add it, divided by n_train.

    The KL is analytic where the posterior and the prior have a closed form, otherwise E_q[log q(z|x) - log p(z)] by
    the same draws as the reconstruction (Kingma & Welling 2014, arXiv 1312.6114). A `kl_term` takes its place, such
    as a floor (`latentfit.kl_terms`).

    With `importance_weighted` the S draws of z make the tighter bound of Burda et al. (2016, arXiv 1509.00519) instead,
    which does not hold the decoder to what the encoder's family can follow:

        loss = -E log 1/S sum_s p(x|z_s) (p(z_s) / q(z_s|x))^w(t) + penalties + KL(parameters) / n_train

    Args:
        kl_weight: w, a number or a schedule of the optimiser's step.
        penalties: terms added to the loss, each with its own weight.
        n_samples: draws of z per row and step.
        kl: "auto", or one of the two forms asked for by name.
        kl_term: what the KL is turned into before it is weighted; by default nothing.
        importance_weighted: the tighter bound of `n_samples` draws, at least 2.

    Raises:
        InputError: an importance-weighted bound of one draw, or with a `kl_term`.
        CapabilityError: an analytic KL asked for where there is none; a KL toward a prior without a density; the KL
            of each unit where units are not independent; a penalty toward something else than the KL; an
            importance-weighted bound of uncertain weights.

    Example:
        >>> from latentfit.model import kl_terms, schedules
        >>> objective = ELBO(schedules.linear(steps=100), kl_term=kl_terms.free_bits(nats=0.5))
        >>> objective.settled_at
        100
    """

    def __init__(
        self,
        kl_weight: float | Schedule = 1.0,
        penalties: Sequence[Penalty] = (),
        n_samples: int = 1,
        kl: KL = "auto",
        kl_term: KLTerm | None = None,
        importance_weighted: bool = False,
    ) -> None:
        super().__init__()
        if n_samples < 1:
            raise InputError(f"ELBO: n_samples must be at least 1, got {n_samples}.")
        if importance_weighted and (n_samples == 1 or kl_term is not None):
            raise InputError(
                "ELBO: importance_weighted=True weighs the draws of z against each other: n_samples=5 or so, and no "
                f"kl_term; got n_samples={n_samples}, kl_term={kl_term!r}."
            )
        self.importance_weighted = importance_weighted
        self.kl_weight = kl_weight if isinstance(kl_weight, Schedule) else Constant(float(kl_weight))
        self.penalties = nn.ModuleList(penalties)
        self.n_samples, self.kl, self.kl_term = n_samples, kl, kl_term
        self._n_train: int | None = None

    @property
    def n_train(self) -> int | None:
        """Rows of the training set, set by `fit`; KLs over parameters are divided by it."""
        return self._n_train

    @n_train.setter
    def n_train(self, rows: int | None) -> None:
        self._n_train = rows
        for penalty in self._penalties():
            penalty.n_train = rows

    @property
    def settled_at(self) -> int:
        """The first step from which the KL's strength follows no schedule any more."""
        return max(self.kl_weight.settled_at, 0 if self.kl_term is None else self.kl_term.settled_at)

    @property
    def is_elbo(self) -> bool:
        """Whether it settles as the negative ELBO itself: KL weight 1, nothing else."""
        other = self.kl_term is not None or len(self.penalties) or self.importance_weighted
        return not other and self.kl_weight(self.settled_at) == 1

    @property
    def comparable(self) -> bool:
        """Whether its values at different steps, once settled, may be compared."""
        terms = [*self._penalties(), *([] if self.kl_term is None else [self.kl_term])]
        return all(term.comparable for term in terms)

    def bind(self, model: VAEModule, n_train: int) -> None:
        """Refuse what cannot be trained together, and receive the sizes, before training.

        Raises:
            CapabilityError: as `check`.
        """
        self.check(model)
        self.n_train = n_train
        for term in [*self._penalties(), *([] if self.kl_term is None else [self.kl_term])]:
            term.bind(model.event_shape.numel())

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Torch's parameter groups of what is trained at a rate of its own, such as a critic."""
        return [group for penalty in self._penalties() for group in penalty.parameter_groups()]

    def check(self, model: VAEModule) -> None:
        """Refuse, before anything is trained, what this objective and model cannot do together.

        Raises:
            CapabilityError: with the reason.
        """
        if self.kl_weight(self.settled_at) == 0 == self.kl_weight(0):
            return
        if model.prior.density == "none":
            raise CapabilityError(
                "This prior has no density, so there is no KL toward it: kl_weight=0 with a matching penalty."
            )
        if self.importance_weighted and model.uncertain:
            raise CapabilityError(
                "importance_weighted=True weighs draws of z, and here the weights of a network are drawn as well: "
                "importance_weighted=False."
            )
        for penalty in self._penalties():
            if penalty.target not in (None, model.prior):
                raise CapabilityError(
                    f"The {penalty.name} penalty presses q(z) toward its own target while the KL presses it toward the "
                    "model's prior. Make the target the model's prior, or set kl_weight=0."
                )

    def forward(
        self, model: VAEModule, batch: Batch | Tensor, step: int = 0, generator: Generator | None = None
    ) -> dict[str, Tensor]:
        """Scalars by name, in nats per row: `loss`, `elbo` (at weight 1), `log_likelihood`, `kl`, `kl_weight`...

        Under `torch.autocast` encoder and decoder run in its type, every density in float32.
        """
        self.check(model)
        with only_networks(model.device):
            return self._terms(model, Batch.of(batch), step, generator)

    def _terms(self, model: VAEModule, batch: Batch, step: int, generator: Generator | None) -> dict[str, Tensor]:
        q = model.encode(batch)
        z, log_q = q.rsample_with_log_prob(self.n_samples, generator)  # (S, N, *E), (S, N)
        per_draw = model.log_likelihood(batch, z)  # (S, N)
        log_likelihood = batch.mean(per_draw.mean(0))
        weight = self.kl_weight(step)
        terms: dict[str, Tensor] = {"log_likelihood": log_likelihood}
        loss = -log_likelihood
        if model.prior.density != "none" and q.has_density:
            kl = batch.mean(self._kl(model, q, z, log_q, batch))
            terms |= {"kl": kl, "elbo": log_likelihood - kl}
            pressed = kl
            if self.kl_term is not None:
                given = self._unit_kl(model, q, z, batch) if self.kl_term.per_unit else kl[None]
                pressed = terms["kl_term"] = self.kl_term(given, -log_likelihood.detach(), step)
            if self.importance_weighted:
                log_ratio = model.prior.training_log_prob(z, batch) - log_q
                bound = (per_draw + weight * log_ratio).logsumexp(0) - math.log(self.n_samples)
                terms["bound"] = batch.mean(bound)
                loss = -terms["bound"]
            elif weight != 0:  # 0 times a KL that is infinite, of a deterministic encoder, is not a number
                loss = loss + weight * pressed
        elif weight != 0:
            raise CapabilityError(
                f"{type(q).__name__} has no density of its draws, so there is no KL: kl_weight=0 with a matching "
                "penalty."
            )
        if len(self.penalties):
            with self._noise(generator, z.device):
                for penalty in self._penalties():
                    name = penalty.name or type(penalty).__name__
                    terms[name] = penalty(z, q, model, batch, step)
                    loss = loss + terms[name]
        uncertain: list[Any] = [m for m in model.modules() if _has_parameter_kl(type(m))]
        if uncertain:
            total = sum((m.parameter_kl() for m in uncertain), torch.zeros((), device=loss.device))
            terms["parameter_kl"] = total / self._rows()
            loss = loss + terms["parameter_kl"]
        decayed: list[Any] = [network for network in model.uncertain if hasattr(network, "weight_decay")]
        if decayed:
            terms["weight_decay"] = torch.stack([network.weight_decay() for network in decayed]).sum() / self._rows()
            loss = loss + terms["weight_decay"]
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

    def _unit_kl(self, model: VAEModule, q: LatentDistribution, z: Tensor, batch: Batch) -> Tensor:
        """The batch's mean KL of each unit: (D,)."""
        kl = q.unit_kl(model.prior) if self.kl != "monte_carlo" else None  # (N, *E)
        if kl is None and self.kl != "analytic":
            log_q, log_p = q.unit_log_prob(z), model.prior.unit_log_prob(z)  # (S, N, *E)
            kl = None if log_q is None or log_p is None else (log_q - log_p).mean(0)
        if kl is None:
            term = type(self.kl_term).__name__
            reason = (
                f"the units of {type(q).__name__} depend on one another given x"
                if not q.factorised
                else f"the units of the prior {model.prior.name or type(model.prior).__name__!r} are not independent, "
                "or it does not say their densities"
            )
            raise CapabilityError(
                f"{term} of single units needs a KL that is a sum over them, but {reason}: groups='all'."
            )
        units = kl.flatten(1)  # (N, D)
        if batch.weight is None:
            return units.mean(0)
        return batch.weight @ units / batch.weight.sum()

    def _penalties(self) -> list[Any]:
        return list(self.penalties)

    @staticmethod
    def _noise(generator: Generator | None, device: torch.device) -> Any:
        """Penalties draw from the global generator; where the caller gave one, that is seeded from it."""
        if generator is None:
            return nullcontext()
        return isolated_rng(int(torch.randint(2**62, (), generator=generator, device=generator.device)), device)

    def _rows(self) -> int:
        if self.n_train is None:
            raise InputError("The objective must know the number of training rows: set objective.n_train, or use fit.")
        return self.n_train


def _has_parameter_kl(kind: type) -> bool:
    """Whether modules of this class carry a distribution over their parameters."""
    return getattr(kind, "parameter_kl", Prior.parameter_kl) is not Prior.parameter_kl


registry.register("objective", "elbo", ELBO)
