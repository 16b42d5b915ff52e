"""The one training loop: it minimises a loss over data and knows nothing of what the loss means."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latentfit.data import Batch, RowSource
from latentfit.errors import InputError, ReliabilityWarning, SavedFileError, TrainingError
from latentfit.training.batches import ShuffledEpochs
from latentfit.training.checkpoint import Checkpoints, layout
from latentfit.training.history import Averages, History, Record
from latentfit.training.modes import in_eval, in_training
from latentfit.training.precision import autocast
from latentfit.training.progress import Progress, ProgressEvent
from latentfit.training.recipe import Recipe
from latentfit.training.rng import independent_seeds, isolated_rng
from latentfit.training.state import Snapshot, TrainingState
from latentfit.training.updates import WeightAverage, clip, gradient_norm, make_optimiser, set_rate

Loss = Callable[[Batch, int], Mapping[str, Tensor]]

#: non-finite steps in a row that mean the state itself is lost, and how often to go back to the last good one
BAD_STEPS, ROLLBACKS = 5, 3
SECONDS_PER_CHECKPOINT, SECONDS_PER_WRITE, SECONDS_PER_EVENT = 30.0, 1.0, 0.1
#: of a whole run, beside those at its validations; snapshots are at least 50 steps apart
RECORDS, SNAPSHOTS = 200, 100


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """What came of a run.

    Attributes:
        steps: gradient steps done, skipped ones included.
        best_step: the step whose weights were kept; `steps` without validation.
        best_value: its validation value; None without validation.
        stopped: "max_steps" or "early".
        seconds: wall-clock time, all resumed parts together.
        skipped_steps: steps left out because the loss or its gradient was not finite.
        rollbacks: returns to the last good state, each at half the rate.
        learning_rate: the peak rate after the roll-backs.
        history: one record per logged step: "step", "seconds", "learning_rate", each term averaged since the
            record before, "validation" where there was one.
    """

    steps: int
    best_step: int
    best_value: float | None
    stopped: str
    seconds: float
    skipped_steps: int
    rollbacks: int
    learning_rate: float
    history: list[Record] = field(repr=False)


def minimise(
    module: nn.Module,
    loss: Loss,
    data: RowSource,
    recipe: Recipe,
    *,
    validate: Callable[[], float] | None = None,
    random_state: int = 0,
    run_dir: str | Path | None = None,
    progress: Progress | None = None,
    parameter_groups: Sequence[Mapping[str, Any]] | None = None,
    restarts: Mapping[int, Callable[[], Iterable[nn.Parameter]]] | None = None,
    what: str = "training",
) -> TrainingResult:
    """Minimise E[loss(batch, step)] over a module's parameters, in place, with Adam.

    The run is a function of its arguments: it draws from generators of its own, and the caller's are left
    alone. With a `run_dir` it writes `metrics.jsonl` and checkpoints there; the same call resumes an
    interrupted run to the bit on the same machine, and returns at once from a finished one.

    Args:
        module: what is trained; afterwards on the recipe's device, with the best weights.
        loss: (batch, step) -> terms by name, each a scalar (); "loss" is minimised, the others are written
            down. A module's own parameters are trained too and its buffers are part of the state.
        data: `latentfit.data.Rows`, or anything with `len` and `batch(index)`.
        recipe: how to train.
        validate: () -> a number, lower is better, with (averaged) weights in eval mode, without gradients,
            and with the same noise each time. None keeps the last weights.
        random_state: seed of the order of rows and of all noise.
        run_dir: a folder for this run alone, or None.
        progress: shows how far it is, see `ProgressEvent`.
        parameter_groups: torch's parameter groups for those that need an "lr" of their own; the schedule
            scales it.
        restarts: {step: function}, each called once that many steps are done. It writes some parameters anew, in
            place, and returns them; their moments in Adam and their average start there.
        what: the run's name in messages.

    Returns:
        The counts, the best value and the history.

    Raises:
        InputError: nothing to train, no rows, a loss without "loss", a `run_dir` that holds another run.
        SavedFileError: `run_dir` cannot be written at the start. Later failures to write only warn.
        TrainingError: the loss stays non-finite after three roll-backs; the last good weights stay.

    Example:
        >>> import torch
        >>> from latentfit.data import Batch, Rows
        >>> from latentfit.training import Recipe, minimise
        >>> model = torch.nn.Linear(1, 1)
        >>> x = torch.linspace(-1, 1, 64)[:, None]
        >>> def loss(batch, step):
        ...     return {"loss": (model(batch.x) - 3 * batch.x - 1).square().mean()}
        >>> result = minimise(model, loss, Rows(Batch(x)), Recipe(max_steps=300, learning_rate=0.1))
        >>> round(model.weight.item(), 2), result.steps
        (3.0, 300)
    """
    device = recipe.torch_device()
    module.to(device)
    loss_module = loss.to(device) if isinstance(loss, nn.Module) else None
    order_seed, noise_seed, validation_seed = independent_seeds(random_state, 3)

    everything = {id(p): p for m in (module, loss_module) if m is not None for p in m.parameters() if p.requires_grad}
    optimiser = make_optimiser(everything.values(), parameter_groups, recipe)
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    average = WeightAverage(parameters, recipe.ema_decay) if recipe.ema_decay > 0 else None
    epochs = ShuffledEpochs(len(data), recipe.batch_size, order_seed)
    state = TrainingState(module, loss_module, optimiser, average, epochs, device)
    counters, restarts = state.counters, restarts or {}

    history = History(None if run_dir is None else Path(run_dir) / "metrics.jsonl")
    files = _Files(run_dir, history, state, recipe, what=what, n_rows=len(data), random_state=random_state)
    precision = autocast(recipe.precision, device)
    averages = Averages(on_cpu=device.type == "cpu")
    latest: Record = {}
    log_every = max(1, recipe.max_steps // RECORDS)
    snapshot_every = max(50, recipe.max_steps // SNAPSHOTS)

    def record(**more: float) -> None:
        rate = optimiser.param_groups[0]["lr"]
        latest.clear()
        latest.update({"step": counters.step, "seconds": round(counters.seconds, 3), "learning_rate": rate})
        latest.update({**averages.take(), **more})
        history.records.append(dict(latest))

    with isolated_rng(noise_seed, device), in_training(*state.roots.values()):
        good, spare = state.capture(everything=True), None
        resumed = files.start()
        if resumed is not None:
            state.resume(resumed)
            good, counters = resumed, state.counters
        began, steps_before = time.perf_counter() - counters.seconds, counters.step
        next_event = next_write = 0.0
        next_checkpoint = counters.seconds + SECONDS_PER_CHECKPOINT
        try:
            while not counters.stopped:
                step = counters.step
                batch = data.batch(epochs.next()).to(device)
                set_rate(optimiser, recipe.rate(step) / recipe.learning_rate * counters.rate_factor)
                for p in parameters:  # as optimiser.zero_grad, without its 20 microseconds of hooks
                    p.grad = None
                with precision:
                    terms = loss(batch, step)
                total = _total(terms, step, steps_before)
                total.backward()

                gradients = [p.grad for p in parameters if p.grad is not None]
                norm = gradient_norm(gradients).item()
                counters.step += 1
                fine = math.isfinite(norm) and math.isfinite(total.item())
                if fine:
                    clip(gradients, norm, recipe.clip_norm)
                    optimiser.step()
                    averages.add(terms)
                    counters.bad_in_a_row = 0
                    if average is not None:
                        average.update(counters.step)
                else:
                    counters.skipped += 1
                    counters.bad_in_a_row += 1
                    if counters.bad_in_a_row >= BAD_STEPS:
                        state.restore_weights(good)
                        if counters.rollbacks == ROLLBACKS:
                            raise TrainingError(
                                _lost(terms, counters.step, good.counters.step, recipe, what, random_state)
                            )
                        counters.rollbacks += 1
                        counters.rate_factor *= 0.5
                        counters.bad_in_a_row = 0

                restart = restarts.get(counters.step)
                if restart is not None:
                    state.start_over(restart())
                done = counters.step >= recipe.max_steps
                validating = done or counters.step % recipe.validation_interval == 0
                counters.seconds = now = time.perf_counter() - began
                if validating:
                    if validate is None:
                        record()
                    else:
                        with isolated_rng(validation_seed, device):
                            value = _validation(validate, state, recipe)
                        record(validation=value)
                    counters.stopped = "max_steps" if done else counters.stopped
                elif counters.step % log_every == 0:
                    record()
                # at fixed steps, never by the clock: a roll-back must go to the same state in a resumed run
                settled = validating or restart is not None or counters.step % snapshot_every == 0
                if counters.stopped or (fine and settled):
                    good, spare = state.capture(reuse=spare), good
                if progress is not None and (now >= next_event or counters.stopped):
                    speed = now / counters.step
                    left = (recipe.max_steps - counters.step) * speed
                    shown = {k: v for k, v in latest.items() if k not in ("step", "seconds", "learning_rate")}
                    progress(
                        ProgressEvent(what, counters.step, recipe.max_steps, shown, now, left, bool(counters.stopped))
                    )
                    next_event = now + SECONDS_PER_EVENT
                if now >= next_write or counters.stopped:
                    files.flush()
                    next_write = now + SECONDS_PER_WRITE
                if now >= next_checkpoint:
                    files.checkpoint(good)
                    next_checkpoint = now + SECONDS_PER_CHECKPOINT
        finally:
            # also after Ctrl-C or an error inside a step: the snapshot is whole, the present state may not be
            files.flush()
            files.checkpoint(good)
        _keep(state)

    return TrainingResult(
        steps=counters.step,
        best_step=counters.best_step if state.best is not None else counters.step,
        best_value=counters.best_value,
        stopped=counters.stopped,
        seconds=counters.seconds,
        skipped_steps=counters.skipped,
        rollbacks=counters.rollbacks,
        learning_rate=recipe.learning_rate * counters.rate_factor,
        history=history.records,
    )


def _validation(validate: Callable[[], float], state: TrainingState, recipe: Recipe) -> float:
    """Validate with the weights that would be kept; keep them if they are the best; see whether to stop."""
    counters, average = state.counters, state.average
    if average is not None:
        average.swap()
    try:
        with in_eval(*state.roots.values()), torch.no_grad():
            value = float(validate())
        if math.isfinite(value) and (counters.best_value is None or value < counters.best_value):
            counters.best_value, counters.best_step, counters.stale = value, counters.step, 0
            state.keep_best()
        elif counters.step >= recipe.min_steps:
            counters.stale += 1
    finally:
        if average is not None:
            average.swap()
    if recipe.patience is not None and counters.stale >= recipe.patience and counters.step >= recipe.min_steps:
        counters.stopped = "early"
    return value


def _keep(state: TrainingState) -> None:
    """Leave the module with the best weights, without validation with the (averaged) last ones."""
    if state.best is not None:
        state.load_weights(state.best)
    elif state.average is not None:
        state.average.swap()


class _Files:
    """The run's folder. What cannot be written is an error at the start, and one warning later."""

    def __init__(
        self,
        run_dir: str | Path | None,
        history: History,
        state: TrainingState,
        recipe: Recipe,
        *,
        what: str,
        n_rows: int,
        random_state: int,
    ) -> None:
        self.history = history
        self.checkpoints: Checkpoints | None = None
        self._warned = False
        self._stored: Snapshot | None = None
        if run_dir is not None:
            settings = {key: value for key, value in asdict(recipe).items() if key != "device"}
            run = {"what": what, "rows": n_rows, "random_state": random_state, "parameters": layout(state)}
            self.checkpoints = Checkpoints(Path(run_dir), {**run, **settings})

    def start(self) -> Snapshot | None:
        if self.checkpoints is None:
            return None
        found = self.checkpoints.newest()
        self.history.start([] if found is None else found[1])
        self._stored = None if found is None else found[0]
        return self._stored

    def flush(self) -> None:
        self._try(self.history.flush)

    def checkpoint(self, snapshot: Snapshot) -> None:
        checkpoints = self.checkpoints
        if checkpoints is not None and snapshot is not self._stored and snapshot.counters.step > 0:
            self._stored = snapshot
            self._try(lambda: checkpoints.write(snapshot, self.history.records))

    def _try(self, write: Callable[[], None]) -> None:
        try:
            write()
        except SavedFileError as error:
            if not self._warned:
                self._warned = True
                warnings.warn(
                    f"{error} The run goes on in memory but cannot be resumed from here.",
                    ReliabilityWarning,
                    stacklevel=4,
                )


