"""The error budget: where the nats of one model go, part by part, each measured after the one before was mended."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from latentfit.evaluation.estimate import Estimate

PARTS = ("decoder", "inference", "prior")


@dataclass(frozen=True)
class Budget:
    r"""What separates a model's ELBO from log p(x) of the same encoder and decoder, sigma and prior mended.

        decoder    log p(x) won by the calibrated sigma, at least: E[log p_sigma*(x|z) - log p_sigma(x|z)] over the
                   true posterior (None where there is no sigma, or it is the residuals' own)
        inference  log p(x) - ELBO, both with the calibrated sigma
        prior      T(r), the held-out ELBO won by the kept prior r: "at least"
        rest       [log p_r(x) - ELBO] - (decoder + inference + prior)

    The first three are measured on their own; the rest is what they do not add up to. It is negative where parts
    overlap: a prior that fits also changes what the encoder loses. Nothing here knows what another architecture
    would win.

    Attributes:
        decoder, inference, prior: nats per row; None where it could not be measured.
        rest: not attributed, nats per row; None where log p(x) under the kept prior was not measured.
    """

    decoder: Estimate | None
    inference: Estimate | None
    prior: Estimate
    rest: Estimate | None = None

    @property
    def parts(self) -> dict[str, Estimate]:
        """The measured parts in the order in which they are mended."""
        found = {name: getattr(self, name) for name in PARTS}
        return {name: value for name, value in found.items() if value is not None}

    @property
    def largest(self) -> str | None:
        """The longest part whose interval excludes 0; None where nothing is lost."""
        real = {name: part.value for name, part in self.parts.items() if part.interval[0] > 0}
        return max(real, key=lambda name: real[name]) if real else None

    def to_dict(self) -> dict[str, object]:
        """JSON."""
        rest = None if self.rest is None else self.rest.to_dict()
        return {**{name: part.to_dict() for name, part in self.parts.items()}, "rest": rest}


def not_attributed(
    log_px_mended: np.ndarray,
    elbo: np.ndarray,
    parts: list[np.ndarray],
    groups: np.ndarray | None,
    weights: np.ndarray | None = None,
) -> Estimate:
    """[log p_r(x) - ELBO] minus the parts, row by row: arrays (N,), nats."""
    return Estimate.of(log_px_mended - elbo - np.sum(parts, axis=0), weights=weights, groups=groups)
