"""How good samples are, in the features of one fixed encoder, and how much of it is the prior's fault."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from latentfit.data.batch import Batch
from latentfit.divergences import frechet_distance
from latentfit.errors import InputError
from latentfit.evaluation.estimate import Estimate
from latentfit.evaluation.ladder import split_rows
from latentfit.evaluation.rows import blocks, decoder_rows, evaluation_rows, frozen
from latentfit.model.contracts import Prior
from latentfit.model.vae import VAEModule

Features = Callable[[Tensor], Tensor]

#: parts of the delete-a-part jackknife behind the error of a Frechet distance
JACKKNIFE_PARTS = 10


@dataclass(frozen=True)
class SampleQuality:
    """Frechet distances to real rows in a fixed encoder's features, in their squared units: lower is better.

    Attributes:
        frechet: of samples x ~ p(x given z), z ~ p.
        floor: of x ~ p(x given z), z ~ q(z given x') of *other* real rows: what this decoder reaches with any
            prior.
        n: rows on each side of each distance (it is biased upward at finite n; both at the same n).
        parts: (P,) the jackknife's pseudo-values around `frechet`, one for each part of the rows, which pair models
            scored on the same rows. Empty below 4 rows.
    """

    frechet: Estimate
    floor: Estimate
    n: int
    parts: np.ndarray = field(default_factory=lambda: np.empty(0))

    @property
    def excess(self) -> float:
        """What the prior, not the decoder, is to blame for."""
        return self.frechet.value - self.floor.value


@dataclass(frozen=True)
class FunctionalHole:
    """What the prior, not the decoder, costs the samples, in the features' squared units.

    Attributes:
        excess: frechet - floor, with the error of the paired difference; about 0 where the prior is q(z).
        frechet: distance of samples x ~ p(x given z), z ~ p, to real rows.
        floor: of x ~ p(x given z), z ~ q(z given x') of other real rows.
        n: rows on each side of each distance.
    """

    excess: Estimate
    frechet: Estimate
    floor: Estimate
    n: int


def sample_quality(
    vae: VAEModule,
    X_reference: Any,
    *,
    n: int | None = None,
    features: Features | None = None,
    groups: ArrayLike | None = None,
    random_state: int = 0,
) -> SampleQuality:
    """Frechet distance of the model's samples to held-out rows, beside its floor.

    The reference rows are split in two: one half is compared with, the other half is encoded, drawn and
    decoded for the floor. Samples are draws of x, not decoder means.

    Args:
        vae: the model.
        X_reference: held-out rows (N, *data_shape).
        n: samples, and rows of each half; N // 2 at most, and by default.
        features: x (B, *data_shape) -> (B, F): ONE fixed map for all models compared (`encoder_features` of
            the null model). By default this model's own encoder means, which other models' numbers do not
            compare with.
        groups: (N,) labels of related rows: a group stays in one half, and errors heed them.
        random_state: seed.

    Raises:
        InputError: fewer than 4 rows, or 2 samples.
    """
    drawn = _drawn(vae, X_reference, None, n, features, groups, random_state, "sample_quality")
    frechet, parts = _jackknife(frechet_distance, drawn.sampled, drawn.reference)
    return SampleQuality(
        frechet=frechet,
        floor=_jackknife(frechet_distance, drawn.decoded, drawn.reference)[0],
        n=len(drawn.reference.rows),
        parts=parts,
    )


def functional_hole(
    vae: VAEModule,
    X_reference: Any,
    *,
    prior: Prior | None = None,
    features: Features | None = None,
    n: int | None = None,
    groups: ArrayLike | None = None,
    random_state: int = 0,
) -> FunctionalHole:
    r"""FD(dec(z ~ p), A) - FD(dec(z ~ q(z given x in B)), A): what the prior alone costs the samples.

    A and B are disjoint halves of the reference rows, since rows compared with their own reconstructions would make
    the floor too low. Both distances are biased upward by about the same amount, as they have the same n and the
    same A; the difference keeps little of it. Of few groups B's own luck is in the floor alone, and the difference errs
    on the prior's side.

    Args:
        vae: the model.
        X_reference: held-out rows (N, *data_shape).
        prior: sampled from in place of the model's own, over the same latents.
        features: as in `sample_quality`.
        n: samples, and rows of each half; N // 2 at most, and by default.
        groups: as in `sample_quality`.
        random_state: seed; the same rows and noise whatever the prior.

    Raises:
        InputError: fewer than 4 rows, or 2 samples.
    """
    drawn = _drawn(vae, X_reference, prior, n, features, groups, random_state, "functional_hole")
    return FunctionalHole(
        excess=_jackknife(
            lambda p, q, a: frechet_distance(p, a) - frechet_distance(q, a),
            drawn.sampled,
            drawn.decoded,
            drawn.reference,
        )[0],
        frechet=_jackknife(frechet_distance, drawn.sampled, drawn.reference)[0],
        floor=_jackknife(frechet_distance, drawn.decoded, drawn.reference)[0],
        n=len(drawn.reference.rows),
    )


@dataclass(frozen=True)
class _Sample:
    """Features (n, F), and labels (n,) of the units that are left out together."""

    rows: Tensor
    unit: np.ndarray

    @classmethod
    def of(cls, rows: Tensor, groups: np.ndarray | None = None) -> _Sample:
        """Each row a unit, or each group."""
        return cls(rows, np.arange(len(rows)) if groups is None else np.unique(groups, return_inverse=True)[1])

    @property
    def n_units(self) -> int:
        return int(self.unit.max()) + 1


@dataclass(frozen=True)
class _Drawn:
    """Samples from the prior, decoded codes of one half, and the other half's rows."""

    sampled: _Sample
    decoded: _Sample
    reference: _Sample


def _drawn(
    vae: VAEModule,
    X_reference: Any,
    prior: Prior | None,
    n: int | None,
    features: Features | None,
    groups: ArrayLike | None,
    random_state: int,
    what: str,
) -> _Drawn:
    batch = evaluation_rows(X_reference, vae, "X_reference")
    label = None if groups is None else np.asarray(groups)
    if label is not None and label.shape != (len(batch),):
        raise InputError(f"{what}: groups has shape {label.shape}, expected ({len(batch)},), one for each row.")
    numbers = halves(len(batch), label, random_state)
    half = min(map(len, numbers))
    n = half if n is None else min(n, half)
    if n < 2:
        raise InputError(f"{what}: X_reference has {len(batch)} rows, n is {n}; at least 4 and 2 are needed.")
    prior = vae.prior if prior is None else prior
    if prior.event_shape != vae.event_shape:
        got, wanted = tuple(prior.event_shape), tuple(vae.event_shape)
        raise InputError(f"{what}: the prior is over latents of shape {got}, the model's are {wanted}.")
    numbers = numbers[0][:n], numbers[1][:n]
    real, other = (batch[torch.as_tensor(part, device=batch.x.device)] for part in numbers)
    features = features or encoder_features(vae)
    generator = torch.Generator(device=vae.device).manual_seed(random_state)
    size = decoder_rows(batch, vae.device)
    sampled, decoded, reference = [], [], []
    with torch.no_grad(), frozen(vae, prior, random_state=random_state):
        for rows in blocks(n, size):
            like, source = real[rows].to(vae.device), other[rows].to(vae.device)
            q = vae.encode(source)
            # under the contexts of the decoded codes, not the reference's: a draw of contexts is in both distances
            z_p = prior.sample(len(source), source.context, generator).to(q.moments()[0])
            sampled.append(features(observe(vae, z_p, source.context, generator)))
            z_q, _ = q.rsample_with_log_prob(1, generator)
            decoded.append(features(observe(vae, z_q[0], source.context, generator)))
            reference.append(features(like.x))
    of_real, of_other = (None if label is None else label[part] for part in numbers)
    return _Drawn(
        _Sample.of(torch.cat(sampled)),
        _Sample.of(torch.cat(decoded), of_other),
        _Sample.of(torch.cat(reference), of_real),
    )


def halves(n: int, groups: np.ndarray | None, random_state: int) -> tuple[np.ndarray, np.ndarray]:
    """Two disjoint halves of n rows in random order, whole groups at a time: row numbers."""
    order = np.random.default_rng(random_state).permutation(n)
    if groups is None:
        return order[: n // 2], order[n // 2 : 2 * (n // 2)]
    first = np.isin(order, split_rows(n, groups, 0.5, random_state)[0])
    return order[first], order[~first]


def encoder_features(vae: VAEModule) -> Features:
    """The encoder's means as features: x (B, *data_shape) -> (B, D). A context is not used."""

    def features(x: Tensor) -> Tensor:
        with torch.no_grad(), frozen(vae):
            batch = Batch(x.to(vae.device))
            parts = [vae.encode(batch[rows]).moments()[0].flatten(1) for rows in blocks(len(batch), 2_000)]
        return torch.cat(parts)

    return features


def observe(vae: VAEModule, z: Tensor, context: Tensor | None, generator: torch.Generator) -> Tensor:
    """x ~ p(x given z) in the units of the data: z (N, *event_shape) -> (N, *data_shape)."""
    x = vae.likelihood.sample(vae.decode(z, context), context, generator)
    return x if vae.preprocess is None else vae.preprocess.inverse(x)


def _jackknife(statistic: Callable[..., float], *samples: _Sample) -> tuple[Estimate, np.ndarray]:
    """A statistic of samples with a delete-a-part jackknife error, part i of the units left out of all at once.

    And its pseudo-values (P,), around the value: the bias from the smaller n is common to all.
    """
    value = statistic(*(sample.rows for sample in samples))
    parts = min(JACKKNIFE_PARTS, *(min(len(sample.rows) // 2, sample.n_units) for sample in samples))
    if parts < 2:
        return Estimate.from_error(value, float("nan")), np.empty(0)
    left_out = np.array(
        [
            statistic(*(sample.rows[torch.as_tensor(sample.unit % parts != i)] for sample in samples))
            for i in range(parts)
        ]
    )
    pseudo = value + (parts - 1) * (left_out.mean() - left_out)
    return Estimate.from_error(value, float(pseudo.std(ddof=1) / np.sqrt(parts)), df=parts - 1), pseudo
