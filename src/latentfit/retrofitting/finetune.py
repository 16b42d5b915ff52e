"""Training on from the prior found: encoder, decoder and prior together, beside a control arm under the old prior."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from latentfit.data.batch import Batch
from latentfit.data.rows import Prepare
from latentfit.errors import CapabilityError, InputError
from latentfit.evaluation.codes import encode_rows
from latentfit.evaluation.collapse import active_units
from latentfit.evaluation.estimate import Estimate
from latentfit.evaluation.rows import to_numpy
from latentfit.evaluation.terms import elbo_terms
from latentfit.model import ELBO, RANKABLE, FitOptions, Prior, VAEModule, fit
from latentfit.model.schedules import Linear
from latentfit.retrofitting.revive import Revival, revive
from latentfit.training import ProgressEvent, isolated_rng

if TYPE_CHECKING:
    import pandas as pd

#: where the KL weight starts, and the share of the run in which it rises to 1: revived units need time to be of use
#: before they are paid for
KL_START, KL_SHARE = 0.3, 0.2
#: steps where `True` is all that was said: passes over the rows, within these numbers of steps
PASSES, FEWEST, MOST = 20, 500, 20_000
#: rows a step, and draws of z for each row that is judged
BATCH_SIZE, DRAWS = 128, 4
#: rows on which a prior is fitted again once dead units have been revived
REFIT_ROWS = 20_000

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Arm:
    """One way to go on, judged on the test rows.

    Attributes:
        name: "before", "post hoc", "fine-tuned" or "control".
        elbo: nats per row.
        gain: over "before", paired, nats per row.
        kl: nats per row.
        active: units whose mean moves with x.
        steps: of training beyond the model given.
        seconds: of that training.
    """

    name: str
    elbo: Estimate
    gain: Estimate
    kl: float
    active: int
    steps: int
    seconds: float


@dataclass(frozen=True)
class FineTuning:
    """What training on under the prior found adds to putting it in place.

    Attributes:
        model: the fine-tuned VAE, a copy; control: the same training under the model's old prior.
        arms: "before", "post hoc", "fine-tuned", "control".
        added: ELBO of "fine-tuned" minus that of "post hoc", paired, nats per row.
        owed: ELBO of "fine-tuned" minus that of "control": what is owed to the prior and not to the steps.
        revival: which units were dead and were started anew.
        embeddings: "before" and "after", means of q(z given x) of the test rows (N, D).
    """

    model: VAEModule
    control: VAEModule
    arms: list[Arm]
    added: Estimate
    owed: Estimate
    revival: Revival
    embeddings: dict[str, np.ndarray] = field(repr=False)

    def __getitem__(self, name: str) -> Arm:
        """An arm by name."""
        return next(arm for arm in self.arms if arm.name == name)

    @property
    def won(self) -> Arm:
        """The fine-tuned arm where it added something, else the post hoc one."""
        return self["fine-tuned" if self.added.interval[0] > 0 else "post hoc"]

    @property
    def leaderboard(self) -> pd.DataFrame:
        """The arms as a table."""
        import pandas as pd

        return pd.DataFrame(
            {
                "arm": arm.name,
                "elbo": arm.elbo.value,
                "gain": arm.gain.value,
                "gain_se": arm.gain.std_error,
                "kl": arm.kl,
                "active_units": arm.active,
                "steps": arm.steps,
                "seconds": arm.seconds,
            }
            for arm in self.arms
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON."""
        arms = [
            {**{key: getattr(arm, key) for key in ("name", "kl", "active", "steps", "seconds")}}
            | {"elbo": arm.elbo.to_dict(), "gain": arm.gain.to_dict()}
            for arm in self.arms
        ]
        return {
            "arms": arms,
            "added": self.added.to_dict(),
            "owed": self.owed.to_dict(),
            "dead": self.revival.dead,
            "revived": self.revival.done,
        }


