"""What two second models share: whitened draws of q(z given x), afresh in every batch, and how they are trained."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from latentfit.data.batch import Batch
from latentfit.data.rows import Rows
from latentfit.flows.whitening import Whitening
from latentfit.posteriors.noise import standard_normal
from latentfit.priors.fitting import batch_size_for, default_max_steps
from latentfit.priors.rows import CodeRows, exact_moments
from latentfit.training import ProgressEvent, Recipe, isolated_rng

#: draws of held-out codes at least
HELD_OUT_DRAWS = 1_000


@dataclass(frozen=True)
class WhitenedCodes:
    """Codes of which each batch gives fresh draws, whitened: (N, D).

    Attributes:
        train: means and standard deviations of nine tenths of the rows, (N, 2, D).
        held_out: whitened draws of the others, the same at every validation: (M, D).
        draw: prepares a batch of `train`.
        recipe: how to train on them.
    """

    train: Batch
    held_out: Batch
    draw: Draw
    recipe: Recipe

    @classmethod
    def of(cls, rows: CodeRows, whitening: Whitening, max_steps: int | None, random_state: int) -> WhitenedCodes:
        """Set the whitening to the exact moments of the rows, and split them."""
        whitening.set_moments(*exact_moments(rows))
        like = whitening.mean
        rows = rows.to(like.device, like.dtype)
        train, held_out = rows.split(0.1, Generator().manual_seed(random_state))
        draw = Draw(whitening)
        with isolated_rng(random_state, like.device):
            parts = [draw(as_batch(held_out)) for _ in range(math.ceil(HELD_OUT_DRAWS / len(held_out)))]
        contexts = [part.context for part in parts if part.context is not None]
        steps = default_max_steps(len(train), rows.mean.shape[1]) if max_steps is None else max_steps
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
        return cls(as_batch(train), joined, draw, recipe)

    @property
    def rows(self) -> Rows:
        """Training rows as the loop reads them."""
        return Rows(self.train, self.draw)


@dataclass(frozen=True)
class Draw:
    """Rows (N, 2, D) of means and standard deviations -> whitened draws (N, D)."""

    whitening: Whitening

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Batch:
        mean, std = batch.x.unbind(1)
        z = torch.addcmul(mean, std, standard_normal(mean.shape, mean))
        return Batch(self.whitening(z)[0], batch.context)


def as_batch(rows: CodeRows) -> Batch:
    """Means and standard deviations as rows (N, 2, D)."""
    return Batch(torch.stack((rows.mean, rows.std), 1), rows.context)


def ticks(progress: Callable[[int, int], None] | None) -> Callable[[ProgressEvent], None] | None:
    """A prior's progress, called with (step, steps), as the training loop's."""
    if progress is None:
        return None
    return lambda event: progress(event.max_steps if event.finished else event.step, event.max_steps)


def rows_with_context(rows: Tensor, context: Tensor | None, event_dims: int) -> Batch:
    """Latents (..., *event) and contexts that broadcast to them, in one leading dimension."""
    lead = rows.shape[: rows.dim() - event_dims]
    given = None if context is None else context.expand(*lead, context.shape[-1]).reshape(-1, context.shape[-1])
    return Batch(rows.reshape(-1, *rows.shape[rows.dim() - event_dims :]), given)
