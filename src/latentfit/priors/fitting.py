"""Fitting a prior by gradient descent on fresh draws of q(z given x)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from latentfit.data.batch import Batch
from latentfit.model.contracts import LOG_2PI, Prior
from latentfit.model.rows import CodeRows, FitOptions, draw_packed
from latentfit.training import ProgressEvent, Recipe, independent_seeds, minimise

#: rows of a batch: an eighth of the data within these
BATCH_SIZES = (128, 512)
#: Adam's, falling to 0 in a pass
LEARNING_RATE = 3e-3
#: a further pass must have raised the held-out gap by this share of it, and by so many nats
LEAST_SHARE, LEAST_GAIN = 0.01, 0.01
#: steps of the first pass at least: fewer say nothing about what more would win
FIRST_STEPS = 200
#: passes over the data at most; few rows are learned by heart long before the steps are over
MAX_EPOCHS = 130


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows as the training loop reads them, packed."""

    rows: CodeRows

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, index: Tensor) -> Batch:
        return self.rows[index.to(self.rows.mean.device)].packed()


def batch_size_for(n_rows: int) -> int:
    """An eighth of the rows, within `BATCH_SIZES`."""
    low, high = BATCH_SIZES
    return min(n_rows, max(low, min(high, n_rows // 8)))


def default_max_steps(n_rows: int, dim: int) -> int:
    """2,000 steps for few dimensions up to 4,000 for 40; at most `MAX_EPOCHS` passes, at least 500 steps."""
    wanted = min(4_000, 2_000 + 50 * dim)
    return max(500, min(wanted, MAX_EPOCHS * n_rows // batch_size_for(n_rows)))


def pass_lengths(max_steps: int) -> list[int]:
    """A sixteenth of the steps, then each pass as long as all before it: max_steps in all.

    Example:
        >>> pass_lengths(4_000)
        [250, 250, 500, 1000, 2000]
    """
    lengths = [min(max_steps, max(FIRST_STEPS, max_steps // 16))]
    while (left := max_steps - sum(lengths)) > 0:
        # what would be left for a last pass of less than half that joins the one before it
        lengths.append(left if left < 1.5 * sum(lengths) else sum(lengths))
    return lengths


def fit_by_gradient(
    prior: Prior,
    rows: CodeRows,
    options: FitOptions,
    held_out: CodeRows | None = None,
    learning_rate: float = LEARNING_RATE,
) -> None:
    r"""Minimise minus the mean log p(z), z ~ q(z given x) drawn afresh in every batch.

    The weights kept are the best on fixed draws of the `held_out` rows, those at the start among them; where none are
    given, one row in ten is held out. `max_steps` steps are one pass, its rate falling to 0. Without it passes of
    `pass_lengths` follow one another, each as long as all before it, **while the last has raised the gap T =
    E log p(z) - log N(z; 0, I) on the held-out rows by a hundredth of T, and by 0.01 nats**: what doubles the time has
    to change the answer.
    """
    max_steps, random_state, progress = options.max_steps, options.random_state, options.progress
    like = next(prior.parameters())
    if held_out is None:
        rows, held_out = rows.split(0.1, torch.Generator().manual_seed(random_state))
    rows = rows.to(like.device, like.dtype)
    draw_seed, seed = independent_seeds(random_state, 2)
    generator = torch.Generator().manual_seed(draw_seed)
    held_out = held_out.to(like.device, like.dtype)
    n_draws = max(1, math.ceil(1_000 / len(held_out)))
    fixed = torch.stack([held_out.draw(generator) for _ in range(n_draws)]).unflatten(-1, prior.event_shape)
    source = _Rows(rows)

    def loss(batch: Batch, step: int) -> dict[str, Tensor]:
        z = draw_packed(batch.x).unflatten(-1, prior.event_shape)
        return {"loss": -prior.log_prob(z, batch.context).mean()}

    @torch.no_grad()
    def validate() -> float:
        prior.eval()
        parts = [-prior.log_prob(z, held_out.context).mean() for z in fixed]
        return torch.stack(parts).mean().item()

    dim = prior.event_shape.numel()
    wanted = default_max_steps(len(rows), dim) if max_steps is None else max_steps
    lengths = pass_lengths(wanted) if max_steps is None else [wanted]
    of_null = 0.5 * (fixed.square().flatten(2).sum(-1).mean().item() + dim * LOG_2PI)
    was_training, done, value = prior.training, 0, validate()
    prior.train(was_training)
    for length, pass_seed in zip(lengths, independent_seeds(seed, len(lengths)), strict=True):
        recipe = Recipe(
            max_steps=length,
            batch_size=batch_size_for(len(rows)),
            learning_rate=learning_rate,
            schedule="cosine",
            clip_norm=5.0,
            validate_every=max(1, length // (40 if len(lengths) == 1 else 10)),
            patience=10,
            device=str(like.device),
        )

        def tick(event: ProgressEvent, before: int = done) -> None:
            if progress is not None:
                progress(before + event.step, wanted)

        kept = {name: tensor.clone() for name, tensor in prior.state_dict().items()}
        what = f"fit {prior.name or 'prior'}"
        result = minimise(
            prior, loss, source, recipe, validate=validate, random_state=pass_seed, progress=tick, what=what
        )
        best = math.inf if result.best_value is None else result.best_value
        if not best <= value:
            prior.load_state_dict(kept)
        gain, done = value - best, done + length
        value = min(value, best)
        if not gain >= max(LEAST_GAIN, LEAST_SHARE * (of_null - value)):
            break
    if progress is not None:
        progress(wanted, wanted)
