"""How good samples are, in the features of one fixed encoder; and what the codes know about labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from latentfit.data.batch import Batch
from latentfit.divergences import frechet_distance
from latentfit.errors import InputError
from latentfit.evaluation.codes import Codes
from latentfit.evaluation.estimate import Estimate
from latentfit.evaluation.likelihood import decoder_rows
from latentfit.evaluation.rows import blocks, evaluation_rows, frozen
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
    """

    frechet: Estimate
    floor: Estimate
    n: int

    @property
    def excess(self) -> float:
        """What the prior, not the decoder, is to blame for."""
        return self.frechet.value - self.floor.value


def sample_quality(
    vae: VAEModule,
    X_reference: Any,
    *,
    n: int | None = None,
    features: Features | None = None,
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
        random_state: seed.

    Raises:
        InputError: fewer than 4 rows, or 2 samples.
    """
    batch = evaluation_rows(X_reference, vae, "X_reference")
    half = len(batch) // 2
    n = half if n is None else min(n, half)
    if n < 2:
        raise InputError(f"sample_quality: X_reference has {len(batch)} rows, n is {n}; at least 4 and 2 are needed.")
    order = torch.as_tensor(np.random.default_rng(random_state).permutation(len(batch)))
    real, other = (batch[part.to(batch.x.device)] for part in (order[:n], order[half : half + n]))
    features = features or encoder_features(vae)
    generator = torch.Generator(device=vae.device).manual_seed(random_state)
    size = decoder_rows(batch)
    sampled, decoded, reference = [], [], []
    with torch.no_grad(), frozen(vae, random_state=random_state):
        for rows in blocks(n, size):
            like, source = real[rows].to(vae.device), other[rows].to(vae.device)
            x = vae.sample(len(like), context=like.context, generator=generator)
            z, _ = vae.encode(source).rsample_with_log_prob(1, generator)
            sampled.append(features(x))
            decoded.append(features(observe(vae, z[0], source.context, generator)))
            reference.append(features(like.x))
    real_features = torch.cat(reference)
    return SampleQuality(
        frechet=frechet_estimate(torch.cat(sampled), real_features),
        floor=frechet_estimate(torch.cat(decoded), real_features),
        n=n,
    )


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


def frechet_estimate(a: Tensor, b: Tensor) -> Estimate:
    """Frechet distance between samples a and b (n, F) with a delete-a-part jackknife error over both."""
    value = frechet_distance(a, b)
    parts = min(JACKKNIFE_PARTS, len(a) // 2, len(b) // 2)
    if parts < 2:
        return Estimate.from_error(value, float("nan"))
    left_out = [
        frechet_distance(a[torch.arange(len(a)) % parts != i], b[torch.arange(len(b)) % parts != i])
        for i in range(parts)
    ]
    spread = np.var(left_out)  # around their mean: the bias from the smaller n is common to all
    return Estimate.from_error(value, float(np.sqrt((parts - 1) * spread)), df=parts - 1)


def knn_accuracy(
    codes_train: Codes | Tensor | np.ndarray,
    labels_train: ArrayLike,
    codes_test: Codes | Tensor | np.ndarray,
    labels_test: ArrayLike,
    k: int = 15,
) -> Estimate:
    """Accuracy of k-nearest-neighbour classification of held-out codes by their means, Euclidean, in blocks.

    Ties go to the label that sorts first.

    Args:
        codes_train: `Codes`, or means (N, *event_shape).
        labels_train: (N,), of any sortable kind.
        codes_test: (M, *event_shape).
        labels_test: (M,).
        k: neighbours.

    Raises:
        InputError: numbers of labels that do not fit, or k out of range.
    """
    train, test = _means(codes_train), _means(codes_test)
    known, target = np.asarray(labels_train), np.asarray(labels_test)
    if known.shape != (len(train),) or target.shape != (len(test),):
        raise InputError(
            f"knn_accuracy: {len(train)} and {len(test)} codes, but labels of shape {known.shape} and {target.shape}."
        )
    if not 1 <= k <= len(train):
        raise InputError(f"knn_accuracy: k must be between 1 and the {len(train)} training codes, got {k}.")
    classes, label = np.unique(known, return_inverse=True)
    votes_for = torch.as_tensor(label.reshape(-1), device=train.device)
    center = train.mean(0)  # distances by a matrix product lose digits far from the origin
    train, test = train - center, test - center
    norm = train.square().sum(-1)
    hits = []
    for rows in blocks(len(test), max(1, 20_000_000 // max(1, len(train)))):
        # |a - b|^2 less what is the same for every neighbour
        distance = norm - 2 * test[rows] @ train.T  # (B, N)
        nearest = votes_for[distance.topk(k, largest=False).indices]  # (B, k)
        votes = torch.zeros(len(nearest), len(classes), device=train.device)
        votes.scatter_add_(1, nearest, torch.ones_like(nearest, dtype=votes.dtype))
        hits.append(classes[votes.argmax(1).cpu().numpy()] == target[rows])
    return Estimate.of(np.concatenate(hits))


def _means(codes: Codes | Tensor | np.ndarray) -> Tensor:
    mean = codes.mean if isinstance(codes, Codes) else torch.as_tensor(codes)
    return mean.detach().flatten(1).float()
