"""Training a VAE: the objective, the validation ELBO, the warm-up's rules, around the one loop."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from latentfit.data.batch import Batch
from latentfit.data.rows import Rows, as_batch
from latentfit.errors import InputError
from latentfit.model.contracts import Likelihood
from latentfit.model.objective import ELBO
from latentfit.model.rows import CodeRows, FitOptions
from latentfit.model.trial import try_out
from latentfit.model.vae import VAEModule
from latentfit.training import Recipe, TrainingResult, isolated_rng, minimise, short_record
from latentfit.training.modes import in_eval

#: rows on which a scale that follows the residuals is frozen, and the validation's rows at once
_ROWS = 5_000

#: shares of a run after which a prior that awaits codes starts at them (no earlier than the KL settles), the second for
#: codes that were poor at the first; how many rows it starts at, at most, and the iterations of that fit
_PRIOR_STARTS, _PRIOR_ROWS, _PRIOR_STEPS = (0.2, 0.5), 20_000, 20

#: settings whose None says something: never stop early, never clip, validate about 20 times; None of others is left out
_NONE_MEANS = ("patience", "clip_norm", "validate_every")

#: What every method is trained with unless told otherwise: one recipe, so that a comparison is fair.
RECIPE = Recipe(
    max_steps=2_000,
    batch_size=128,
    learning_rate=2e-3,
    schedule="one_cycle",
    clip_norm=50.0,
    ema_decay=0.99,
    patience=5,
)


def fit(
    module: VAEModule,
    X: Any,
    *,
    objective: ELBO | None = None,
    X_validation: Any = None,
    validation_fraction: float = 0.1,
    prepare: Callable[[Batch], Batch] | None = None,
    recipe: Recipe | None = None,
    random_state: int = 0,
    run_dir: str | Path | None = None,
    progress: Any = None,
    **settings: Any,
) -> TrainingResult:
    """Train a VAE by minimising its objective; the best weights by the validation ELBO at KL weight 1 are kept.

    Early stopping never fires before the KL's strength has settled. An objective that settles as something else than
    the ELBO (another KL weight, a floor, a penalty) is validated by itself, from then on: by the ELBO the weights kept
    would be those of the moment at which its strength passed through 1. Where its values cannot be compared (a critic,
    a moving weight) the last weights are kept and nothing stops early.

    Args:
        module: the VAE, changed in place.
        X: rows: array, tensor, DataFrame, `Dataset`, `DataLoader` or `Batch`; (N, *data_shape).
        objective: an `ELBO`; by default one at KL weight 1.
        X_validation: held-out rows for early stopping; by default a share `validation_fraction` of X.
        prepare: applied to each training batch (dynamic binarisation, dequantisation).
        recipe: training settings; by default `RECIPE`.
        settings: fields of the recipe to change: `max_steps`, `batch_size`, `learning_rate`, `device`, `precision`...
        random_state: seeds the batches, the noise and the validation split; the caller's random state is untouched.
        run_dir: checkpoints and `metrics.jsonl`; calling again with the same folder resumes.

    Returns:
        What the loop reports: steps, best validation value (nats per row), history. The module keeps a short record
        of it, `module.trained`, which is saved with it and which `diagnose` reads.

    Raises:
        InputError: data that the likelihood cannot score, an encoder or decoder of another width, a warm-up longer than
            the run.

    Warns:
        ReliabilityWarning: a decoder that ends in a sigmoid under a likelihood that reads logits.
    """
    objective = objective or ELBO()
    recipe = _recipe(recipe, settings)
    data, held_out = _rows(X, X_validation, validation_fraction, random_state)
    if prepare is not None and X_validation is None and len(held_out):
        with isolated_rng(random_state):  # drawn once: validations then differ by the weights alone
            held_out = prepare(held_out)
    settled_at = objective.settled_at
    if settled_at > recipe.max_steps:
        stops = (
            f"the KL weight would stop at {objective.kl_weight(recipe.max_steps - 1):.2f}"
            if objective.kl_weight.settled_at == settled_at
            else f"the KL would never be held at what {type(objective.kl_term).__name__} asks for"
        )
        raise InputError(
            f"The KL warm-up ({settled_at:,} steps) is longer than the run: {recipe.max_steps:,} steps, so {stops}. "
            f"Make the warm-up at most {recipe.max_steps:,} steps or max_steps at least {settled_at:,}."
        )
    recipe = dataclasses.replace(recipe, min_steps=max(recipe.min_steps, settled_at))
    if prepare is None:
        module.check_rows(data.x)
        module.check_rows(held_out.x)
    try_out(module, data, prepare, random_state)
    module.prior.bind(module, data)
    with isolated_rng(random_state):  # a critic's first weights
        objective.bind(module, len(data))
    training = _Step(module, objective)

    def validate() -> float:
        _freeze_scale(module, data, prepare)
        # the same noise each time: validations differ by the weights alone
        with isolated_rng(random_state, module.device):
            return validation_loss(module, objective, held_out)

    result = minimise(
        module,
        training,
        Rows(data, prepare),
        recipe,
        validate=validate if len(held_out) and objective.comparable else None,
        random_state=random_state,
        run_dir=None if run_dir is None else Path(run_dir),
        progress=progress,
        parameter_groups=objective.parameter_groups(),
        restarts=_start_of_prior(module, objective, data, prepare, recipe.max_steps, random_state),
    )
    if len(held_out) and objective.is_elbo:
        result = _settle_scale(module, data, prepare, result, validate)
    for network in module.uncertain:
        settled = partial(objective, module, step=settled_at)
        network.explore(module, settled, Rows(data, prepare), recipe, random_state)
    _freeze_scale(module, data, prepare)
    weight = float(objective.kl_weight(objective.kl_weight.settled_at))
    module.trained = short_record(result.history, result.steps, recipe.max_steps, result.stopped, weight)
    module.eval()
    module.prior.freeze()
    return result


@torch.no_grad()
def validation_loss(module: VAEModule, objective: ELBO, held_out: Batch) -> float:
    """Minus the ELBO at KL weight 1, or the objective at its settled strength, in nats per row."""
    total = counted = 0.0
    for start in range(0, len(held_out), _ROWS):
        part = held_out[slice(start, start + _ROWS)].to(module.device)
        weight = float(len(part)) if part.weight is None else float(part.weight.sum())
        if weight > 0:
            terms = objective(module, part, objective.settled_at)
            total += weight * float(-terms["elbo"] if objective.is_elbo else terms["loss"])
            counted += weight
    return total / counted


class _Step(nn.Module):
    """The objective as the loop's loss; the model is not registered, the loop already trains it."""

    def __init__(self, model: VAEModule, objective: ELBO) -> None:
        super().__init__()
        self.objective = objective
        object.__setattr__(self, "model", model)

    def forward(self, batch: Batch, step: int) -> dict[str, torch.Tensor]:
        return self.objective(self.model, batch, step)


