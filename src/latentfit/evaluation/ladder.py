"""The ladder: priors of growing richness fitted to the same codes, and what each wins on unseen rows."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from latentfit.errors import InputError
from latentfit.evaluation.codes import Codes
from latentfit.evaluation.estimate import FEWEST_GROUPS, Estimate
from latentfit.evaluation.gap import defensive_weight, prior_gap_per_row, require_exact
from latentfit.methods import LADDER
from latentfit.model.contracts import Prior
from latentfit.model.rows import FitOptions
from latentfit.priors import DefensiveMixture, MixturePrior, create

RUNGS = LADDER
NOTHING = "nothing"
#: arguments of the rungs that differ from the priors' own defaults
ARGUMENTS: dict[str, dict[str, object]] = {"mixture": {"n_components": "auto"}}
#: flows whose base is the mixture below them, where that has won something
ON_A_MIXTURE = ("realnvp", "nsf", "maf")
#: rows and draws that find the defensive weight, and rows that say how long a flow on a mixture trains, at most
MOST_VALIDATION_ROWS, MOST_WEIGHT_DRAWS = 5_000, 12_000
#: differences below it, in nats per row, are not worth a larger prior
WORTHWHILE = 0.1

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Rung:
    """One prior of the ladder.

    Attributes:
        name: the prior's name, or "nothing" for p itself.
        prior: the fitted prior, a `DefensiveMixture` with p; p itself for "nothing".
        gap: T on the selection rows, nats per row, with its own interval.
        per_row: (N,) T of each selection row.
        seconds: to fit it.
        weight: of the fitted prior in the defensive mixture; 0: nothing is won.
        n_parameters: learned numbers.
    """

    name: str
    prior: Prior
    gap: Estimate
    per_row: np.ndarray
    seconds: float
    weight: float
    n_parameters: int


@dataclass(frozen=True)
class Ladder:
    """All rungs, judged on the same rows by the same draws.

    Attributes:
        rungs: in order of their number of parameters.
        nothing: p itself, with a gap of 0: always a candidate.
        groups: labels of related selection rows, or None.
        cross_fitted: whether every row was judged by priors fitted on the other half of the rows.
    """

    rungs: list[Rung]
    nothing: Rung
    groups: np.ndarray | None = None
    cross_fitted: bool = False

    def __str__(self) -> str:
        lines = [f"{'prior':<18}{'T, nats per row':>18}{'weight':>8}{'parameters':>12}{'seconds':>9}"]
        for rung in self.candidates:
            size = f"{rung.n_parameters:,}"
            mark = "  <- chosen" if rung is self.chosen else ""
            lines.append(f"{rung.name:<18}{rung.gap!s:>18}{rung.weight:>8.2f}{size:>12}{rung.seconds:>9.1f}{mark}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"Ladder({', '.join(f'{rung.name} {rung.gap}' for rung in self.candidates)})"

    def __getitem__(self, name: str) -> Rung:
        """A rung by name.

        Raises:
            InputError: a name that is not on the ladder.
        """
        for rung in self.candidates:
            if rung.name == name:
                return rung
        raise InputError(f"No rung {name!r} on this ladder. It has: {', '.join(r.name for r in self.rungs)}.")

    def __iter__(self) -> Iterator[Rung]:
        return iter(self.rungs)

    @property
    def candidates(self) -> list[Rung]:
        """ "Nothing", then the rungs, by size."""
        return [self.nothing, *self.rungs]

    @property
    def best(self) -> Rung:
        """The rung with the largest gap; "nothing" where none wins."""
        return max(self.candidates, key=lambda rung: rung.gap.value)

    @property
    def chosen(self) -> Rung:
        """The smallest rung within max(1 SE of the paired difference to the best, 0.1 nat) of the best."""
        best = self.best
        for rung in self.candidates:
            short = Estimate.of(best.per_row - rung.per_row, groups=self.groups)
            if short.value <= max(short.std_error, WORTHWHILE):
                return rung
        return best

    @property
    def prior_gap(self) -> Estimate:
        """The certificate: the best rung's gap, "at least", with an interval valid for all rungs at once.

        The best of K rungs is chosen by the numbers it is reported with, so each bound is taken
        at (1 - level) / K (Bonferroni). "Nothing" has a gap of exactly 0 and needs no correction.

        Student's t serves although log ratios may have a heavy left tail. Let A be a place that no row fell into,
        with a share s of q(z). What the rows outside it say exceeds KL(q || p) by at most
        (2 KL(q || p) s + H(s)) / (1 - s), H being the entropy of (s, 1 - s), whatever r is (split both KLs at A):
        with s = 1 / N that is (2 KL + log N + 1) / N, far less than the interval's width. Bounds that need no
        normal approximation pay more than that (benchmarks/coverage.py has them side by side).
        """
        best = self.best
        if best is self.nothing:
            return best.gap
        level = best.gap.level
        wide = Estimate.of(best.per_row, groups=self.groups, level=1 - (1 - level) / len(self.rungs))
        return Estimate(wide.value, wide.std_error, wide.interval, level)


def climb(
    codes_train: Codes,
    codes_validation: Codes,
    codes_selection: Codes,
    p: Prior,
    *,
    rungs: Sequence[str | Prior] = RUNGS,
    n_draws: int = 4,
    random_state: int = 0,
    max_steps: int | None = None,
    progress: Progress | None = None,
) -> Ladder:
    """Fit each rung on training codes, mix it with p by validation codes, judge it on selection codes.

    All rungs are always tried: gains are not monotone in cost.

    Args:
        codes_train: of the rows the priors are fitted on.
        codes_validation: of other rows, for the weight of the defensive mixture.
        codes_selection: of a third set of rows, for the gap.
        p: the prior the model has.
        rungs: names of priors, or priors to be fitted.
        n_draws: draws of z per selection row.
        random_state: seed.
        max_steps: of each fit; the prior's own default otherwise.
        progress: called with (rung, step, steps).

    Returns:
        The ladder, by size.

    Raises:
        CapabilityError: p, or a rung, without an exact density.
    """
    require_exact(p)
    zeros = np.zeros(len(codes_selection))
    nothing = Rung(NOTHING, p, Estimate(0.0, 0.0, (0.0, 0.0)), zeros, 0.0, 0.0, 0)
    found: list[Rung] = []
    for wanted in rungs:
        below = _mixture_below(wanted, found)
        prior = _create(wanted, codes_train, below) if isinstance(wanted, str) else wanted
        name = wanted if isinstance(wanted, str) else prior.name or type(prior).__name__
        started = time.perf_counter()
        few = codes_validation[:: max(1, len(codes_validation) // MOST_VALIDATION_ROWS)]  # rows may be sorted
        options = FitOptions(max_steps, random_state, None if progress is None else _labelled(progress, name))
        start: dict[str, Any] = {} if below is None else {"start": (below, few.rows(prior))}
        prior.fit_rows(codes_train.rows(prior), options, **start)
        seconds = time.perf_counter() - started
        prior.eval()
        n_weight = max(1, min(8, MOST_WEIGHT_DRAWS // len(few)))
        weight = defensive_weight(prior, p, few, n_draws=n_weight, random_state=random_state)
        mixed = DefensiveMixture(prior, p, weight)
        per_row = prior_gap_per_row(mixed, p, codes_selection, n_draws=n_draws, random_state=random_state)
        gap = Estimate.of(per_row, groups=codes_selection.groups)
        found.append(Rung(name, mixed, gap, per_row, seconds, weight, prior.n_parameters))
    found.sort(key=lambda rung: rung.n_parameters)
    return Ladder(found, nothing, codes_selection.groups)


def cross_fit(
    codes: Codes,
    p: Prior,
    *,
    rungs: Sequence[str | Prior] = RUNGS,
    n_draws: int = 4,
    random_state: int = 0,
    max_steps: int | None = None,
    progress: Progress | None = None,
) -> Ladder:
    """The ladder without a training set: each half of the rows is judged by priors fitted on the other half.

    Groups stay in one half. The priors kept are those of the first half; the gaps are over all rows.

    Raises:
        InputError: fewer than 20 rows (or groups), which cannot be split.
    """
    first, second = halves(codes, random_state)
    parts = []
    for fitted_on, judged in ((first, second), (second, first)):
        train, validation = thirds(codes, fitted_on, random_state)
        names = [rung for rung in rungs if isinstance(rung, str)]
        if len(names) != len(rungs):
            raise InputError("cross_fit fits every rung twice: give names of priors, not priors.")
        parts.append(
            climb(
                codes[train],
                codes[validation],
                codes[judged],
                p,
                rungs=names,
                n_draws=n_draws,
                random_state=random_state,
                max_steps=max_steps,
                progress=progress,
            )
        )
    joined = []
    for rung in parts[0].rungs:
        other = parts[1][rung.name]
        per_row = np.empty(len(codes))
        per_row[second], per_row[first] = rung.per_row, other.per_row
        gap = Estimate.of(per_row, groups=codes.groups)
        seconds, size = rung.seconds + other.seconds, max(rung.n_parameters, other.n_parameters)
        weight = 0.5 * (rung.weight + other.weight)
        joined.append(Rung(rung.name, rung.prior, gap, per_row, seconds, weight, size))
    joined.sort(key=lambda rung: rung.n_parameters)
    nothing = replace(parts[0].nothing, per_row=np.zeros(len(codes)))
    return Ladder(joined, nothing, codes.groups, cross_fitted=True)


def halves(codes: Codes, random_state: int) -> tuple[np.ndarray, np.ndarray]:
    """Two disjoint halves of the rows, groups kept together: sorted row numbers."""
    return split_rows(len(codes), codes.groups, 0.5, random_state)


def thirds(codes: Codes, rows: np.ndarray, random_state: int) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers to fit on (four in five of `rows`) and to find the defensive weight on."""
    groups = None if codes.groups is None else codes.groups[rows]
    held_out, fitted = split_rows(len(rows), groups, 0.2, random_state + 1)
    return rows[fitted], rows[held_out]


