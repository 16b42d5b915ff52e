"""What second models share: the units they act on, whitened draws of q(z given x), how they are trained."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from latentfit.data.batch import Batch
from latentfit.data.rows import Rows
from latentfit.errors import InputError
from latentfit.flows.whitening import Whitening
from latentfit.model.contracts import LOG_2PI, Prior, Shape
from latentfit.model.rows import CodeRows, FitOptions, draw_packed
from latentfit.priors.active import FULL_WHITENING_UP_TO, active_units, units_of
from latentfit.priors.fitting import batch_size_for, default_max_steps
from latentfit.priors.moments import exact_moments
from latentfit.training import ProgressEvent, Recipe, isolated_rng
from latentfit.training.progress import Progress
from latentfit.training.rng import standard_normal

#: draws of held-out codes at least
HELD_OUT_DRAWS = 1_000


class SecondModel(Prior, ABC):
    r"""p(z) = p_2(W (z_a - m)) |det W| over the active units a, N(0, 1) for every other one.

    A unit whose q(z_j given x) is N(0, 1) for practically all rows is independent of the others in q(z) and has exactly
    that law: `fit` leaves it out of the second model, and the configuration says which are `active` from then on. In
    joint training all are. The whitening is the identity until `fit` sets it.

    Implement `log_prob`, `sample` and `fit` by `_inside` and `_outside`, and `_build`, which makes the second model for
    so many units.

    Args:
        latent_dim: D, or a shape.
        context_features: width of a context (..., C) that the second model reads; with 0 a context is not used.
        active: the flattened units the second model acts on, rising; None for all.
        full: whether the whitening uses covariances, up to 512 units.
    """

    active: tuple[int, ...] | None
    whitening: Whitening
    _units: Tensor
    _others: Tensor
    _arguments: dict[str, Any]

    def __init__(
        self, latent_dim: Shape, context_features: int, active: tuple[int, ...] | None, full: bool = True
    ) -> None:
        super().__init__(latent_dim)
        self.context_features, self._full = context_features, full
        self._act_on(active)

    @abstractmethod
    def _build(self, dim: int) -> None:
        """Make the second model for this many units."""

    def _act_on(self, active: tuple[int, ...] | None) -> None:
        units, others = units_of(active, self.event_shape.numel(), self.name)
        like = self.whitening.mean if hasattr(self, "whitening") else torch.empty(0)
        self.active = None if active is None else tuple(units)
        self.register_buffer("_units", torch.tensor(units, device=like.device), persistent=False)
        self.register_buffer("_others", torch.tensor(others, dtype=torch.long, device=like.device), persistent=False)
        self.whitening = Whitening(len(units), full=self._full and len(units) <= FULL_WHITENING_UP_TO)
        self._build(len(units))
        self.to(like)

    def _codes(self, rows: CodeRows, options: FitOptions) -> WhitenedCodes:
        """The active units' codes; the second model is made anew where the active units are others than before."""
        if self._full:
            active = active_units(rows)
            if active != self.active:
                with isolated_rng(options.random_state, self.whitening.mean.device):
                    self._act_on(active)
                self._arguments["active"] = active
        return WhitenedCodes.of(rows.units(self._units), self.whitening, options)

    def _inside(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z (..., *event_shape) -> whitened active units (..., d), and what is to be added to their log-density."""
        rows = z.flatten(-len(self.event_shape))
        if self.active is None:
            return self.whitening(rows)
        others = rows[..., self._others]
        whitened, log_det = self.whitening(rows[..., self._units])
        return whitened, log_det - 0.5 * (others.square().sum(-1) + others.shape[-1] * LOG_2PI)

    def _outside(self, whitened: Tensor, shape: torch.Size, generator: Generator | None) -> Tensor:
        """The inverse, with noise in the other units: (R, d) -> (*shape, *event_shape)."""
        z, _ = self.whitening.inverse(whitened)
        if self.active is not None:
            rows = standard_normal((len(z), self.event_shape.numel()), z, generator)
            rows[:, self._units] = z
            z = rows
        return z.reshape(*shape, *self.event_shape)

    def _batch(self, rows: Tensor, context: Tensor | None) -> Batch:
        """Rows (..., d) and their contexts, one leading dimension."""
        if not self.context_features:
            return Batch(rows.reshape(-1, rows.shape[-1]))
        if context is None or context.shape[-1] != self.context_features:
            got = "none" if context is None else tuple(context.shape)
            raise InputError(f"This prior needs a context (..., {self.context_features}), got {got}.")
        given = context.expand(*rows.shape[:-1], self.context_features)
        return Batch(rows.reshape(-1, rows.shape[-1]), given.reshape(-1, self.context_features))


@dataclass(frozen=True)
class WhitenedCodes:
    """Codes of which each batch gives fresh draws, whitened: (N, D).

    Attributes:
        train: nine tenths of the rows, packed.
        held_out: whitened draws of the others, the same at every validation: (M, D).
        draw: prepares a batch of `train`.
        recipe: how to train on them.
    """

    train: Batch
    held_out: Batch
    draw: Draw
    recipe: Recipe

    @classmethod
    def of(cls, rows: CodeRows, whitening: Whitening, options: FitOptions) -> WhitenedCodes:
        """Set the whitening to the exact moments of the rows, and split them."""
        whitening.set_moments(*exact_moments(rows))
        like = whitening.mean
        rows = rows.to(like.device, like.dtype)
        train, held_out = rows.split(0.1, Generator().manual_seed(options.random_state))
        draw = Draw(whitening)
        with isolated_rng(options.random_state, like.device):
            parts = [draw(held_out.packed()) for _ in range(math.ceil(HELD_OUT_DRAWS / len(held_out)))]
        contexts = [part.context for part in parts if part.context is not None]
        steps = default_max_steps(len(train), rows.mean.shape[1]) if options.max_steps is None else options.max_steps
        recipe = Recipe(
            max_steps=steps,
            batch_size=batch_size_for(len(train)),
            learning_rate=1e-3,
            schedule="cosine",
            clip_norm=50.0,
            ema_decay=0.99,
            validate_every=max(1, steps // 40),
            patience=10,
            device=str(like.device),
        )
        joined = Batch(torch.cat([part.x for part in parts]), torch.cat(contexts) if contexts else None)
        return cls(train.packed(), joined, draw, recipe)

    @property
    def rows(self) -> Rows:
        """Training rows as the loop reads them."""
        return Rows(self.train, self.draw)


@dataclass(frozen=True)
class Draw:
    """Packed rows -> whitened draws (N, D)."""

    whitening: Whitening

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Batch:
        return Batch(self.whitening(draw_packed(batch.x))[0], batch.context)


def ticks(progress: Callable[[int, int], None] | None) -> Progress | None:
    """A prior's progress, called with (step, steps), as the training loop's."""
    if progress is None:
        return None

    def tick(event: ProgressEvent) -> None:
        progress(event.max_steps if event.finished else event.step, event.max_steps)

    return tick
