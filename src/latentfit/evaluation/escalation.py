"""How many importance samples log p(x) needs, and when it needs annealing instead."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch

from latentfit.data.batch import Batch
from latentfit.errors import InputError, ReliabilityWarning
from latentfit.evaluation.ais import AIS, CHAINS, LEAPFROG, TEMPERATURES, ais_log_likelihood, starting_proposal
from latentfit.evaluation.annealing import PILOT_CHAINS
from latentfit.evaluation.estimate import Estimate
from latentfit.evaluation.ladder import Progress
from latentfit.evaluation.likelihood import FEWEST_JUDGED, LogLikelihood, log_likelihood, require_density
from latentfit.evaluation.local import PAIRS, refined_rows
from latentfit.evaluation.proposal import Frame, Proposal
from latentfit.evaluation.rows import as_models, evaluation_rows
from latentfit.model.vae import VAEModule

#: importance samples to begin with and at most, and the change of the mean that ends the doubling, nats
FEWEST, MOST, TOLERANCE = 64, 4096, 0.02
#: the gate: share of rows with Pareto-k above 0.7, and median effective sample size
GATE_SHARE, GATE_SIZE = 0.1, 10.0
#: a decoder call with its gradient, in calls without
GRADIENT_CALLS = 3
#: of `log_likelihood`'s refinement
REFINEMENT_STEPS = 100
#: decoder calls of a row's refinement
_REFINEMENT_CALLS = REFINEMENT_STEPS * 2 * PAIRS * GRADIENT_CALLS
#: fewer annealed rows than this say nothing
FEWEST_ROWS = 20


@dataclass(frozen=True)
class Scored:
    """log p(x) of a random subset of rows, by the estimator that they need.

    Attributes:
        log_likelihood: importance-sampled, of all the rows chosen.
        rows: (R,) which rows of X, in random order; `X[rows]` are those scored.
        k: importance samples per row.
        method: which numbers to believe: those of `log_likelihood`, or of `ais`.
        reason: why, in a sentence.
        ais: annealed, of the first of the rows; None where it was not needed or not possible.
    """

    log_likelihood: LogLikelihood
    rows: np.ndarray
    k: int
    method: Literal["importance sampling", "ais"]
    reason: str
    ais: AIS | None = None

    @property
    def values(self) -> np.ndarray:
        """log p(x) of `scored_rows` by `method`, nats."""
        return self.log_likelihood.values if self.ais is None else self.ais.values

    @property
    def scored_rows(self) -> np.ndarray:
        """Which rows of X `values` are of."""
        return self.rows[: len(self.values)]

    @property
    def estimate(self) -> Estimate:
        """The mean of `values`."""
        return (self.log_likelihood if self.ais is None else self.ais).estimate


def escalate(
    models: Sequence[VAEModule],
    X: Any,
    *,
    proposal: Sequence[Proposal] | None = None,
    X_train: Any = None,
    n_rows: int = 500,
    n_ais_rows: int = 200,
    n_importance_samples: int | Literal["auto"] = "auto",
    groups: Any = None,
    random_state: int = 0,
    max_seconds: float | None = None,
    progress: Progress | None = None,
) -> list[Scored]:
    """log p(x) of a random subset of rows, with as many importance samples as it needs, or annealed.

    The number of samples is doubled from 64 up to 4096 until the second half of them adds less than 0.02 nats to the
    mean (several doublings at a time where the last one shows that they are needed: a smooth bias halves with each).
    The gate: where more than 10 % of rows have a Pareto-k above 0.7, or the median effective sample size is below 10,
    importance sampling is not to be believed, and `ais_log_likelihood` scores the first of the same rows. Several
    models (before and after a prior swap) get the same rows, noise, number of samples and estimator, whichever of
    them needed it, so that their differences are paired; they are scored one by one, not as a mixture.

    The gate sees weights with heavy tails. It cannot see a mode that no sample reached.

    The rows' own Gaussians are found once and serve every number of samples, and annealing. Of the samples nothing is
    reused: the last run is the one reported.

    Args:
        models: one VAE, or several to be compared; of a distribution over weights, its centre.
        X: (N, *data_shape).
        proposal: from `fit_proposal`, one for each model.
        X_train: rows to fit the proposals on, where none is given.
        n_rows: rows to score at most.
        n_ais_rows: how many of them to anneal, if need be.
        n_importance_samples: a number, which is kept, or "auto".
        groups: (N,) labels of related rows, for cluster-robust errors.
        random_state: seed, of the choice of rows too.
        max_seconds: what is expected to last longer is not begun; the first run always is. What fits into it depends on
            the machine, so give a number of samples where runs must repeat.
        progress: called with (stage, step, steps).

    Returns:
        A result for each model.

    Raises:
        CapabilityError: a prior whose density cannot enter log p(x).
        InputError: rows or counts that cannot be used.

    Warns:
        ReliabilityWarning: where the gate failed and annealing was not possible.
    """
    models = [model.centre() for model in as_models(models)]
    automatic = n_importance_samples == "auto"
    if not automatic and not (isinstance(n_importance_samples, int) and n_importance_samples >= 1):
        raise InputError(f"n_importance_samples is a positive number or 'auto', got {n_importance_samples!r}.")
    if n_rows < 1 or n_ais_rows < 1:
        raise InputError(f"n_rows and n_ais_rows must be at least 1, got {n_rows} and {n_ais_rows}.")
    clock = _Clock(max_seconds)
    batch = evaluation_rows(X, models[0])
    rows = np.random.default_rng(random_state).permutation(len(batch))[:n_rows]
    label = None if groups is None else _label(groups, len(batch))[rows]
    task = _Task(
        models,
        _proposals(models, proposal, X_train, random_state),
        batch[torch.as_tensor(rows, device=batch.x.device)],
        label,
        random_state,
        clock,
        progress,
    )
    task.refine()
    k = FEWEST if n_importance_samples == "auto" else n_importance_samples
    scored, reason = task.sample(k, automatic)
    annealed: list[AIS] | None = None
    if any(map(gate_fails, scored)):
        annealed, reason = task.anneal(n_ais_rows, scored)
    if annealed is None and any(map(gate_fails, scored)):
        warnings.warn(f"log p(x) is too low, by an unknown amount: {reason}", ReliabilityWarning, stacklevel=2)
    return [
        Scored(one, rows, one.n_importance_samples, "importance sampling", reason)
        if annealed is None
        else Scored(one, rows, one.n_importance_samples, "ais", reason, annealed[i])
        for i, one in enumerate(scored)
    ]


def gate_fails(result: LogLikelihood) -> bool:
    """Whether more than 10 % of rows have a Pareto-k above 0.7, or the median effective sample size is below 10.

    So few draws that k is not known are judged by the latter alone.
    """
    known = result.n_importance_samples >= FEWEST_JUDGED
    few = float(np.median(result.effective_sample_size)) < GATE_SIZE
    return few or (known and result.unreliable > GATE_SHARE)


class _Clock:
    """What is left of `max_seconds`, and what a decoder call was seen to cost."""

    def __init__(self, max_seconds: float | None) -> None:
        self.end = math.inf if max_seconds is None else time.monotonic() + max_seconds
        self.seconds_per_call = 0.0

    def affords(self, calls: float) -> bool:
        """Whether so many decoder calls are expected to end in time."""
        return calls * self.seconds_per_call <= self.end - time.monotonic()


@dataclass(frozen=True)
class _Task:
    """The same rows of the same models, scored in one way or another."""

    models: list[VAEModule]
    proposals: list[Proposal]
    batch: Batch
    groups: np.ndarray | None
    random_state: int
    clock: _Clock
    progress: Progress | None
    frames: list[Frame] = field(default_factory=list)

    def refine(self) -> None:
        """Find the rows' own Gaussians under each model, once."""
        begun = time.monotonic()
        for model, proposal in zip(self.models, self.proposals, strict=True):
            require_density(model)
            self.frames.append(
                refined_rows(model, self.batch, proposal, random_state=self.random_state, steps=REFINEMENT_STEPS)
            )
        calls = len(self.models) * len(self.batch) * _REFINEMENT_CALLS
        self.clock.seconds_per_call = (time.monotonic() - begun) / max(calls, 1)

    def sample(self, k: int, automatic: bool) -> tuple[list[LogLikelihood], str]:
        """Importance sampling with k draws, doubled while it helps; and why it ended there."""
        while True:
            begun = time.monotonic()
            scored = [self._sampled(i, k) for i in range(len(self.models))]
            self.clock.seconds_per_call = (time.monotonic() - begun) / self._sampling_calls(k)
            if self.progress is not None:
                self.progress("importance sampling", k, max(k, MOST if automatic else k))
            change = max(one.doubling for one in scored)
            if not automatic:
                return scored, f"{k:,} draws per row, as asked."
            settled = change < TOLERANCE
            if settled and not any(map(gate_fails, scored)):
                return scored, f"{k:,} draws per row: the second half of them added {change:.3f} nats."
            if k >= MOST:
                return scored, f"{k:,} draws per row, the most; the second half of them added {change:.3f} nats."
            more = _more(k, change)
            while more > 2 * k and not self.clock.affords(self._sampling_calls(more)):
                more //= 2
            if not self.clock.affords(self._sampling_calls(more)):
                return scored, f"{k:,} draws per row, then time was up; the second half added {change:.3f} nats."
            k = more

    def anneal(self, n_rows: int, scored: list[LogLikelihood]) -> tuple[list[AIS] | None, str]:
        """Every model's first n_rows rows annealed, or None and why not."""
        worst = max(one.unreliable for one in scored)
        size = min(float(np.median(one.effective_sample_size)) for one in scored)
        failed = (
            f"importance sampling failed its gate (Pareto-k above 0.7 in {worst:.0%} of rows, median effective sample "
            f"size {size:.0f} of {scored[0].n_importance_samples:,})"
        )
        n = min(n_rows, len(self.batch))
        while n > FEWEST_ROWS and not self.clock.affords(self._annealing_calls(n)):
            n = max(FEWEST_ROWS, n // 2)
        if not self.clock.affords(self._annealing_calls(n)):
            return None, f"{failed}, and there was no time for annealing."
        for model in self.models:
            if model.prior.density != "exact":
                return None, f"{failed}, and the prior {model.prior.name!r} cannot be annealed: {model.prior.density}."
        annealed = [self._annealed(i, n) for i in range(len(self.models))]
        whom = "every model was" if len(self.models) > 1 else "the model was"
        return annealed, f"{failed}, so {whom} scored by annealing on {n:,} of the rows."

    def _sampled(self, i: int, k: int) -> LogLikelihood:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ReliabilityWarning)  # the gate answers it
            return log_likelihood(
                self.models[i],
                self.batch,
                n_importance_samples=k,
                proposal=self.proposals[i],
                groups=self.groups,
                random_state=self.random_state,
                frames=[self.frames[i]],
            )

    def _annealed(self, i: int, n: int) -> AIS:
        report = self.progress
        offset, parts = i, len(self.models)
        return ais_log_likelihood(
            self.models[i],
            self.batch[slice(0, n)],
            proposal=self.proposals[i],
            groups=None if self.groups is None else self.groups[:n],
            random_state=self.random_state,
            frame=self.frames[i][slice(0, n)],
            progress=None if report is None else lambda s, of: report("annealing", offset * of + s, parts * of),
        )

    def _sampling_calls(self, k: int) -> float:
        """Decoder calls of one run over all models and rows."""
        return len(self.models) * len(self.batch) * k

    def _annealing_calls(self, n: int) -> float:
        per_row = (CHAINS + PILOT_CHAINS) * TEMPERATURES * LEAPFROG * GRADIENT_CALLS
        return len(self.models) * n * per_row


def _more(k: int, change: float) -> int:
    """How many draws next: as many doublings as the change needs if each halves it; all where that is not the need."""
    if not TOLERANCE <= change < math.inf:
        return MOST
    return int(min(MOST, k * 2 ** max(1, math.ceil(math.log2(change / TOLERANCE)))))


def _proposals(
    models: list[VAEModule], given: Sequence[Proposal] | None, X_train: Any, random_state: int
) -> list[Proposal]:
    proposals: Sequence[Proposal | None] = [None] * len(models) if given is None else given
    if len(proposals) != len(models):
        raise InputError(f"escalate: {len(models)} models need as many proposals, got {len(proposals)}.")
    return [starting_proposal(m, e, X_train, random_state) for m, e in zip(models, proposals, strict=True)]


def _label(groups: Any, n: int) -> np.ndarray:
    label = np.asarray(groups)
    if label.shape != (n,):
        raise InputError(f"escalate: groups has shape {label.shape}, expected ({n},), one for each row.")
    return label
