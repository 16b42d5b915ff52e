"""The numbers of one diagnosis, each read off a model and its rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from latentfit.diagnosis.budget import Budget, not_attributed
from latentfit.diagnosis.material import UNLABELLED, Material, certify, some, some_numbers
from latentfit.diagnosis.probe import Probe
from latentfit.diagnosis.probe import probe as run_probe
from latentfit.errors import CapabilityError, InputError
from latentfit.evaluation.bdmc import bdmc
from latentfit.evaluation.calibration import Calibration, decoder_calibration
from latentfit.evaluation.embedding import against_pca, neighbourhood_overlap
from latentfit.evaluation.escalation import Scored, escalate
from latentfit.evaluation.estimate import Estimate
from latentfit.evaluation.gap import prior_gap_per_row
from latentfit.evaluation.holes import Holes, prior_holes
from latentfit.evaluation.ladder import RUNGS, Ladder, Progress
from latentfit.evaluation.proposal import Proposal, fit_proposal
from latentfit.evaluation.round_trip import explained_variance
from latentfit.evaluation.samples import FunctionalHole, functional_hole, halves
from latentfit.evaluation.terms import ELBOTerms, elbo_terms
from latentfit.model import RANKABLE, Prior, VAEModule

Depth = Literal["full", "quick"]
Goal = Literal["likelihood", "samples", "embedding"]

#: a Gaussian and a mixture take seconds, the flow about a minute
DEPTHS: dict[str, tuple[str, ...]] = {"quick": ("learned_gaussian", "mixture"), "full": RUNGS}
#: rows that are scored, that proposals are fitted on, that BDMC simulates
SCORED_ROWS = {"full": 500, "quick": 100}
PROPOSAL_ROWS = 5_000
SIMULATED_ROWS = 50
#: after which the number of importance samples is doubled no more
SCORING_SECONDS = {"full": 60.0, "quick": 15.0}
#: neighbours by which codes and as many principal components of the data are judged, and labelled rows at least
NEIGHBOURS, FEWEST_KNOWN = 15, 45
COUNTS = ("poisson", "negative_binomial", "zinb")


class Measures:
    """A model, its rows, and how closely to look; what could not be measured is in `missing`."""

    def __init__(
        self,
        material: Material,
        depth: Depth,
        features: Any,
        n_importance_samples: int | Literal["auto"],
        random_state: int,
        progress: Progress | None,
    ) -> None:
        self.material, self.depth, self.features = material, depth, features
        self.k, self.seed, self.progress = n_importance_samples, random_state, progress
        self.vae: VAEModule = material.subject.vae
        self.missing: dict[str, str] = {}
        self.proposals: dict[VAEModule, Proposal] = {}

    def ladder(self) -> Ladder:
        """The certificate, on rows no prior was fitted on."""
        self.tell("prior gap")
        return certify(self.material, self.vae.prior, DEPTHS[self.depth], self.seed, self.progress)

    def calibration(self) -> Calibration | None:
        self.tell("decoder")
        material = self.material
        rows, test = (material.scored(some(part, PROPOSAL_ROWS, self.seed)) for part in (material.train, material.test))
        groups = (
            None
            if material.groups is None
            else material.groups[some_numbers(len(material.test), PROPOSAL_ROWS, self.seed)]
        )
        # an encoder that is off leaves residuals that are not sigma's: those of the true posterior are asked
        proposal = self.proposal(self.vae) if self.vae.prior.density in RANKABLE else None
        return decoder_calibration(self.vae, rows, test, groups=groups, proposal=proposal, random_state=self.seed)

    def explained(self, mean: Callable[[Tensor], Tensor] | None = None) -> Estimate:
        """What of the variance comes back, of training or test rows, the more of both: overfitting is no misreading."""
        material = self.material
        known = some(material.train, PROPOSAL_ROWS, self.seed)
        test = explained_variance(self.vae, material.test, mean=mean, groups=material.groups, random_state=self.seed)
        return max(test, explained_variance(self.vae, known, mean=mean, random_state=self.seed), key=float)

    def beta(self, calibration: Calibration | None) -> tuple[float | None, str]:
        loss = self.material.subject.loss
        if loss is None:
            return None, ""
        sigma = None if calibration is None else calibration.sigma_optimal
        if loss.reconstruction.startswith("mse") and sigma is None:
            return None, ""
        d = self.material.test.x[0].numel()
        return loss.effective_beta(d, sigma), loss.formula(d, sigma)

    def terms(self, vae: VAEModule) -> ELBOTerms:
        self.tell("ELBO")
        material = self.material
        return elbo_terms(vae, material.scored(material.test), groups=material.groups, random_state=self.seed)

    def budget(
        self, mended: VAEModule, terms: ELBOTerms, ladder: Ladder, calibration: Calibration | None
    ) -> tuple[list[Scored], Estimate, Budget]:
        """log p(x) before and after the swap of the prior, on the same rows, with the same noise."""
        material, chosen = self.material, ladder.chosen
        models = [mended]
        if self.depth == "full" and chosen is not ladder.nothing:
            models.append(mended.with_parts(prior=chosen.prior))
        self.tell("log p(x)")
        scored = escalate(
            models,
            material.scored(material.test),
            proposal=[self.proposal(model) for model in models],
            n_rows=SCORED_ROWS[self.depth],
            n_importance_samples=self.k,
            groups=material.groups,
            random_state=self.seed,
            max_seconds=SCORING_SECONDS[self.depth],
        )
        rows = scored[0].scored_rows
        groups = None if material.groups is None else material.groups[rows]
        elbo = terms.elbo_per_row[rows]
        bound = elbo
        if mended is not self.vae:
            part = material.scored(material.test)[torch.as_tensor(rows, device=material.test.x.device)]
            bound = elbo_terms(mended, part, random_state=self.seed).elbo_per_row
        lost = scored[0].values - bound
        weights = None if terms.weights is None else terms.weights[rows]
        inference = Estimate.of(lost, weights=weights, groups=groups)
        rest = None
        if len(scored) > 1:
            won = prior_gap_per_row(chosen.prior, mended.prior, material.codes_test[rows], random_state=self.seed)
            rest = not_attributed(scored[1].values, elbo, [bound - elbo, lost, won], groups, weights)
        decoder = None if calibration is None else calibration.gain
        return scored, inference, Budget(decoder, inference, ladder.prior_gap, rest)

    def proposal(self, vae: VAEModule) -> Proposal:
        """The evaluation proposal of a model, fitted once."""
        if vae not in self.proposals:
            rows = self.material.scored(some(self.material.train, PROPOSAL_ROWS, self.seed))
            self.proposals[vae] = fit_proposal(vae, rows, random_state=self.seed)
        return self.proposals[vae]

    def simulated(self, vae: VAEModule) -> Estimate | None:
        self.tell("simulated rows")
        if vae.prior.density != "exact" or vae.conditional or self.material.test.context is not None:
            return None
        return bdmc(vae, n_rows=SIMULATED_ROWS, random_state=self.seed).gap

    def holes(self, ladder: Ladder, prior: Prior | None = None) -> Holes:
        """Holes of the model's prior, or of another, judged by the ladder's best (fitted on other rows than these)."""
        rungs = [rung for rung in ladder.rungs if rung.weight > 0] or ladder.rungs
        judge = max(rungs, key=lambda rung: rung.gap.value).prior
        context = self.material.codes_test.context
        n = 5000
        drawn = None
        if context is not None:
            drawn = context[torch.as_tensor(np.random.default_rng(self.seed).integers(len(context), size=n))]
        sampled = self.vae.prior if prior is None else prior
        return prior_holes(judge, sampled, self.material.codes_test, n_samples=n, context=drawn, random_state=self.seed)

    def functional_hole(self) -> FunctionalHole | None:
        if self.material.test.context is not None and not self.vae.conditional:
            return None
        self.tell("samples")
        rows = self.material.scored(self.material.test)
        try:
            groups = self.material.groups
            return functional_hole(self.vae, rows, features=self.features, groups=groups, random_state=self.seed)
        except (CapabilityError, InputError) as error:  # an encoder that reads a context has no features of x alone
            self.missing["samples"] = str(error)
            return None

    def probe(self, steps: int, ladder: Ladder) -> Probe:
        learned = next((rung.prior for rung in ladder.rungs if rung.name == "mixture"), ladder.best.prior)
        base: Prior = getattr(learned, "base", learned)
        material = self.material

        def tell(done: int, total: int) -> None:
            if self.progress is not None:
                self.progress("probe", done, total)

        return run_probe(
            self.vae,
            base,
            material.scored(material.train),
            material.scored(material.test),
            steps=steps,
            groups=material.groups,
            random_state=self.seed,
            progress=tell,
        )

    def embedding(self, goal: Goal) -> tuple[Estimate | None, Estimate | None, Estimate | None]:
        material, codes = self.material, self.material.codes_test
        counts = likelihood_name(self.vae) in COUNTS
        if material.labels is None and goal != "embedding":
            return None, None, None
        # as the model sees them: a table's columns in units of their own spread
        seen = material.test.x if counts else self.vae.model_units(material.test.x.to(self.vae.device))
        if material.labels is None:
            return None, None, neighbourhood_overlap(codes, seen, log1p=counts, random_state=self.seed)
        labelled = material.labels.astype(str) != UNLABELLED
        known, asked = (part[labelled[part]] for part in halves(len(codes), material.groups, self.seed))
        if material.groups is not None:  # a label that only one group has is nobody's to know
            asked = asked[np.isin(material.labels[asked], material.labels[known])]
        groups = None if material.groups is None else material.groups[asked]
        if min(len(known), len(asked)) < FEWEST_KNOWN:
            reason = f"{min(len(known), len(asked))} labels are too few for {NEIGHBOURS} neighbours"
            if goal == "embedding":
                raise InputError(f"diagnose: {reason}; at least {FEWEST_KNOWN} are needed, and as many rows to judge.")
            self.missing[f"{NEIGHBOURS}-NN"] = reason
            return None, None, None
        label = material.labels
        x = seen.flatten(1).cpu().numpy()
        found = against_pca(
            *(codes[known], x[known], label[known]),
            *(codes[asked], x[asked], label[asked]),
            k=NEIGHBOURS,
            log1p=counts,
            groups=groups,
        )
        return found.codes, found.pca, None

    def tell(self, part: str) -> None:
        if self.progress is not None:
            self.progress(part, 0, 0)


def likelihood_name(vae: VAEModule) -> str:
    return vae.likelihood.name or type(vae.likelihood).__name__