def _recipe(recipe: Recipe | None, settings: dict[str, Any]) -> Recipe:
    known = {field.name for field in dataclasses.fields(Recipe)}
    unknown = set(settings) - known
    if unknown:
        raise InputError(f"fit takes no setting {sorted(unknown)[0]!r}. It takes: {', '.join(sorted(known))}.")
    given = {k: v for k, v in settings.items() if v is not None or k in _NONE_MEANS}
    return dataclasses.replace(recipe or RECIPE, **given)


def _rows(X: Any, X_validation: Any, fraction: float, random_state: int) -> tuple[Batch, Batch]:
    data = as_batch(X)
    if X_validation is not None:
        return data, as_batch(X_validation, what="X_validation", min_rows=1)
    if not 0 <= fraction < 1:
        raise InputError(f"validation_fraction must be in [0, 1), got {fraction}.")
    n_held_out = round(fraction * len(data))
    if n_held_out == 0:
        return data, data[:0]
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(random_state))
    return data[order[n_held_out:]], data[order[:n_held_out]]


def _start_of_prior(
    module: VAEModule,
    objective: ELBO,
    data: Batch,
    prepare: Callable[[Batch], Batch] | None,
    max_steps: int,
    random_state: int,
) -> dict[int, Callable[[], list[nn.Parameter]]]:
    """After how many steps a prior that awaits codes starts at them, and how; never where no KL would train it."""
    prior = module.prior
    if not prior.awaits_codes or objective.kl_weight(objective.settled_at) == 0:
        return {}

    @torch.no_grad()
    def start() -> list[nn.Parameter]:
        rows = _codes(module, data, prepare, random_state)
        z = rows.draw(torch.Generator().manual_seed(random_state)).unflatten(-1, module.event_shape)
        before = {name: value.clone() for name, value in prior.state_dict().items()}
        score = prior.log_prob(z, rows.context).mean()
        prior.start_rows(rows, FitOptions(_PRIOR_STEPS, random_state))
        if prior.log_prob(z, rows.context).mean() > score:
            return list(prior.parameters())
        prior.load_state_dict(before)  # what training has found is better
        return []

    steps = (max(1, objective.settled_at, round(share * max_steps)) for share in _PRIOR_STARTS)
    return {step: start for step in steps if step < max_steps}


