"""The contracts of the five families. Each class says what to implement; nothing implemented here is overridden,
but for the defaults that are named as such.

Shapes: N rows, S draws per row, E an event (`event_shape` of a latent, `data_shape` of a row), D = numel(E).
Everything is in nats, summed over event dimensions.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Generator, Tensor, nn

from latentfit.data.batch import Batch
from latentfit.errors import CapabilityError, InputError
from latentfit.model.rows import CodeRows, FitOptions, code_rows
from latentfit.registry import Component

if TYPE_CHECKING:
    from typing import Self

Density = Literal["exact", "unbiased", "log_unbiased", "approximate", "none"]
BaseMeasure = Literal["mass", "density"]
Shape = int | tuple[int, ...]

LOG_2PI = math.log(2 * math.pi)

#: only these densities enter log p(x), the certificate and the ranking
RANKABLE: tuple[Density, ...] = ("exact", "unbiased")


def as_shape(shape: Shape | list[int]) -> torch.Size:
    """An int or a tuple as a `torch.Size`."""
    return torch.Size([shape] if isinstance(shape, int) else shape)


class Prior(Component, nn.Module, ABC):
    r"""A distribution p(z) over latents, learnable or not.

    One object, three uses: inside the ELBO, fitted after training on a frozen VAE, dropped into a user's own model.

    Implement `log_prob` and `sample`, and set `event_shape` in the constructor. The defaults that may be overridden are
    `density`, `training_log_prob`, `fit_rows`, `awaits_codes`, `start_rows`, `bind`, `freeze`, `parameter_kl`,
    `analytic_kl`, `analytic_unit_kl`, `unit_log_prob`, `component_means`, `responsibilities`, `of_rows`, `n_stored`
    and `network_calls`.
    """

    event_shape: torch.Size
    #: what `log_prob` is; a class attribute or an instance property
    density: Density = "exact"
    #: width of the context that `log_prob` and `sample` use; with 0 they ignore it
    context_features: int = 0
    #: calls of a network (or of a matrix product of that size) to draw one sample, for ranking by price
    network_calls: int = 0
    #: whether each component is one row of the data, or started as one: what its mean decodes to is a matter of privacy
    of_rows: bool = False

    def __init__(self, latent_dim: Shape) -> None:
        super().__init__()
        self.event_shape = as_shape(latent_dim)
        if not self.event_shape or min(self.event_shape) < 1:
            raise InputError(f"latent_dim must be positive, got {latent_dim!r}.")

    @abstractmethod
    def log_prob(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """log p(z): z (..., *event_shape) -> (...), in nats."""

    @abstractmethod
    def sample(self, n: Shape, context: Tensor | None = None, generator: Generator | None = None) -> Tensor:
        """Draws: n an int or a shape -> (*n, *event_shape)."""

    def training_log_prob(self, z: Tensor, batch: Batch | None = None) -> Tensor:
        """What the ELBO uses in training, `log_prob` by default: z (S, N, *event_shape) -> (S, N).

        Full Bayes: the expectation over the prior's own parameters; exemplars: leave-one-out by `batch.index`.
        """
        return self.log_prob(z, None if batch is None else batch.context)

    def fit(
        self,
        mean: Tensor,
        *,
        std: Tensor | None = None,
        var: Tensor | None = None,
        logvar: Tensor | None = None,
        scale_tril: Tensor | None = None,
        context: Tensor | None = None,
        max_steps: int | None = None,
        random_state: int = 0,
        progress: Callable[[int, int], None] | None = None,
    ) -> Self:
        """Fit to q(z) post hoc: mean and spread (N, *event_shape) of q(z given x) for N rows; returns itself.

        How each prior does it is told by its `fit_rows`. Draws are made afresh in each epoch; closed forms use the
        moments.

        Args:
            mean: (N, *event_shape), a tensor or an array.
            std, var, logvar: exactly one of them, like mean; or
            scale_tril: (N, D, D), the Cholesky factors of full covariances.
            context: (N, C); ignored where the prior has no `context_features`.
            max_steps: of the fit; the prior's own default otherwise.
            random_state: it determines the fit.
            progress: called with (step, steps).

        Raises:
            InputError: an impossible spread (see `as_std`), another shape than the prior's, or fewer than two rows.
            CapabilityError: this prior cannot be fitted post hoc.
        """
        context = context if self.context_features else None
        spread = {"std": std, "var": var, "logvar": logvar, "scale_tril": scale_tril}
        rows = code_rows(self.event_shape, mean, **spread, context=context)
        self.fit_rows(rows, FitOptions(max_steps, random_state, progress))
        return self

    def fit_rows(self, rows: CodeRows, options: FitOptions) -> None:
        """Fit to rows that are checked and flattened. By default there is nothing to fit."""

    @property
    def awaits_codes(self) -> bool:
        """Whether joint training calls `start_rows` once the codes say something; False by default."""
        return False

    def start_rows(self, rows: CodeRows, options: FitOptions) -> None:
        """Start at these codes in the midst of joint training; every parameter keeps its shape and is trained on."""

    def bind(self, model: nn.Module | None = None, data: Batch | None = None) -> None:
        """Receive the encoder and the training data, where the prior is made of them. Nothing by default."""

    def freeze(self) -> None:
        """Training is over: let go of what `bind` gave, keeping the density as it is now. Nothing by default."""

    def parameter_kl(self) -> Tensor:
        """KL of the posterior over this prior's own parameters from its hyper-prior, in nats in all; 0 by default."""
        return torch.zeros((), device=next((p.device for p in self.parameters()), None))

    def analytic_kl(self, mean: Tensor, std: Tensor) -> Tensor | None:
        """KL(N(mean, std^2) || p) per row (N,) where it has a closed form, else None."""
        return None

    def analytic_unit_kl(self, mean: Tensor, std: Tensor) -> Tensor | None:
        """The same of each unit, (N, *event_shape), where the units are independent under p, else None."""
        return None

    def unit_log_prob(self, z: Tensor) -> Tensor | None:
        """log p of each unit, z (..., *event_shape) -> the same shape, where they are independent, else None."""
        return None

    def component_means(self) -> Tensor | None:
        """Means (K, *event_shape) of the components that p is a mixture of, else None (the default)."""
        return None

    def responsibilities(self, z: Tensor) -> Tensor:
        """p(component given z): (..., *event_shape) -> (..., K); for those with `component_means`."""
        raise CapabilityError(f"{self.name or type(self).__name__} has no components.")

    def as_distribution(self, context: Tensor | None = None) -> torch.distributions.Distribution:
        """This prior as a `torch.distributions.Distribution`."""
        return PriorDistribution(self, context)

    @property
    def n_parameters(self) -> int:
        """Numbers that data decided: learnable ones, and those stored by it or a part of it."""
        stored = sum(part.n_stored for part in self.modules() if isinstance(part, Prior))
        return sum(p.numel() for p in self.parameters()) + stored

    @property
    def n_stored(self) -> int:
        """Numbers taken from the data that are no parameters, such as exemplars; 0 by default."""
        return 0