def _total(terms: Mapping[str, Tensor], step: int, first: int) -> Tensor:
    if step == first:
        total = terms.get("loss") if isinstance(terms, Mapping) else None
        if not isinstance(total, Tensor) or total.numel() != 1:
            got = sorted(terms) if isinstance(terms, Mapping) else type(terms).__name__
            raise InputError(f"loss(batch, step) must return a dict with a scalar tensor under 'loss', got {got}.")
        if not total.requires_grad:
            raise InputError("The loss depends on no parameter that is trained, so it cannot be minimised.")
    return terms["loss"]


def _lost(terms: Mapping[str, Tensor], step: int, good_step: int, recipe: Recipe, what: str, random_state: int) -> str:
    values = {name: value.item() for name, value in terms.items()}
    bad = next((n for n in sorted(values, key="loss".__eq__) if not math.isfinite(values[n])), None)
    subject = "the gradient of 'loss'" if bad is None else f"the term '{bad}'"
    became = "infinite" if bad is not None and math.isinf(values[bad]) else "not a number"
    return (
        f"Training stopped at step {step:,}: {subject} became {became} after {ROLLBACKS} roll-backs ({what}, "
        f"seed {random_state}; last good step {good_step:,} kept). Usual cause: a log-scale or "
        f"log-variance ran away. Try learning_rate={recipe.learning_rate / 3:.0e}."
    )
