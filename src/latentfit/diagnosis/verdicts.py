"""From numbers to findings: the thresholds, in one place, for models, latents and comparisons alike."""

from __future__ import annotations

from typing import Any

from latentfit.adapters.understood import Understood
from latentfit.diagnosis.findings import Finding, Status
from latentfit.diagnosis.probe import Probe
from latentfit.evaluation.estimate import Estimate
from latentfit.evaluation.holes import QUANTILE
from latentfit.evaluation.ladder import WORTHWHILE

#: an effective beta within these is calibrated enough; beyond 3 the decoder comes first, whatever the prior
CALIBRATED_BETA = (1 / 1.5, 1.5)
GRAVE_BETA = 3.0
#: a decoder is to be blamed for explaining nothing where the codes carry more than this many nats, and is cleared where
#: it may explain more than this share of the variance: a collapsed posterior decodes to the mean row, and may
CARRIED = 0.1
EXPLAINED = 0.01
#: a sigma this close to the residuals' own is called that
SAME_SIGMA = 0.02
#: what cross-entropy's mean must explain beyond the likelihood's own for the decoder to be one trained by it
EXCESS = 0.05
#: shares of draws from the prior in holes: 1 % where prior and codes agree
MANY_HOLES = 0.05


def training_finding(
    kl_weight: float | None,
    warmup: Understood | None,
    converged: bool | None,
    *,
    steps: int | None = None,
    late_gain: float | None = None,
) -> Finding:
    """Whether the training was finished, by what its owner or its package says of it.

    Args:
        kl_weight: what the KL weight ended at; None: unknown.
        warmup: what the history says of an unfinished warm-up.
        converged: None: unknown.
        steps: of the whole training; late_gain: nats still won in the last fifth of them.
    """
    if kl_weight is not None and kl_weight < 0.99:
        parameters: dict[str, Any] = {"kl_weight": kl_weight}
        if warmup:
            return Finding("LF-TRAIN-01", "improve", {**parameters, "warmup": warmup, "variant": "warmup"})
        return Finding("LF-TRAIN-01", "improve", {**parameters, "variant": "weight"})
    if converged is False:
        if steps and late_gain is not None:
            return Finding("LF-TRAIN-01", "improve", {"slope": round(late_gain, 1), "steps": steps // 5})
        return Finding("LF-TRAIN-01", "improve", {"variant": "rising"})
    if converged is None and steps:
        return Finding("LF-TRAIN-01", "know", {"steps": steps, "variant": "short"})
    if converged is None:
        return Finding("LF-TRAIN-01", "know", {"variant": "unknown"})
    return Finding("LF-TRAIN-01", "ok", {"variant": "finished"})


def decoder_finding(
    likelihood: str,
    sigma: tuple[float, float] | None,
    gain: Estimate | None,
    beta: float | None,
    *,
    explained: Estimate | None = None,
    by_sigmoid: Estimate | None = None,
    kl: float = 0.0,
) -> Finding:
    """Whether it gives the data back at all, and whether sigma is the residuals' own.

    Args:
        likelihood: its name.
        sigma: (used, optimal); None where there is no sigma.
        gain: nats per row won by the optimal one.
        beta: the effective KL weight at the optimal sigma, where the loss is known.
        explained: share of the variance that decoding the codes' means explains; None: no unit is active.
        by_sigmoid: the same with the sigmoid of the logits as the mean, which is what cross-entropy trains.
        kl: of the codes, nats per row.
    """
    facts: dict[str, Any] = {"likelihood": likelihood}
    if explained is not None:
        facts |= {"explained": explained, "kl": kl}
    if sigma is not None:
        facts |= {"used": sigma[0], "optimal": sigma[1]}
    if explained is not None and by_sigmoid is not None and by_sigmoid.interval[0] > explained.interval[1] + EXCESS:
        shares = {"share": round(explained.value, 2) + 0.0, "sigmoid": by_sigmoid.value}
        return Finding("LF-DECODER-01", "fix", {**facts, **shares, "variant": "cross_entropy"})
    if explained is not None and kl > CARRIED and explained.value <= 0 and explained.interval[1] <= EXPLAINED:
        share = round(explained.value, 2) + 0.0  # + 0.0: never "-0 %"
        return Finding("LF-DECODER-01", "fix", {**facts, "share": share, "variant": "nothing"})
    if gain is not None and gain.interval[0] > 0 and gain.value > WORTHWHILE:
        status: Status = "fix" if gain.value > 10 else "improve"
        return Finding("LF-DECODER-01", status, {**facts, "gain": gain, "variant": "sigma"}, gain)
    if beta is not None and not CALIBRATED_BETA[0] <= beta <= CALIBRATED_BETA[1]:
        grave: Status = "fix" if not 1 / GRAVE_BETA <= beta <= GRAVE_BETA else "know"
        return Finding("LF-DECODER-01", grave, {**facts, "beta": beta, "variant": "beta"})
    if sigma is None:
        return Finding("LF-DECODER-01", "ok", facts)
    same = abs(sigma[0] / sigma[1] - 1) < SAME_SIGMA
    return Finding("LF-DECODER-01", "ok", {**facts, "variant": "calibrated" if same else "near"})


def collapse_finding(active: float, total: int) -> Finding:
    """How many units carry something."""
    return Finding("LF-COLLAPSE-01", "ok" if 2 * active > total else "know", {"active": active, "total": total})


def inference_finding(
    gap: Estimate,
    kl: float,
    k: int,
    estimator: str = "importance sampling",
    failed: float = 0.0,
    trained_otherwise: str = "",
) -> Finding:
    """What the encoder loses; a nat, or a tenth of the KL, is what a diagonal Gaussian usually does.

    Args:
        gap: log p(x) - ELBO.
        kl: nats per row.
        k: importance samples per row.
        estimator: of log p(x).
        failed: share of rows where it failed, if that is too many: log p(x), hence the gap, is at least what is said.
        trained_otherwise: "sigma" or "grey" where the encoder was trained for another sigma, or on grey pixels that are
            binarised here: part of the gap is that, so it is no reason for a richer posterior.
    """
    parameters: dict[str, Any] = {"gap": gap, "k": k}
    if estimator == "ais":
        parameters["variant"] = "ais"
    if failed:
        parameters |= {"failed": failed, "variant": "failed"}
    if gap.value < max(1.0, 0.1 * kl):
        return Finding("LF-INFERENCE-01", "know" if failed else "ok", parameters)
    if trained_otherwise:
        return Finding("LF-INFERENCE-01", "know", {"variant": trained_otherwise, **parameters}, gap)
    status: Status = "improve" if gap.value > max(2.0, 0.25 * kl) else "know"
    return Finding("LF-INFERENCE-01", status, parameters, gap)


def prior_finding(gap: Estimate, share: float, **facts: Any) -> Finding:
    """The prior gap: below a tenth of a nat it is not worth a larger model, however significant; above, if certain."""
    parameters = {"gap": gap, "share": share, **facts}
    if gap.value <= WORTHWHILE:
        return Finding("LF-PRIOR-02", "ok", parameters)
    if not gap.interval[0] > 0:  # nor where it is not known, as with one group
        return Finding("LF-PRIOR-01", "know", parameters)
    grave: Status = "improve" if gap.value > 5 * WORTHWHILE or share > 0.03 else "small"
    return Finding("LF-PRIOR-01", grave, parameters, gap)


def holes_finding(share: Estimate, rows: int) -> Finding:
    """How many draws from the prior fall where no row is encoded, as far as so many rows can say."""
    facts = {"share": share.value, "rows": rows}
    if share.value < MANY_HOLES:
        return Finding("LF-HOLES-01", "ok", facts)
    return Finding("LF-HOLES-01", "improve" if share.interval[0] > QUANTILE else "know", facts)


def functional_hole_finding(excess: Estimate, floor: float) -> Finding:
    """How much worse samples from the prior are than samples from the codes, in the same features."""
    bad = excess.interval[0] > 0 and excess.value > 0.1 * abs(floor)
    return Finding("LF-HOLES-02", "improve" if bad else "ok", {"excess": excess, "floor": floor})


def probe_finding(probe: Probe) -> Finding:
    """Whether the prior presses on the encoder."""
    facts = {"steps": probe.steps[-1], "gain": probe.gain[-1], "pressure": probe.pressure}
    if probe.presses:
        variant = {"variant": "rising"} if probe.rising else {}
        return Finding("LF-PROBE-01", "improve", {**facts, **variant}, probe.gain[-1])
    return Finding("LF-PROBE-01", "ok", facts)


def embedding_finding(knn: Estimate, baseline: Estimate, n_components: int) -> Finding:
    """Whether the codes keep what as many principal components keep of the labels."""
    worse = knn.interval[1] < baseline.value
    facts = {"knn": knn.value, "baseline": baseline.value, "n_components": n_components}
    return Finding("LF-EMBED-01", "improve" if worse else "ok", facts)


def groups_finding(gaps: dict[str, tuple[int, Estimate]], overall: Estimate) -> Finding:
    """The gap from group to group."""
    values = [gap.value for _, gap in gaps.values()]
    low, high = min(values), max(values)
    worst = max(gaps, key=lambda name: gaps[name][1].value)
    least = min(gaps, key=lambda name: gaps[name][1].value)
    uneven = gaps[worst][1].interval[0] > overall.interval[1] and high > 2 * max(overall.value, WORTHWHILE)
    facts = {"low": low, "high": high, "worst": worst, "least": least, "error": gaps[worst][1].std_error}
    return Finding("LF-GROUPS-01", "know" if uneven else "ok", facts)