def split_rows(n: int, groups: np.ndarray | None, share: float, random_state: int) -> tuple[np.ndarray, np.ndarray]:
    """About `share` of n rows, and the rest, whole groups at a time: sorted row numbers.

    Fewer than 4 groups (two batches of an experiment) are no units to split by: then rows are, and errors alone heed
    the groups.

    Raises:
        InputError: too few rows for both parts.
    """
    label = np.arange(n) if groups is None else np.unique(groups, return_inverse=True)[1].reshape(-1)
    units = int(label.max()) + 1 if n else 0
    if units < FEWEST_GROUPS and groups is not None:
        return split_rows(n, None, share, random_state)
    if units < 4:
        raise InputError(f"{units} rows cannot be split into parts to fit and to judge; at least 4 are needed.")
    order = np.random.default_rng(random_state).permutation(units)
    taken = np.isin(label, order[: min(units - 1, max(1, math.ceil(share * units)))])
    return np.flatnonzero(taken), np.flatnonzero(~taken)


def _create(name: str, codes: Codes, below: MixturePrior | None) -> Prior:
    """A prior by name, with a base as large as the mixture below it."""
    shape = codes.event_shape
    latent_dim = shape[0] if len(shape) == 1 else tuple(shape)
    arguments = dict(ARGUMENTS.get(name, {}))
    if below is not None:
        arguments["base"] = create("mixture", latent_dim=latent_dim, n_components=below.n_components)
    return create(name, latent_dim=latent_dim, **arguments).to(codes.mean)


def _mixture_below(wanted: str | Prior, found: Sequence[Rung]) -> MixturePrior | None:
    """The mixture that a flow stands on.

    From N(0, I) a flow needs many times the steps to part the clusters of q(z), and stopped early it undersells; from
    the mixture that the rung below found, all that it wins is won over that.
    """
    below = next((rung.prior for rung in found if rung.name == "mixture" and rung.weight > 0), None)
    mixture = below.base if isinstance(below, DefensiveMixture) else None
    return mixture if wanted in ON_A_MIXTURE and isinstance(mixture, MixturePrior) else None


def _labelled(progress: Progress, name: str) -> Callable[[int, int], None]:
    return lambda step, steps: progress(name, step, steps)
