"""What a diagnosis found: plain numbers, which the terminal, the report and JSON all read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from latentfit.adapters.understood import Understood
from latentfit.diagnosis.budget import Budget
from latentfit.diagnosis.findings import Finding, plain
from latentfit.diagnosis.pictures import Pictures
from latentfit.diagnosis.probe import Probe
from latentfit.evaluation.collapse import ActiveUnits
from latentfit.evaluation.estimate import Estimate
from latentfit.evaluation.holes import Holes
from latentfit.evaluation.ladder import Ladder

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class DiagnosisSetting:
    """What was diagnosed, on which rows, and how: enough to repeat it.

    Attributes:
        model: its name; understood: what the adapter understood of a foreign model.
        likelihood: its name, or "" in latent-only mode.
        n_test, n_train: rows judged by, rows priors were fitted on.
        separate: whether the test rows were given beside the training rows.
        n_scored, k, estimator: rows whose log p(x) was estimated, with how many draws, and by what.
        missing: the numbers that could not be measured, each with the reason.
        n_draws: draws of the weights that make up the model; above 1 the VAE at their centre was diagnosed.
        notes: what was warned of on the way, as it was shown.
        columns: names of a table's columns, or their numbers from 0, where they are known.
        retrofit_command: what fits a prior to the same model, where a command made the diagnosis.
    """

    model: str
    understood: list[Understood]
    likelihood: str
    data_shape: tuple[int, ...]
    n_test: int
    n_train: int
    separate: bool
    depth: str
    goal: str
    seconds: float
    device: str
    random_state: int
    n_scored: int = 0
    k: int = 0
    estimator: str = ""
    missing: dict[str, str] = field(default_factory=dict)
    lang: str = "en"
    n_draws: int = 1
    notes: list[str] = field(default_factory=list)
    columns: Sequence[str | int] = ()
    retrofit_command: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """What is wrong with a trained VAE, in nats per row, in the order in which to mend it.

    Attributes:
        findings: codes with evidence, in the order of the diagnosis; sentences are in the catalogue.
        prior_gap: "at least" so much is lost to the prior: the best rung's T, its interval valid for all rungs.
        inference_gap: log p(x) - ELBO; None in latent-only mode.
        kl: mean KL(q(z given x) || p); elbo: its bound; log_px: log p(x), each None where it was not measured.
        ladder: every rung with its gap. active_units: which units carry anything.
        budget: the parts of the error.
        effective_beta: the KL weight this training amounts to at the calibrated sigma; with `beta_formula`.
        sigma: (used, optimal), or None.
        holes: share of draws from p where no row is encoded; functional_hole: what that costs the samples.
        dimension: intrinsic dimension of the codes. gap_by_group: group -> (rows, gap).
        knn: k-NN accuracy of the codes on the labels; knn_baseline: of as many principal components of the data;
            overlap: share of neighbours that codes and data agree on, where there are no labels.
        simulated_error: BDMC's gap, an upper bound on the error of log p(x) on rows *simulated* from the model.
        probe: whether the prior presses on the encoder, where it was asked for.
        pictures: the arrays that the report draws.
    """

    setting: DiagnosisSetting
    findings: list[Finding]
    prior_gap: Estimate
    kl: Estimate
    ladder: Ladder
    active_units: ActiveUnits
    inference_gap: Estimate | None = None
    elbo: Estimate | None = None
    log_px: Estimate | None = None
    budget: Budget | None = None
    effective_beta: float | None = None
    beta_formula: str = ""
    sigma: tuple[float, float] | None = None
    holes: Holes | None = None
    functional_hole: Estimate | None = None
    dimension: Estimate | None = None
    gap_by_group: dict[str, tuple[int, Estimate]] = field(default_factory=dict)
    knn: Estimate | None = None
    knn_baseline: Estimate | None = None
    overlap: Estimate | None = None
    simulated_error: Estimate | None = None
    probe: Probe | None = None
    pictures: Pictures = field(default_factory=Pictures, repr=False)

    @property
    def first(self) -> Finding | None:
        """What to mend first: a decoder that gives nothing back or was trained for another likelihood, since other
        numbers rest on it; an unfinished training; else the grave finding with the largest expected gain."""
        grave = [finding for finding in self.findings if finding.grave]
        misread = [finding for finding in grave if finding.parameters.get("variant") in ("nothing", "cross_entropy")]
        if misread:
            return misread[0]
        if not grave or grave[0].code.startswith("LF-TRAIN"):
            return grave[0] if grave else None
        return max(grave, key=lambda finding: -1.0 if finding.gain is None else finding.gain.value)

    @property
    def share_of_kl(self) -> float:
        """The prior gap as a share of the mean KL."""
        return self.prior_gap.value / self.kl.value if np.isfinite(self.kl.value) and self.kl.value > 0 else 0.0

    @property
    def leaderboard(self) -> pd.DataFrame:
        """The rungs of the ladder, best first."""
        import pandas as pd

        rungs = sorted(self.ladder.candidates, key=lambda rung: -rung.gap.value)
        columns = {
            "prior": [rung.name for rung in rungs],
            "gap": [rung.gap.value for rung in rungs],
            "gap_se": [rung.gap.std_error for rung in rungs],
            "weight": [rung.weight for rung in rungs],
            "fit_seconds": [rung.seconds for rung in rungs],
            "n_parameters": [rung.n_parameters for rung in rungs],
            "chosen": [rung is self.ladder.chosen for rung in rungs],
        }
        return pd.DataFrame(columns)

    def summary(self, lang: str | None = None, width: int = 80) -> str:
        """The diagnosis as a table of lines of at most `width` characters."""
        from latentfit.report.diagnosis_text import diagnosis_text

        return diagnosis_text(self, lang or self.setting.lang, width)

    def __str__(self) -> str:
        return self.summary()

    def __repr__(self) -> str:
        return self.summary()

    def _repr_html_(self) -> str:
        from latentfit.report.diagnosis_text import diagnosis_html

        return diagnosis_html(self, self.setting.lang)

    def to_markdown(self, lang: str | None = None) -> str:
        """The findings as a markdown table."""
        from latentfit.report.diagnosis_text import diagnosis_markdown

        return diagnosis_markdown(self, lang or self.setting.lang)

    def report(self, path: str | Path, *, lang: str | None = None, title: str | None = None, **options: Any) -> Path:
        """Write the report: one offline HTML file, and a card for chat beside it, of the same name in PNG.

        Args:
            path: of the page, replaced atomically.
            lang: "en" or "vi".
            title: of the page.
            options: `show_data`: whether pictures of the data may be in it (False by default).
        """
        from latentfit.report.diagnosis_page import write_diagnosis

        return write_diagnosis(self, path, lang=lang or self.setting.lang, title=title, **options)

    def to_dict(self) -> dict[str, Any]:
        """JSON; what is not finite is null. `notes` are all that was said beside the numbers, warnings last."""
        from latentfit.report.diagnosis_text import missing, rows_line

        lang = self.setting.lang
        setting = {key: plain(getattr(self.setting, key)) for key in self.setting.__dataclass_fields__}
        setting["understood"] = [part.sentence(lang) for part in self.setting.understood]
        notes = [*rows_line(self, lang), *missing(self, lang), *setting.pop("notes")]
        names = ("prior_gap", "inference_gap", "kl", "elbo", "log_px", "functional_hole", "dimension", "knn")
        more = ("knn_baseline", "overlap", "simulated_error", "effective_beta", "sigma")
        first = self.first
        return {
            "setting": setting,
            "notes": notes,
            "first": None if first is None else first.code,
            "findings": [finding.to_dict() for finding in self.findings],
            **{name: plain(getattr(self, name)) for name in (*names, *more)},
            "beta_formula": self.beta_formula,
            "active_units": int(self.active_units),
            "units": self.active_units.total,
            "budget": None if self.budget is None else plain(self.budget.to_dict()),
            "holes": None if self.holes is None else plain(self.holes.share),
            "gap_by_group": {name: {"n": n, "gap": plain(gap)} for name, (n, gap) in self.gap_by_group.items()},
            "probe": None if self.probe is None else plain(self.probe.to_dict()),
            "chosen": self.ladder.chosen.name,
            "rungs": [
                {
                    "name": rung.name,
                    "gap": plain(rung.gap),
                    "weight": rung.weight,
                    "seconds": rung.seconds,
                    "n_parameters": rung.n_parameters,
                }
                for rung in self.ladder.rungs
            ],
        }

    def to_json(self, path: str | Path | None = None) -> str:
        """JSON as text, written to a file too where a path is given."""
        from latentfit.saving import write_atomic

        text = json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)
        if path is not None:
            write_atomic(path, text + "\n")
        return text
