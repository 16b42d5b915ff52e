"""The probe: does the prior press on the encoder? A copy trained on under a learned prior, against a control."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from latentfit.data.batch import Batch
from latentfit.data.rows import Rows
from latentfit.errors import CapabilityError
from latentfit.evaluation.estimate import Estimate
from latentfit.evaluation.ladder import WORTHWHILE
from latentfit.evaluation.terms import elbo_terms
from latentfit.model import ELBO, Prior, VAEModule
from latentfit.training import Recipe, minimise

STEPS, EVERY = 500, 100
#: held-out rows whose ELBO is compared, and draws of z for each
ROWS, DRAWS = 2_000, 4

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Probe:
    """What training on under a learned prior wins over training on, just as long, under the model's own.

    Attributes:
        steps: at which the two copies were compared; 0 first.
        gain: held-out ELBO of the copy with the learned prior minus that of the control, paired, nats per row;
            at step 0 the prior gap of that prior.
        pressure: gain at the last step minus gain at step 0: what the encoder and decoder won by moving.
        rising: whether the last interval still won.
        seconds: for both copies.
    """

    steps: list[int]
    gain: list[Estimate]
    pressure: Estimate
    rising: bool
    seconds: float

    @property
    def presses(self) -> bool:
        """Whether the prior presses on the encoder: more is to be won by moving the codes than a tenth of a nat."""
        return self.pressure.interval[0] > WORTHWHILE

    def to_dict(self) -> dict[str, object]:
        """JSON."""
        gains = [gain.to_dict() for gain in self.gain]
        return {"steps": self.steps, "gain": gains, "pressure": self.pressure.to_dict(), "presses": self.presses}


def probe(
    vae: VAEModule,
    learned: Prior,
    train: Batch,
    test: Batch,
    *,
    steps: int = STEPS,
    groups: np.ndarray | None = None,
    learning_rate: float = 5e-4,
    random_state: int = 0,
    progress: Progress | None = None,
) -> Probe:
    """Train two copies for the same steps on the same batches, one under `learned`, one under the model's prior.

    A gain of the first copy alone would mistake an unfinished training for pressure; the control takes that out.
    The model itself is not touched.

    Args:
        vae: a VAE that can be trained.
        learned: a prior fitted to its q(z), learnable (a mixture, a flow).
        train: rows to train on; test: other rows, which the ELBO is compared on.
        steps: of each copy.
        groups: of the test rows.
        learning_rate: Adam's peak rate.
        random_state: seed, the same for both.
        progress: called with (step, steps), both copies counted.

    Raises:
        CapabilityError: a model that cannot be copied or has nothing to train.
    """
    started = time.perf_counter()
    judged = test[slice(0, ROWS)]
    label = None if groups is None else groups[:ROWS]
    arms = []
    for number, prior in enumerate((learned, vae.prior)):
        arm = _copy(vae)
        arm.prior = copy.deepcopy(prior).requires_grad_(True).to(arm.device)
        arms.append(_train(arm, train, judged, steps, learning_rate, random_state, _shifted(progress, number, steps)))
    marks = sorted(set(arms[0]) & set(arms[1]))
    per_row = [arms[0][mark] - arms[1][mark] for mark in marks]
    pressure = Estimate.of(per_row[-1] - per_row[0], groups=label)
    late = Estimate.of(per_row[-1] - per_row[-2], groups=label) if len(marks) > 2 else pressure
    return Probe(
        steps=marks,
        gain=[Estimate.of(rows, groups=label) for rows in per_row],
        pressure=pressure,
        rising=late.interval[0] > 0,
        seconds=time.perf_counter() - started,
    )


def _copy(vae: VAEModule) -> VAEModule:
    try:
        arm = copy.deepcopy(vae)
    except Exception as error:
        raise CapabilityError(f"probe: this model cannot be copied ({error}); diagnose without probe=True.") from None
    for parameter in arm.parameters():
        parameter.requires_grad_(True)
    if not any(True for _ in arm.encoder.parameters()):
        raise CapabilityError("probe: the encoder has no parameters here (a bare callable?), so it cannot move.")
    return arm


def _train(
    vae: VAEModule, train: Batch, test: Batch, steps: int, rate: float, random_state: int, progress: Progress | None
) -> dict[int, np.ndarray]:
    """Held-out ELBO per row at each mark."""
    objective = ELBO()
    objective.n_train = len(train)
    every = min(EVERY, steps)
    marks = [0, *range(every, steps, every), steps]
    found = {0: elbo_terms(vae, test, n_draws=DRAWS, random_state=random_state).elbo_per_row}

    def loss(batch: Batch, step: int) -> dict[str, torch.Tensor]:
        if progress is not None:
            progress(step + 1, steps)
        return objective(vae, batch, step)

    def validate() -> float:
        rows = elbo_terms(vae, test, n_draws=DRAWS, random_state=random_state).elbo_per_row
        found[marks[min(len(found), len(marks) - 1)]] = rows
        return -float(rows.mean())

    recipe = Recipe(
        max_steps=steps,
        batch_size=min(128, len(train)),
        learning_rate=rate,
        schedule="one_cycle",
        ema_decay=0.98,
        validate_every=every,
        clip_norm=50.0,
        device=str(vae.device),
    )
    index = torch.arange(len(train), device=train.x.device)
    minimise(vae, loss, Rows(replace(train, index=index)), recipe, validate=validate, random_state=random_state)
    return found


def _shifted(progress: Progress | None, number: int, steps: int) -> Progress | None:
    return None if progress is None else lambda step, _: progress(number * steps + step, 2 * steps)