def finetune(
    vae: VAEModule,
    prior: Prior,
    train: Batch,
    test: Batch,
    *,
    steps: int | bool = True,
    objective: ELBO | None = None,
    prepare: Prepare | None = None,
    groups: np.ndarray | None = None,
    learning_rate: float = 1e-3,
    random_state: int = 0,
    progress: Progress | None = None,
    run_dirs: Mapping[str, Path] | None = None,
) -> FineTuning:
    r"""Train copies of a VAE on, under the prior found and, as a control, under its own, for the same steps.

    Units that carry nothing are started anew first, in encoder and decoder (see `revive`), the prior is fitted to
    them, and the KL weight rises again from 0.3: at full weight a unit that does not yet help the decoder is pruned
    at once, which is how it died. Both copies are treated alike, so that their difference is owed to the prior. The
    model itself is not touched.

    Args:
        vae: the trained VAE.
        prior: fitted to its q(z), with a density.
        train, test: rows to train on, and others to judge by.
        steps: of each copy; True: twenty passes over the rows, within 500 and 20,000 steps.
        objective: with a KL weight or penalties of one's own; by default the ELBO with a rising KL weight.
        prepare: applied to each training batch (dynamic binarisation).
        groups: (N,) labels of related test rows.
        learning_rate: Adam's peak rate.
        random_state: seed, the same for both.
        progress: called with (arm, step, steps).
        run_dirs: "fine-tuned" and "control" -> folders that keep their checkpoints, to resume from.

    Raises:
        InputError: an impossible number of steps.
        CapabilityError: a prior without a density for the ELBO, a model that cannot be copied or trained.
    """
    n_steps = _steps(steps, len(train))
    for one in (prior, vae.prior):
        if one.density not in RANKABLE and objective is None:
            raise CapabilityError(f"finetune: the density of the prior {one.name!r} is {one.density!r}: no ELBO.")
    label = None if groups is None else np.asarray(groups)
    models = {"before": vae, "post hoc": _copy(vae, prior)}
    seconds = {"before": 0.0, "post hoc": 0.0}
    revival = Revival(0, 0, "")
    for name, p in (("fine-tuned", prior), ("control", vae.prior)):
        started = time.perf_counter()
        arm = _copy(vae, p)
        revival = revive(arm, train, prepare=prepare, random_state=random_state)
        if revival.done and name == "fine-tuned":
            _refit(arm, train, prepare, random_state)
        goal = ELBO(_kl_weight(n_steps)) if objective is None else _copied(objective, (prior, vae.prior))
        fit(
            arm,
            train,
            objective=goal,
            prepare=prepare,
            max_steps=n_steps,
            batch_size=min(BATCH_SIZE, len(train)),
            learning_rate=learning_rate,
            device=str(vae.device),
            random_state=random_state,
            run_dir=None if run_dirs is None else run_dirs[name],
            progress=_told(progress, name),
        )
        models[name], seconds[name] = arm, time.perf_counter() - started
    terms = {name: elbo_terms(model, test, n_draws=DRAWS, random_state=random_state) for name, model in models.items()}
    codes = {name: encode_rows(model, test, random_state=random_state) for name, model in models.items()}

    def paired(first: str, second: str) -> Estimate:
        return Estimate.of(terms[first].elbo_per_row - terms[second].elbo_per_row, groups=label)

    arms = [
        Arm(
            name,
            Estimate.of(terms[name].elbo_per_row, groups=label),
            paired(name, "before"),
            terms[name].kl.value,
            int(active_units(codes[name])),
            n_steps if seconds[name] else 0,
            seconds[name],
        )
        for name in models
    ]
    return FineTuning(
        model=models["fine-tuned"],
        control=models["control"],
        arms=arms,
        added=paired("fine-tuned", "post hoc"),
        owed=paired("fine-tuned", "control"),
        revival=revival,
        embeddings={
            "before": to_numpy(codes["before"].mean.flatten(1)),
            "after": to_numpy(codes["fine-tuned"].mean.flatten(1)),
        },
    )


def _steps(steps: int | bool, n_rows: int) -> int:
    if steps is True:
        return int(min(MOST, max(FEWEST, PASSES * n_rows / BATCH_SIZE)))
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise InputError(f"finetune: steps must be True or a whole number of at least 1, got {steps!r}.")
    return steps


def _kl_weight(n_steps: int) -> Linear:
    return Linear(steps=max(1, int(KL_SHARE * n_steps)), start=KL_START)


def _copied(objective: ELBO, priors: tuple[Prior, Prior]) -> ELBO:
    """An arm's own objective; a penalty toward either prior is one toward the arm's, which is a copy."""
    goal = copy.deepcopy(objective)
    for given, own in zip(objective.penalties, goal.penalties, strict=True):
        if any(given.target is prior for prior in priors):
            own.target = None  # type: ignore[assignment]  # a ModuleList knows no class
    return goal


def _copy(vae: VAEModule, prior: Prior) -> VAEModule:
    """The VAE and the prior, all their own, and free to move."""
    try:
        arm, p = copy.deepcopy(vae), copy.deepcopy(prior)
    except Exception as error:
        raise CapabilityError(f"finetune: this model cannot be copied ({error}).") from None
    arm.prior = p.to(vae.device)
    arm.requires_grad_(True)
    if not any(True for _ in arm.encoder.parameters()):
        raise CapabilityError("finetune: the encoder has no parameters here (a bare callable?), so it cannot move.")
    return arm


def _refit(arm: VAEModule, train: Batch, prepare: Prepare | None, random_state: int) -> None:
    """The prior again, on codes whose dead units carry something: it was fitted to them as N(0, 1)."""
    rows = train[torch.randperm(len(train), generator=torch.Generator().manual_seed(random_state))[:REFIT_ROWS]]
    with isolated_rng(random_state, arm.device):
        codes = encode_rows(arm, rows if prepare is None else prepare(rows), random_state=random_state)
    arm.prior.fit_rows(codes.rows(arm.prior), FitOptions(random_state=random_state))


def _told(progress: Progress | None, name: str) -> Callable[[ProgressEvent], None] | None:
    if progress is None:
        return None
    return lambda event: progress(name, event.max_steps if event.finished else event.step, event.max_steps)
