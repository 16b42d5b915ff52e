"""`diagnose(model, X)`: what is wrong with a trained VAE, in nats, in the order in which to mend it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch
from numpy.typing import ArrayLike

from latentfit.adapters import AdaptedVAE, Subject
from latentfit.diagnosis.budget import Budget
from latentfit.diagnosis.findings import Finding
from latentfit.diagnosis.material import gather, some
from latentfit.diagnosis.measures import DEPTHS, Depth, Goal, Measures, likelihood_name
from latentfit.diagnosis.pictures import Pictures, draw_pictures
from latentfit.diagnosis.probe import STEPS
from latentfit.diagnosis.result import Diagnosis, DiagnosisSetting
from latentfit.diagnosis.sections import BAND_ROWS, band_pictures
from latentfit.diagnosis.verdicts import (
    collapse_finding,
    decoder_finding,
    embedding_finding,
    functional_hole_finding,
    groups_finding,
    holes_finding,
    inference_finding,
    prior_finding,
    probe_finding,
    training_finding,
)
from latentfit.errors import InputError, overheard
from latentfit.evaluation.collapse import active_units
from latentfit.evaluation.dimension import intrinsic_dimension
from latentfit.evaluation.escalation import Scored, gate_fails
from latentfit.evaluation.estimate import Estimate
from latentfit.evaluation.gap import gap_by_group, kl_per_row
from latentfit.evaluation.ladder import Progress
from latentfit.evaluation.terms import ELBOTerms
from latentfit.likelihoods import ContinuousBernoulli
from latentfit.model import RANKABLE, VAEModule


def diagnose(
    model: Any,
    X_test: Any = None,
    *,
    X_train: Any = None,
    labels: ArrayLike | str | None = None,
    groups: ArrayLike | str | None = None,
    goal: Goal = "likelihood",
    depth: Depth = "full",
    probe: bool | int = False,
    features: Callable[[torch.Tensor], torch.Tensor] | None = None,
    n_importance_samples: int | Literal["auto"] = "auto",
    random_state: int = 0,
    lang: str = "en",
    progress: Progress | None = None,
) -> Diagnosis:
    r"""What is wrong with a trained VAE, and what it costs: in the order in which to mend it.

    Training (warm-up finished, converged), decoder (is sigma that of the residuals?), collapse, inference gap,
    prior gap, holes; on request pressure, embedding, groups. The prior gap is *at least*: what is left after the
    encoder was bent to fit the prior. `probe=True` asks how much more moving the encoder would win.

    Args:
        model: an `lf.VAE`, a `VAEModule`, or any torch VAE (see `latentfit.adapt`). No weight is changed.
        X_test: (N, *data_shape), rows as the model takes them, which the model was not trained on.
        X_train: the rows it was trained on, for priors and proposals to be fitted on; without them each half of
            `X_test` is judged by priors fitted on the other half, and the diagnosis says so.
        labels: (N,) of the test rows, for the accuracy of nearest neighbours; never used as a context.
        groups: (N,) labels of related test rows (batches, patients): errors are cluster-robust, and the gap is
            given for each. Both may name a column where the model keeps its own rows.
        goal: what the model is for: "likelihood", "samples" or "embedding"; says what is looked at besides.
        depth: "full", or "quick": without the flow, fewer rows, no second log p(x), no bands over uncertain weights.
        probe: whether to train a copy on, or for how many steps (500).
        features: x (B, *data_shape) -> (B, F), for sample quality; by default the model's own encoder means.
        n_importance_samples: draws per row for log p(x), or "auto": doubled until it changes by less than 0.02.
        random_state: seed of everything.
        lang: "en" or "vi".
        progress: called with (part, done, of).

    Returns:
        Findings, numbers with intervals, the ladder, the error budget. Where the weights have a distribution they are
        of the ordinary VAE at its centre, and the diagnosis says so.

    Raises:
        InputError: rows, labels or groups that cannot be used.
        CapabilityError: a prior without an exact density: it has no certificate.

    Example:
        >>> import numpy as np, latentfit as lf
        >>> X = np.random.default_rng(0).normal(size=(300, 4))
        >>> vae = lf.VAE(latent_dim=2, max_steps=50).fit(X)
        >>> dx = lf.diagnose(vae, X, depth="quick")
        >>> [finding.code for finding in dx.findings][:3]
        ['LF-TRAIN-01', 'LF-DECODER-01', 'LF-COLLAPSE-01']
    """
    if depth not in DEPTHS:
        raise InputError(f"diagnose: depth must be 'full' or 'quick', got {depth!r}.")
    if goal not in ("likelihood", "samples", "embedding"):
        raise InputError(f"diagnose: goal must be 'likelihood', 'samples' or 'embedding', got {goal!r}.")
    started = time.perf_counter()
    with overheard() as told:
        material = gather(model, X_test, X_train, labels=labels, groups=groups, random_state=random_state)
        uncertain = material.subject.vae
        measures = Measures(material.at_centre(), depth, features, n_importance_samples, random_state, progress)
        found = _Found(measures, goal, STEPS if probe is True else int(probe))
        dx = found.diagnosis(goal, lang, started, uncertain)
    notes = list(dict.fromkeys([*getattr(uncertain, "notes", []), *told]))  # of a model adapted before, its own too
    return replace(dx, setting=replace(dx.setting, notes=notes))


class _Found:
    """The numbers, in the order in which each may change what the next one means, and their findings."""

    def __init__(self, measures: Measures, goal: Goal, probe_steps: int) -> None:
        material, vae = measures.material, measures.vae
        test, scorable = material.codes_test, material.subject.can_score
        self.measures, self.material = measures, material
        self.ladder = measures.ladder()
        self.units = active_units(test)
        self.kl = Estimate.of(kl_per_row(vae.prior, test, random_state=measures.seed), groups=test.groups)
        self.calibration = measures.calibration() if scorable else None
        self.beta, self.formula = measures.beta(self.calibration)
        self.findings = [_training(material.subject), *self._decoder()]
        self.findings.append(collapse_finding(int(self.units), self.units.total))

        self.terms: ELBOTerms | None = None
        self.scored: list[Scored] = []
        self.inference: Estimate | None = None
        self.budget: Budget | None = None
        self.simulated: Estimate | None = None
        if scorable and vae.prior.density in RANKABLE:
            self._log_px()
        elif not scorable:
            measures.missing["log p(x)"] = "no likelihood was given"
        gap, chosen = self.ladder.prior_gap, self.ladder.chosen.name
        share = gap.value / self.kl.value if self.kl.value > 0 else 0.0
        self.findings.append(prior_finding(gap, share, chosen=chosen, cross_fitted=self.ladder.cross_fitted))

        self.holes = measures.holes(self.ladder)
        self.findings.append(holes_finding(self.holes.share, self.holes.n_rows))
        self.hole = measures.functional_hole() if scorable and goal != "embedding" else None
        if self.hole is not None:
            self.findings.append(functional_hole_finding(self.hole.excess, float(self.hole.floor)))
        self.probe = measures.probe(probe_steps, self.ladder) if probe_steps and scorable else None
        if self.probe is not None:
            self.findings.append(probe_finding(self.probe))
        self.knn, self.baseline, self.overlap = measures.embedding(goal)
        if self.knn is not None and self.baseline is not None:
            width = min(test.mean[0].numel(), material.test.x[0].numel())
            self.findings.append(embedding_finding(self.knn, self.baseline, width))
        labels = self.ladder.groups
        self.by_group = {} if labels is None else gap_by_group(self.ladder.best.per_row, labels)
        if self.by_group:
            self.findings.append(groups_finding(self.by_group, gap))

    def _decoder(self) -> list[Finding]:
        if not self.material.subject.can_score:
            return []
        training = _training(self.material.subject)
        # a KL weight that stopped short is the training's fault, and said there
        unfinished = training.grave and "kl_weight" in training.parameters
        gain = None if self.calibration is None else self.calibration.gain
        beta = None if unfinished else self.beta
        explained = self.measures.explained() if int(self.units) else None
        name = likelihood_name(self.measures.vae)
        of_grey = explained is not None and name == ContinuousBernoulli.name
        by_sigmoid = self.measures.explained(torch.sigmoid) if of_grey else None
        kl = self.kl.value
        return [decoder_finding(name, self.sigma, gain, beta, explained=explained, by_sigmoid=by_sigmoid, kl=kl)]

    def _log_px(self) -> None:
        measures, vae = self.measures, self.measures.vae
        calibration = self.calibration if self.findings[1].grave else None
        mended = vae if calibration is None else vae.with_parts(likelihood=calibration.calibrated)
        self.terms = measures.terms(vae)
        self.kl = self.terms.kl
        self.scored, self.inference, self.budget = measures.budget(mended, self.terms, self.ladder, calibration)
        first = self.scored[0]
        failed = first.log_likelihood.unreliable if first.ais is None and gate_fails(first.log_likelihood) else 0.0
        of_grey = self.material.subject.grey and isinstance(vae, AdaptedVAE)
        otherwise = "sigma" if mended is not vae else "grey" if of_grey else ""
        gap, kl = self.inference, self.kl.value
        self.findings.append(inference_finding(gap, kl, first.k, first.method, failed, otherwise))
        if measures.depth == "full":
            self.simulated = measures.simulated(mended)

    @property
    def sigma(self) -> tuple[float, float] | None:
        return None if self.calibration is None else (self.calibration.sigma_used, self.calibration.sigma_optimal)

    def diagnosis(self, goal: Goal, lang: str, started: float, uncertain: VAEModule) -> Diagnosis:
        measures, material, under = self.measures, self.material, self.material.subject
        first = self.scored[0] if self.scored else None
        full = measures.depth == "full"
        pictures = self._pictures(uncertain)
        setting = DiagnosisSetting(
            model=under.name,
            understood=list(getattr(measures.vae, "understood", [])),
            likelihood=likelihood_name(measures.vae) if under.can_score else "",
            data_shape=tuple(material.test.x.shape[1:]),
            n_test=len(material.test) if material.separate else len(material.whole or ()),
            n_train=len(material.codes_train),
            separate=material.separate,
            depth=measures.depth,
            goal=goal,
            seconds=time.perf_counter() - started,
            device=str(measures.vae.device),
            random_state=measures.seed,
            n_scored=0 if first is None else len(first.values),
            k=0 if first is None else first.k,
            estimator="" if first is None else first.method,
            missing=measures.missing,
            lang=lang,
            n_draws=uncertain.n_draws,
            columns=under.columns,
        )
        return Diagnosis(
            setting=setting,
            findings=self.findings,
            prior_gap=self.ladder.prior_gap,
            kl=self.kl,
            ladder=self.ladder,
            active_units=self.units,
            inference_gap=self.inference,
            elbo=None if self.terms is None else self.terms.elbo,
            log_px=None if first is None else first.estimate,
            budget=self.budget,
            effective_beta=self.beta,
            beta_formula=self.formula,
            sigma=self.sigma,
            holes=self.holes,
            functional_hole=None if self.hole is None else self.hole.excess,
            dimension=intrinsic_dimension(material.codes_test, random_state=measures.seed) if full else None,
            gap_by_group=self.by_group,
            knn=self.knn,
            knn_baseline=self.baseline,
            overlap=self.overlap,
            simulated_error=self.simulated,
            probe=self.probe,
            pictures=pictures,
        )

    def _pictures(self, uncertain: VAEModule) -> Pictures:
        chosen, measures, material = self.ladder.chosen, self.measures, self.material
        new = None if chosen is self.ladder.nothing else chosen.prior
        new_holes = None if new is None else measures.holes(self.ladder, new)
        seed = measures.seed
        drawn = draw_pictures(material, new, self.holes, new_holes, units=self.units, random_state=seed)
        if measures.depth == "quick" or not material.subject.can_score:
            return drawn
        rows = some(material.scored(material.test), BAND_ROWS, seed)
        return replace(drawn, **band_pictures(uncertain, rows, self.units.kl, material.subject.name, seed))


def _training(under: Subject) -> Finding:
    """By the package's own history, or by what the user said of the loss."""
    facts, loss = under.training_facts, under.loss
    if facts is not None:
        return training_finding(
            facts.kl_weight_reached, facts.warmup, facts.converged, steps=facts.steps, late_gain=facts.late_gain
        )
    if loss is not None and loss.reconstruction == "nll":
        return training_finding(loss.kl_weight, None, None)
    return training_finding(None, None, None)