@torch.no_grad()
def _codes(module: VAEModule, data: Batch, prepare: Callable[[Batch], Batch] | None, random_state: int) -> CodeRows:
    """q(z given x) of at most `_PRIOR_ROWS` training rows as Gaussians, encoded in eval mode."""
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(random_state))[:_PRIOR_ROWS]
    means, stds, factors = [], [], []
    with in_eval(module), isolated_rng(random_state, module.device):
        for rows in order.split(_ROWS):
            part = data[rows.to(data.x.device)].to(module.device)
            q = module.encode(part if prepare is None else prepare(part))
            mean, variance = q.moments()
            means.append(mean.flatten(1))
            stds.append(variance.sqrt().flatten(1))
            if "scale_tril" in (cache := q.cache()):
                factors.append(cache["scale_tril"])
    mean = torch.cat(means)
    context = None if data.context is None else data.context[order.to(data.x.device)].to(mean)
    return CodeRows(mean, torch.cat(stds), context, torch.cat(factors) if factors else None)


def _settle_scale(
    module: VAEModule,
    data: Batch,
    prepare: Callable[[Batch], Batch] | None,
    result: TrainingResult,
    validate: Callable[[], float],
) -> TrainingResult:
    """A learned scale that lags behind the decoder, as after few steps, moved to the training residuals' own.

    Only where that raises the ELBO of held-out rows: a decoder that overfits has residuals that are too small.
    """
    if type(module.likelihood).fit_scale is Likelihood.fit_scale:
        return result
    kept = {name: value.clone() for name, value in module.likelihood.state_dict().items()}
    with in_eval(module):
        before = validate()
        if not _at_residuals(module, data, prepare, module.likelihood.fit_scale):
            return result
        after = validate()
    if not after < before:
        module.likelihood.load_state_dict(kept)
        return result
    return dataclasses.replace(result, best_value=after)


def _freeze_scale(module: VAEModule, data: Batch, prepare: Callable[[Batch], Batch] | None) -> None:
    """Fix a scale that follows the residuals on training rows, before any number is reported."""
    if type(module.likelihood).freeze_scale is not Likelihood.freeze_scale:
        _at_residuals(module, data, prepare, module.likelihood.freeze_scale)


@torch.no_grad()
def _at_residuals(
    module: VAEModule,
    data: Batch,
    prepare: Callable[[Batch], Batch] | None,
    change: Callable[[torch.Tensor, torch.Tensor], Any],
) -> Any:
    """`change(x, params)` of (at most `_ROWS`) training rows."""
    rows = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:_ROWS]
    part = data[rows].to(module.device)
    with in_eval(module), isolated_rng(0, module.device):
        part = part if prepare is None else prepare(part)
        # the residuals at draws of z, as the ELBO sees them: at the posterior's mean they would be too small
        z, _ = module.encode(part).rsample_with_log_prob(1)
        x = module.model_units(part.x)
        x = x if part.mask is None else x.masked_fill(~part.mask, torch.nan)
        return change(x, module.decode(z[0], part.context))
