"""What N(0, I) costs, from the latents alone: no decoder, no data, whoever's VAE they come from."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from latentfit.diagnosis.catalogue import finding_name, finding_remedy, finding_sentence, groups_sentence, say
from latentfit.diagnosis.findings import Finding, plain
from latentfit.diagnosis.measures import DEPTHS, Depth
from latentfit.diagnosis.verdicts import collapse_finding, prior_finding
from latentfit.errors import InputError, overheard
from latentfit.evaluation.codes import Codes
from latentfit.evaluation.collapse import ActiveUnits, active_units
from latentfit.evaluation.estimate import Estimate
from latentfit.evaluation.gap import PlugIn, kl_per_row, plug_in_mismatch
from latentfit.evaluation.ladder import Ladder, climb, cross_fit, split_rows
from latentfit.priors import create

#: draws that judge a rung, at most, where there are more rows than one draw each needs
MOST_DRAWS = 120_000
#: rows of the exact mixture behind the plug-in number, which is quadratic in them
PLUG_IN_ROWS = 3_000
#: characters before a finding's sentence
LABEL = 13


@dataclass(frozen=True)
class LatentDiagnosis:
    """What the latents say about the prior N(0, I); all in nats per row.

    Attributes:
        prior_gap: "at least" so much is lost to N(0, I): the best rung's T, its interval valid for all rungs.
        kl: mean KL(q(z given x) || N(0, I)).
        active_units: which units carry anything.
        ladder: every rung with its gap.
        plug_in: KL(q_N || N(0, I)), shown only with its saturation, never ranked.
        findings: codes with parameters; sentences are in the catalogue.
        cross_fitted: whether, for want of training latents, each half was judged by the other half's fits.
        n_rows: rows judged.
        lang: of `summary`.
        notes: what was warned of on the way, as it was shown.
    """

    prior_gap: Estimate
    kl: Estimate
    active_units: ActiveUnits
    ladder: Ladder
    plug_in: PlugIn
    findings: list[Finding] = field(default_factory=list)
    cross_fitted: bool = False
    n_rows: int = 0
    lang: str = "en"
    notes: list[str] = field(default_factory=list)

    def summary(self, lang: str | None = None, width: int = 80) -> str:
        """The diagnosis in lines of at most `width` characters."""
        lang = lang or self.lang
        lines = [say("diagnosis.against", lang)]
        lines.append(say(f"diagnosis.rows.{'halves' if self.cross_fitted else 'latents'}", lang, test=self.n_rows))
        if self.ladder.groups is not None:
            lines.append(groups_sentence(len(np.unique(self.ladder.groups)), lang))
        lines = [part for line in lines for part in textwrap.wrap(line, max(20, width))] + [""]
        for f in self.findings:
            said = [finding_sentence(f, lang), finding_remedy(f, lang)]
            parts = [part for text in said if text for part in textwrap.wrap(text, max(20, width - LABEL))]
            lines += [
                f"{name:<{LABEL - 1}} {part}"
                for name, part in zip_longest([finding_name(f, lang)], parts, fillvalue="")
            ]
        longest = max(len(rung.name) for rung in self.ladder.rungs)
        chosen = self.ladder.chosen
        for rung in self.ladder.rungs:
            mark = "*" if rung is chosen else " "
            lines.append(f"  {mark} {rung.name:<{longest}}  {rung.gap!s:>14}  {rung.seconds:6.1f} s")
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.summary()

    def to_dict(self) -> dict[str, Any]:
        """JSON; what is not finite is null."""
        return {
            "prior_gap": plain(self.prior_gap),
            "kl": plain(self.kl),
            "active_units": int(self.active_units),
            "units": self.active_units.total,
            "cross_fitted": self.cross_fitted,
            "n_rows": self.n_rows,
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
            "plug_in": {"value": plain(self.plug_in.value), "saturated": self.plug_in.saturated},
            "findings": [f.to_dict() for f in self.findings],
            "notes": self.notes,
        }


def diagnose_latents(
    mean: Any,
    *,
    std: Any = None,
    var: Any = None,
    logvar: Any = None,
    train: tuple[Any, Any] | None = None,
    depth: Depth = "full",
    groups: ArrayLike | None = None,
    random_state: int = 0,
    max_steps: int | None = None,
    lang: str = "en",
) -> LatentDiagnosis:
    """What N(0, I) costs a VAE, from its q(z given x) alone.

    Priors of growing richness are fitted to some rows' latents and judged on other rows'; what they win over
    N(0, I) there is a lower bound on the mismatch KL(q(z) || N(0, I)).

    Args:
        mean: (N, D), means of q(z given x) of held-out rows; arrays or tensors.
        std, var, logvar: exactly one of them, like mean.
        train: (mean, spread) of the training rows, the spread of the same kind; without it each half of the
            rows is judged by priors fitted on the other half, and the diagnosis says so.
        depth: "quick" tries a Gaussian and a mixture, "full" a flow as well.
        groups: (N,) labels of related rows: kept together in splits, and errors are cluster-robust.
        random_state: seed.
        max_steps: of each fit; the priors' own default otherwise.
        lang: "en" or "vi".

    Returns:
        The gap, the KL, the active units, the ladder and the findings.

    Raises:
        InputError: none or several spreads, a spread that is none (a log-variance passed as std), another
            shape, too few rows.

    >>> rng = np.random.default_rng(0)
    >>> mean, std = rng.normal(size=(400, 2)), np.full((400, 2), 0.1)
    >>> mean[:, 0] = np.sign(mean[:, 0])  # two clusters
    >>> dx = diagnose_latents(mean, std=std, depth="quick")
    >>> dx.prior_gap.value > 1
    True
    """
    if depth not in DEPTHS:
        raise InputError(f"diagnose_latents: depth must be 'full' or 'quick', got {depth!r}.")
    with overheard() as told:
        dx = _diagnosed(
            mean, {"std": std, "var": var, "logvar": logvar}, train, depth, groups, random_state, max_steps, lang
        )
    return replace(dx, notes=told)


def _diagnosed(
    mean: Any,
    spread: dict[str, Any],
    train: tuple[Any, Any] | None,
    depth: Depth,
    groups: ArrayLike | None,
    random_state: int,
    max_steps: int | None,
    lang: str,
) -> LatentDiagnosis:
    codes = Codes.of(mean, **spread, groups=groups, what="diagnose_latents")
    shape = codes.event_shape
    p = create("standard", latent_dim=shape[0] if len(shape) == 1 else tuple(shape)).to(codes.mean)
    # what counts is rows: further draws of each only help where these are few
    n_draws = max(1, min(4, MOST_DRAWS // len(codes)))
    if train is None:
        ladder = cross_fit(
            codes, p, rungs=DEPTHS[depth], n_draws=n_draws, random_state=random_state, max_steps=max_steps
        )
    else:
        fitted = _training_codes(train, spread, codes)
        held_out, kept = split_rows(len(fitted), None, 0.1, random_state)
        ladder = climb(
            fitted[kept],
            fitted[held_out],
            codes,
            p,
            rungs=DEPTHS[depth],
            n_draws=n_draws,
            random_state=random_state,
            max_steps=max_steps,
        )
    kl = Estimate.of(kl_per_row(p, codes, random_state=random_state), groups=codes.groups)
    units = active_units(codes)
    plug_in = plug_in_mismatch(codes[:: max(1, len(codes) // PLUG_IN_ROWS)], p, random_state=random_state)
    return LatentDiagnosis(
        prior_gap=ladder.prior_gap,
        kl=kl,
        active_units=units,
        ladder=ladder,
        plug_in=plug_in,
        findings=_findings(ladder, kl, units, plug_in),
        cross_fitted=ladder.cross_fitted,
        n_rows=len(codes),
        lang=lang,
    )


def _training_codes(train: tuple[Any, Any], spread: dict[str, Any], codes: Codes) -> Codes:
    if not isinstance(train, tuple | list) or len(train) != 2:
        raise InputError("diagnose_latents: train must be (mean, spread) of the training rows.")
    (kind,) = [key for key, value in spread.items() if value is not None]
    fitted = Codes.of(train[0], **{kind: train[1]}, what="diagnose_latents, train")
    if fitted.event_shape != codes.event_shape:
        raise InputError(
            f"diagnose_latents: train has latents of shape {tuple(fitted.event_shape)}, "
            f"mean {tuple(codes.event_shape)}; they must agree."
        )
    return Codes(fitted.mean.to(codes.mean), fitted.std.to(codes.mean))


def _findings(ladder: Ladder, kl: Estimate, units: ActiveUnits, plug_in: PlugIn) -> list[Finding]:
    gap = ladder.prior_gap
    share = gap.value / kl.value if np.isfinite(kl.value) and kl.value > 0 else 0.0
    findings = [
        collapse_finding(int(units), units.total),
        prior_finding(gap, share, chosen=ladder.chosen.name, cross_fitted=ladder.cross_fitted),
    ]
    if plug_in.saturated:
        findings.append(Finding("LF-LATENTS-SATURATED", "know", {"kl": plug_in.mean_kl, "log_n": plug_in.log_n}))
    return findings
