"""`retrofit(model, X_train)`: fit a better prior to a trained VAE's codes and put it in place, weights untouched."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike

from latentfit.data.noise import Binarise
from latentfit.diagnosis.material import Material, gather, some, some_numbers
from latentfit.diagnosis.pictures import draw_pictures
from latentfit.errors import CapabilityError, InputError, overheard
from latentfit.evaluation.codes import Codes
from latentfit.evaluation.escalation import escalate
from latentfit.evaluation.estimate import Estimate
from latentfit.evaluation.gap import kl_per_row, prior_gap
from latentfit.evaluation.guards import check_prior
from latentfit.evaluation.holes import prior_holes
from latentfit.evaluation.ladder import NOTHING, RUNGS, Ladder, Rung, climb
from latentfit.evaluation.proposal import fit_proposal
from latentfit.evaluation.rows import frozen
from latentfit.evaluation.samples import Features, SampleQuality, encoder_features, sample_quality
from latentfit.model import ELBO, RANKABLE, Prior, VAEModule
from latentfit.model.rows import FitOptions
from latentfit.priors import create
from latentfit.retrofitting.finetune import finetune as go_on
from latentfit.retrofitting.place import own_weights_sha256, put_in_place
from latentfit.retrofitting.result import Retrofit, RetrofitSetting, RungRow
from latentfit.retrofitting.rows import Parts, split

Goal = Literal["likelihood", "samples"]
#: told what is being done: (part, done, of)
Progress = Callable[[str, int, int], None]

#: rows that are scored before and after, that a proposal is fitted on, that sample quality is judged by
SCORED_ROWS, PROPOSAL_ROWS, QUALITY_ROWS = 500, 5_000, 10_000
#: codes that the judge of holes is fitted to, at most
JUDGE_ROWS = 5_000
#: after which the number of importance samples is doubled no more
SCORING_SECONDS = 60.0
#: codes drawn to time a prior
TIMED = 1_000


def retrofit(
    model: Any,
    X_train: Any = None,
    *,
    X_test: Any = None,
    groups: ArrayLike | str | None = None,
    goal: Goal = "likelihood",
    priors: tuple[str | Prior, ...] | list[str | Prior] = RUNGS,
    features: Features | None = None,
    finetune: bool | int = False,
    objective: ELBO | None = None,
    max_minutes: float | None = None,
    random_state: int = 0,
    lang: str = "en",
    progress: Progress | None = None,
) -> Retrofit:
    r"""Fit priors of growing richness to q(z) of a trained VAE and keep the smallest that suffices.

    The rows are encoded once. Each prior is fitted on training codes, mixed with the old prior by validation codes,
    judged on selection codes, and must pass the guards: it must not copy training codes, bridge modes, leave modes
    out, or lose its inverse in float32. The kept one, the smallest within max(1 standard error of the paired
    difference, 0.1 nat) of the best, is then measured on rows that were used for nothing else:

        gain = T(r) = mean of log r(z) - log p(z), z ~ q(z given x):  the ELBO won, nats per row.

    Encoder and decoder are not touched: codes and reconstructions stay what they were. A prior that fits already is
    kept ("nothing to win without training").

    Args:
        model: an `lf.VAE`, a `VAEModule`, or any torch VAE (see `latentfit.adapt`).
        X_train: (N, *data_shape), rows as the model takes them; a loader is read once.
        X_test: other rows. From 2,000 on, one half (at most 5,000 rows) chooses and the others measure the gain; fewer
            all measure, and a fifth of `X_train` chooses, which the VAE has seen. Without them half of `X_train` is
            set aside for both.
        groups: labels of related rows of `X_test`, of `X_train` where that is alone, (N,), or a column of the rows that
            the model keeps: parts share no group where they can, and errors are those of groups.
        goal: "likelihood" chooses by T, "samples" by the Frechet distance of samples.
        priors: names, or priors to be fitted.
        features: x (B, *data_shape) -> (B, F), for the samples; by default the model's own encoder means.
        finetune: True, or a number of steps: train a copy on under the kept prior, beside a control under the old
            one (see `latentfit.retrofitting.finetune`); `model` is the copy where it wins, and encodes differently.
        objective: what fine-tuning minimises, with penalties or a KL weight of your own.
        max_minutes: of all fits together; each prior's steps are cut to fit in.
        random_state: seed of everything.
        lang: "en" or "vi".
        progress: called with (part, done, of).

    Returns:
        The kept prior, the model with it in place, the ladder, the gain with its interval.

    Raises:
        InputError: rows that cannot be used, an unknown goal.
        CapabilityError: a prior without an exact density.

    Example:
        >>> import numpy as np, latentfit as lf
        >>> X = np.random.default_rng(0).normal(size=(300, 4))
        >>> vae = lf.VAE(latent_dim=2, max_steps=50).fit(X)
        >>> fix = lf.retrofit(vae, X, priors=["learned_gaussian"])
        >>> fix.weights_unchanged
        True
    """
    if goal not in ("likelihood", "samples"):
        hint = " A frozen model's embedding does not move, so no prior can improve it." if goal == "embedding" else ""
        raise InputError(f"retrofit: goal must be 'likelihood' or 'samples', got {goal!r}.{hint}")
    started = time.perf_counter()
    with overheard() as told:
        material = gather(model, X_test, X_train, groups=groups, random_state=random_state, what="retrofit")
        fix = _fitted(
            model, material, goal, tuple(priors), features, max_minutes, random_state, lang, progress, started
        )
        if finetune is not False:
            fix = _go_on(fix, model, material, finetune, objective, progress)
    own = getattr(material.subject.vae, "notes", [])  # of a model adapted before
    return replace(fix, setting=replace(fix.setting, notes=list(dict.fromkeys([*own, *told]))))


def _fitted(
    model: Any,
    material: Material,
    goal: Goal,
    priors: tuple[str | Prior, ...],
    features: Features | None,
    max_minutes: float | None,
    random_state: int,
    lang: str,
    progress: Progress | None,
    started: float,
) -> Retrofit:
    """The ladder fitted and judged, the prior that is kept, and what it wins."""
    vae = material.subject.vae
    before = own_weights_sha256(vae)
    if goal == "samples" and not material.subject.can_score:
        raise InputError("retrofit: goal='samples' needs decoded samples; adapt the model with a decoder.")
    parts = split(material, random_state)
    fitted, selection, test = parts.fitted, parts.selection, parts.test
    ladder = climb(
        fitted,
        parts.validation,
        selection,
        vae.prior,
        rungs=priors,
        random_state=random_state,
        max_steps=_steps(max_minutes, len(priors)),
        progress=progress,
    )
    guards = {
        rung.name: check_prior(rung.prior, fitted, selection, p=vae.prior, random_state=random_state)
        for rung in ladder.candidates
    }
    failed = {  # the model's own prior is kept whatever it fails
        rung.name: tuple(key for key, (ok, _) in guards[rung.name].items() if not ok) for rung in ladder.rungs
    }
    judged = parts.judged(material, choosing=goal == "samples")
    quality = _qualities(material, ladder, features, judged, random_state) if material.subject.can_score else {}
    if goal == "samples" and not quality:
        raise InputError("retrofit: goal='samples' needs features=; this model's encoder cannot serve as features.")
    kept = _keep(ladder, failed, quality if goal == "samples" else {})

    new = None if kept is ladder.nothing else kept.prior
    gain = Estimate(0.0, 0.0, (0.0, 0.0))
    if new is not None:
        gain = prior_gap(new, vae.prior, test, random_state=random_state)
    after = vae if new is None else vae.with_parts(prior=new)
    log_px_gain, n_scored, k = _paired(material, parts, vae, after, random_state, progress)
    judge, contexts = _judge(parts.validation, random_state), _contexts(selection)
    holes = {
        rung.name: prior_holes(judge, rung.prior, selection, context=contexts, random_state=random_state)
        for rung in ladder.candidates
    }
    own, new_holes = holes[NOTHING], holes[kept.name]
    rows = [
        RungRow(
            rung.name,
            rung.gap,
            quality[rung.name].frechet if rung.name in quality else None,
            float(holes[rung.name].share),
            rung.seconds,
            rung.n_parameters,
            _milliseconds(rung.prior, selection),
            failed.get(rung.name, ()),
            rung is kept,
        )
        for rung in sorted(ladder.candidates, key=lambda rung: -rung.gap.value)
    ]
    setting = RetrofitSetting(
        model=material.subject.name,
        understood=list(getattr(vae, "understood", [])),
        likelihood=(vae.likelihood.name or type(vae.likelihood).__name__) if material.subject.can_score else "",
        data_shape=tuple(material.test.x.shape[1:]),
        latent_shape=tuple(vae.event_shape),
        n_fit=len(fitted),
        n_selection=len(selection),
        n_test=len(test),
        separate=material.separate,
        chose=parts.chose,
        goal=goal,
        seconds=time.perf_counter() - started,
        device=str(vae.device),
        random_state=random_state,
        n_scored=n_scored,
        k=k,
        lang=lang,
        n_draws=vae.n_draws,
        n_groups=0 if test.groups is None else len(np.unique(test.groups)),
        columns=material.subject.columns,
    )
    return Retrofit(
        setting=setting,
        prior=kept.prior,
        model=put_in_place(model, vae, kept.prior, material.train),
        gain=gain,
        log_px_gain=log_px_gain,
        rows=rows,
        ladder=ladder,
        holes=(float(own.share), float(new_holes.share)),
        samples=_samples(quality, kept),
        kl=Estimate.of(kl_per_row(vae.prior, test, random_state=random_state), groups=test.groups),
        guards=guards[kept.name],
        sha256=(before, own_weights_sha256(vae)),
        pictures=draw_pictures(material, new, own, None if new is None else new_holes, random_state=random_state),
    )


def _go_on(
    fix: Retrofit,
    model: Any,
    material: Material,
    steps: int | bool,
    objective: ELBO | None,
    progress: Progress | None,
) -> Retrofit:
    """The same with a copy trained on under the kept prior, and that copy in place where it wins."""
    if not material.subject.can_score:
        raise CapabilityError("retrofit: finetune needs a decoder and a likelihood; adapt the model with them.")
    train, parts = material.train, split(material, fix.setting.random_state)
    found = go_on(
        material.subject.vae,
        fix.prior,
        train,
        parts.measured(material),  # the others chose the prior
        steps=steps,
        objective=objective,
        prepare=Binarise() if material.subject.grey else None,
        groups=parts.test.groups,
        random_state=fix.setting.random_state,
        progress=progress,
    )
    if found.won.name == "post hoc":
        return replace(fix, finetuned=found)
    whole = model._with_module(found.model, train.x) if hasattr(model, "_with_module") else found.model
    return replace(fix, finetuned=found, model=whole, prior=found.model.prior)


def _keep(ladder: Ladder, failed: dict[str, tuple[str, ...]], quality: dict[str, SampleQuality]) -> Rung:
    """The smallest prior that passes the guards and is close enough to the best of those that do."""
    allowed = [rung for rung in ladder.candidates if not failed.get(rung.name)]
    if quality:
        allowed = [rung for rung in allowed if rung.name in quality]
        best = min(allowed, key=lambda rung: quality[rung.name].frechet.value)
        limit = quality[best.name].frechet.value + quality[best.name].frechet.std_error
        return next(rung for rung in allowed if quality[rung.name].frechet.value <= limit)
    return replace(ladder, rungs=[rung for rung in allowed if rung is not ladder.nothing]).chosen


def _judge(codes: Codes, random_state: int) -> Prior:
    """Whose density says whether draws lie in holes: a mixture of codes that no rung is fitted to, since a rung would
    clear itself."""
    few = codes[some_numbers(len(codes), JUDGE_ROWS, random_state)]
    judge = create("mixture", latent_dim=tuple(codes.event_shape), n_components="auto").to(codes.mean)
    judge.fit_rows(few.rows(judge), FitOptions(random_state=random_state))
    return judge.eval()


def _qualities(
    material: Material, ladder: Ladder, features: Features | None, judged: np.ndarray, random_state: int
) -> dict[str, SampleQuality]:
    """Sample quality of every rung: the same reference rows, of these numbers at most, features and noise."""
    vae = material.subject.vae
    if material.test.context is not None and not vae.conditional:
        return {}
    numbers = judged[some_numbers(len(judged), QUALITY_ROWS, random_state)]
    reference = material.scored(material.test[torch.as_tensor(numbers, device=material.test.x.device)])
    groups = None if material.groups is None else material.groups[numbers]
    seen = features or encoder_features(vae)
    try:
        return {
            rung.name: sample_quality(
                vae.with_parts(prior=rung.prior), reference, features=seen, groups=groups, random_state=random_state
            )
            for rung in ladder.candidates
        }
    except (CapabilityError, InputError):  # an encoder that reads a context has no features of x alone
        return {}


def _samples(quality: dict[str, SampleQuality], kept: Rung) -> tuple[Estimate, Estimate, Estimate] | None:
    if not quality:
        return None
    return quality[NOTHING].frechet, quality[kept.name].frechet, quality[NOTHING].floor


def _paired(
    material: Material,
    parts: Parts,
    before: VAEModule,
    after: VAEModule,
    random_state: int,
    progress: Progress | None,
) -> tuple[Estimate | None, int, int]:
    """log p(x) won on the same test rows with the same noise."""
    if after is before or not material.subject.can_score or before.prior.density not in RANKABLE:
        return None, 0, 0
    if progress is not None:
        progress("log p(x)", 0, 0)
    fitted = some(material.scored(material.train), PROPOSAL_ROWS, random_state)
    models = [before, after]
    label = parts.test.groups
    scored = escalate(
        models,
        parts.measured(material),
        proposal=[fit_proposal(vae, fitted, random_state=random_state) for vae in models],
        n_rows=SCORED_ROWS,
        groups=label,
        random_state=random_state,
        max_seconds=SCORING_SECONDS,
    )
    groups = None if label is None else label[scored[0].scored_rows]
    won = scored[1].values - scored[0].values
    return Estimate.of(won, groups=groups), len(won), scored[0].k


def _steps(max_minutes: float | None, n_priors: int) -> int | None:
    """Steps of each fit; a step of the slowest family takes about 15 ms on one CPU core."""
    if max_minutes is None:
        return None
    if max_minutes <= 0:
        raise InputError(f"retrofit: max_minutes must be positive, got {max_minutes}.")
    return max(50, int(max_minutes * 60 / 0.015 / max(1, n_priors)))


@torch.inference_mode()
def _milliseconds(prior: Prior, codes: Codes) -> float:
    """Milliseconds to draw 1,000 codes, the best of three."""
    context = _contexts(codes, TIMED)
    seconds = []
    with frozen(prior):
        for _ in range(3):
            start = time.perf_counter()
            prior.sample(TIMED, context, torch.Generator(device=codes.mean.device).manual_seed(0)).sum().item()
            seconds.append(time.perf_counter() - start)
    return 1e3 * min(seconds)


def _contexts(codes: Codes, n: int = 5_000) -> torch.Tensor | None:
    """Contexts for n draws of a conditional prior: those of the rows, in turn."""
    if codes.context is None:
        return None
    return codes.context[torch.arange(n, device=codes.context.device) % len(codes.context)]