class PriorDistribution(torch.distributions.Distribution):
    """A prior in torch's clothes."""

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012  # torch's own spelling

    def __init__(self, prior: Prior, context: Tensor | None = None) -> None:
        self.prior, self.context = prior, context
        super().__init__(event_shape=prior.event_shape, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        return self.prior.log_prob(value, self.context)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            return self.prior.sample(tuple(sample_shape), self.context)


class LatentDistribution(ABC):
    """q(z given x) for a batch of N rows.

    Implement `rsample_with_log_prob`, `moments` and `cache`; `log_prob` where `can_score`; `kl` where it has a closed
    form for some priors, `unit_log_prob` where `factorised`.
    """

    #: whether `log_prob` accepts any z, not only its own draws
    can_score: bool = True
    #: whether the log q of its own draws is known; without it there is no KL, and log_q is nan
    has_density: bool = True
    #: whether the dimensions are independent given x
    factorised: bool = True

    @abstractmethod
    def rsample_with_log_prob(self, n: int = 1, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
        """Reparameterised draws and their log q: z (S, N, *event_shape), log_q (S, N), with S = n."""

    @abstractmethod
    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and variance per dimension, each (N, *event_shape)."""

    @abstractmethod
    def cache(self) -> dict[str, Tensor]:
        """Tensors, rows first, from which z can be drawn again later: at least `mean` and `std`."""

    def log_prob(self, z: Tensor) -> Tensor:
        """log q(z given x): z (S, N, *event_shape) -> (S, N); for those that `can_score`."""
        raise CapabilityError(f"{type(self).__name__} can only score its own draws.")

    def kl(self, prior: Prior) -> Tensor | None:
        """KL(q(z given x) || p) per row (N,) where it has a closed form, else None (the default)."""
        return None

    def unit_kl(self, prior: Prior) -> Tensor | None:
        """The same of each unit, (N, *event_shape), where q and p are factorised and it is closed, else None."""
        return None

    def unit_log_prob(self, z: Tensor) -> Tensor | None:
        """log q of each unit, z (S, N, *event_shape) -> the same shape, where they are independent, else None."""
        return None


class Posterior(Component, nn.Module, ABC):
    """Turns the encoder's output into q(z given x).

    Implement `forward`; set `event_shape` and `n_parameters` (how many numbers per row the encoder must give).
    """

    event_shape: torch.Size
    n_parameters: int

    def __init__(self, latent_dim: Shape) -> None:
        super().__init__()
        self.event_shape = as_shape(latent_dim)

    @abstractmethod
    def forward(self, parameters: Tensor, batch: Batch | None = None) -> LatentDistribution:
        """parameters (N, n_parameters) -> q(z given x)."""


class Likelihood(Component, nn.Module, ABC):
    """p(x given z) from the decoder's output.

    `params` is (..., N, *data_shape) where `n_parameters` is 1 and (..., N, *data_shape, n_parameters) otherwise.
    Implement `entry_log_prob`, `mean`, `sample` and `check`; set `base_measure`. Defaults that may be overridden:
    `freeze_scale`, `rows_log_prob`.
    """

    #: numbers the decoder gives for each entry of x
    n_parameters: int = 1
    #: whether they are logits of probabilities, which a decoder must not squash
    reads_logits: bool = False
    #: counting measure, or Lebesgue measure dx in the units of the x that `log_prob` receives
    base_measure: BaseMeasure

    @abstractmethod
    def entry_log_prob(self, x: Tensor, params: Tensor, context: Tensor | None = None) -> Tensor:
        """log p of each entry: x (N, *data_shape) -> (..., N, *data_shape)."""

    @abstractmethod
    def mean(self, params: Tensor, context: Tensor | None = None) -> Tensor:
        """E[x given z]: (..., *data_shape)."""

    @abstractmethod
    def sample(self, params: Tensor, context: Tensor | None = None, generator: Generator | None = None) -> Tensor:
        """A draw from p(x given z): (..., *data_shape)."""

    @abstractmethod
    def check(self, x: Tensor) -> None:
        """Raise `InputError` with the offending column, value and share if this likelihood cannot score x."""

    def log_prob(
        self, x: Tensor, params: Tensor, *, context: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """log p(x given z) summed over the row's entries: x (N, *data_shape) -> (..., N), in nats."""
        if mask is None:
            return self.rows_log_prob(x, params, context)
        # an unobserved NaN would reach the gradient through the branch that is not taken
        entries = self.entry_log_prob(torch.where(mask, x, 0.0), params, context)
        return torch.where(mask, entries, 0.0).flatten(-(x.dim() - 1)).sum(-1)

    def rows_log_prob(self, x: Tensor, params: Tensor, context: Tensor | None = None) -> Tensor:
        """Sum of `entry_log_prob` over the row; overridden where one fused operation is faster."""
        return self.entry_log_prob(x, params, context).flatten(-(x.dim() - 1)).sum(-1)

    def freeze_scale(self, x: Tensor, params: Tensor) -> None:
        """Fix a scale that follows the batch's residuals (optimal sigma) to these training rows'; none by default."""

    def fit_scale(self, x: Tensor, params: Tensor) -> bool:
        """Move a learned scale to where it is best for these residuals, in closed form; whether there is one."""
        return False


class Penalty(Component, nn.Module, ABC):
    """A term added to the objective, in nats per row.

    Implement `forward`. The weight is the penalty's own argument. The defaults that may be overridden are
    `comparable`, `bind` and `parameter_groups`.
    """

    #: whether values of different steps may be compared; not where a critic moves
    comparable: bool = True

    def __init__(self) -> None:
        super().__init__()
        #: rows of the training set, set by the objective
        self.n_train: int | None = None
        #: what z is pressed toward; None is the model's prior
        self.target: Prior | None = None

    @abstractmethod
    def forward(self, z: Tensor, q: LatentDistribution, model: Any, batch: Batch, step: int) -> Tensor:
        """z (S, N, *event_shape), draws of q = q(z given x) -> a scalar, in nats per row, weight included."""

    def bind(self, n_units: int) -> None:
        """Receive D before training, where something of that size is trained. Nothing by default."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Torch's parameter groups of what is trained here at a rate of its own; none by default."""
        return []
