"""Fitting a prior by gradient descent on fresh draws of q(z given x)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from latentfit.data.batch import Batch
from latentfit.model.contracts import Prior
from latentfit.priors.rows import CodeRows
from latentfit.training import ProgressEvent, Recipe, independent_seeds, minimise

#: rows of a batch: an eighth of the data within these
BATCH_SIZES = (128, 512)
#: passes over the data at most; few rows are learned by heart long before the steps are over
MAX_EPOCHS = 130

#: rows that a flow visits, whatever there are: with the present start and rate twice as many win 0.1 nat of 19 on
#: 24,000 codes of 40 dimensions, and a diagnosis fits two flows in a minute
ROW_VISITS = 400_000


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows as the training loop reads them: x (N, 2, D) holds means and standard deviations."""

    rows: CodeRows

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, index: Tensor) -> Batch:
        picked = self.rows[index.to(self.rows.mean.device)]
        return Batch(torch.stack((picked.mean, picked.std), 1), picked.context)


def batch_size_for(n_rows: int) -> int:
    """An eighth of the rows, within `BATCH_SIZES`."""
    low, high = BATCH_SIZES
    return min(n_rows, max(low, min(high, n_rows // 8)))


def default_max_steps(n_rows: int, dim: int) -> int:
    """2,000 steps for few dimensions up to 4,000 for 40; at most `MAX_EPOCHS` passes, at least 500 steps."""
    wanted = min(4_000, 2_000 + 50 * dim)
    return max(500, min(wanted, MAX_EPOCHS * n_rows // batch_size_for(n_rows)))


def steps_within_budget(n_rows: int) -> int:
    """The steps in which a flow visits `ROW_VISITS` rows; at most `MAX_EPOCHS` passes, at least 500 steps."""
    return max(500, min(ROW_VISITS, MAX_EPOCHS * n_rows) // batch_size_for(n_rows))


def fit_by_gradient(
    prior: Prior,
    rows: CodeRows,
    *,
    max_steps: int | None,
    random_state: int,
    progress: Callable[[int, int], None] | None,
    start: Callable[[CodeRows], None] | None = None,
) -> None:
    """Minimise minus the mean log p(z), z ~ q(z given x) drawn afresh in every batch.

    One row in ten is held out; training stops when the nats on fixed draws of these no longer fall, and the
    best weights are kept: those of the start where none were better, so that a flow never ends below its base.
    `start` is called with the rows that are not held out, and sets what does not start at random.
    """
    like = next(prior.parameters())
    rows = rows.to(like.device, like.dtype)
    split_seed, seed = independent_seeds(random_state, 2)
    generator = torch.Generator().manual_seed(split_seed)
    train, held_out = rows.split(0.1, generator)
    if start is not None:
        start(train)
    n_draws = max(1, math.ceil(1_000 / len(held_out)))
    fixed = torch.stack([held_out.draw(generator) for _ in range(n_draws)]).unflatten(-1, prior.event_shape)

    def loss(batch: Batch, step: int) -> dict[str, Tensor]:
        mean, std = batch.x.unbind(1)
        z = torch.addcmul(mean, std, torch.randn_like(mean)).unflatten(-1, prior.event_shape)
        return {"loss": -prior.log_prob(z, batch.context).mean()}

    @torch.no_grad()
    def validate() -> float:
        parts = [-prior.log_prob(z, held_out.context).mean() for z in fixed]
        return torch.stack(parts).mean().item()

    max_steps = steps_within_budget(len(train)) if max_steps is None else max_steps
    recipe = Recipe(
        max_steps=max_steps,
        batch_size=batch_size_for(len(train)),
        learning_rate=3e-3,
        schedule="one_cycle",
        clip_norm=5.0,
        validate_every=max(1, max_steps // 40),
        patience=10,
        min_steps=max_steps // 2,  # the first steps shake what a mixture as base has placed
        device=str(like.device),
    )

    def tick(event: ProgressEvent) -> None:
        if progress is not None:
            progress(event.max_steps if event.finished else event.step, event.max_steps)

    was_training = prior.training
    prior.eval()
    at_start, weights = validate(), {name: value.clone() for name, value in prior.state_dict().items()}
    prior.train(was_training)
    result = minimise(
        prior,
        loss,
        _Rows(train),
        recipe,
        validate=validate,
        random_state=seed,
        progress=tick,
        what=f"fit {prior.name or 'prior'}",
    )
    if result.best_value is None or result.best_value > at_start:
        prior.load_state_dict(weights)
