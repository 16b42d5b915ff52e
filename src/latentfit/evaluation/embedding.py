"""What codes know: of labels, beside as many principal components of the data, and of who is whose neighbour."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from latentfit.errors import InputError
from latentfit.evaluation.codes import Codes
from latentfit.evaluation.estimate import Estimate
from latentfit.evaluation.neighbours import nearest

Embedding = Codes | Tensor | np.ndarray

#: principal components in which the data's own neighbours are looked for, where none are given
COMPONENTS = 50


@dataclass(frozen=True)
class AgainstPCA:
    """k-NN accuracy of codes and of principal components on the same held-out rows.

    Attributes:
        codes, pca: accuracies.
        difference: codes - pca, paired by row.
    """

    codes: Estimate
    pca: Estimate
    difference: Estimate


def knn_accuracy(
    codes_train: Embedding,
    labels_train: ArrayLike,
    codes_test: Embedding,
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
    return Estimate.of(knn_hits(codes_train, labels_train, codes_test, labels_test, k))


def knn_hits(
    codes_train: Embedding, labels_train: ArrayLike, codes_test: Embedding, labels_test: ArrayLike, k: int = 15
) -> np.ndarray:
    """Of each test row, whether `knn_accuracy` counts it as right: (M,), 0 or 1."""
    return _hits(codes_train, labels_train, codes_test, labels_test, k, "knn_accuracy")


def pca_baseline(
    X_train: Any,
    labels_train: ArrayLike,
    X_test: Any,
    labels_test: ArrayLike,
    n_components: int,
    k: int = 15,
    *,
    log1p: bool = False,
    random_state: int = 0,
) -> Estimate:
    """`knn_accuracy` of the first principal components of X: what an embedding without a network knows.

    Args:
        X_train: rows (N, *data_shape) that the components, and the neighbours, come from.
        labels_train: (N,).
        X_test: (M, *data_shape).
        labels_test: (M,).
        n_components: that of the codes, for a fair comparison; capped by the size of X_train.
        k: neighbours.
        log1p: take log(1 + x) first: for counts, whose variance grows with their mean. Columns are not
            scaled otherwise.
        random_state: seed of the randomised solver (Halko et al. 2011, arXiv 0909.4061).

    Raises:
        InputError: as `knn_accuracy`; rows of different sizes; negative entries under log1p.
    """
    train, test = _components(X_train, X_test, n_components, log1p, random_state, "pca_baseline")
    return Estimate.of(_hits(train, labels_train, test, labels_test, k, "pca_baseline"))


def against_pca(
    codes_train: Embedding,
    X_train: Any,
    labels_train: ArrayLike,
    codes_test: Embedding,
    X_test: Any,
    labels_test: ArrayLike,
    *,
    n_components: int | None = None,
    k: int = 15,
    log1p: bool = False,
    groups: ArrayLike | None = None,
    random_state: int = 0,
) -> AgainstPCA:
    """`knn_accuracy` and `pca_baseline` on the same rows with their paired difference.

    Args are theirs; `n_components` is by default the number of latent dimensions, `groups` (M,) labels related
    test rows.

    Raises:
        InputError: as theirs.
    """
    n_components = n_components or _means(codes_train).shape[1]
    train, test = _components(X_train, X_test, n_components, log1p, random_state, "against_pca")
    codes = _hits(codes_train, labels_train, codes_test, labels_test, k, "against_pca")
    pca = _hits(train, labels_train, test, labels_test, k, "against_pca")
    return AgainstPCA(
        Estimate.of(codes, groups=groups), Estimate.of(pca, groups=groups), Estimate.of(codes - pca, groups=groups)
    )


def neighbourhood_overlap(
    codes: Embedding,
    X: Any,
    k: int = 15,
    n_max: int = 2000,
    n_components: int = COMPONENTS,
    *,
    log1p: bool = False,
    random_state: int = 0,
) -> Estimate:
    """Share of the k nearest neighbours by codes that are among the k nearest in the data's principal components.

    For data without labels. 1: the codes keep who is close to whom; chance gives k / (n - 1). It judges codes by
    Euclidean neighbours of the data, which are not always those that matter: a low share is no fault by itself.

    Args:
        codes: `Codes` (their means), or means (N, *event_shape).
        X: the same rows (N, *data_shape).
        k: neighbours.
        n_max: rows drawn from these, among which neighbours are looked for; the share depends on it.
        n_components: of the data, capped by its size.
        log1p: take log(1 + x) first, for counts.
        random_state: seed.

    Returns:
        The mean share, its error over rows.

    Raises:
        InputError: different numbers of rows, or k out of range.
    """
    mean = _means(codes)
    rows = _flat(X, "neighbourhood_overlap")
    if len(rows) != len(mean):
        raise InputError(f"neighbourhood_overlap: {len(mean)} codes, but {len(rows)} rows in X; give the same rows.")
    n = min(len(mean), n_max)
    if not 1 <= k < n:
        raise InputError(f"neighbourhood_overlap: k must be between 1 and {n - 1} for {n} rows, got {k}.")
    chosen = np.sort(np.random.default_rng(random_state).permutation(len(mean))[:n])
    data, _ = _components(rows[chosen], rows[chosen[:1]], n_components, log1p, random_state, "neighbourhood_overlap")
    of_codes = mean[torch.as_tensor(chosen, device=mean.device)]
    near_codes = nearest(of_codes, of_codes, k, itself=False)[1].cpu()
    near_data = nearest(data, data, k, itself=False)[1]
    shared = (near_codes[:, :, None] == near_data[:, None, :]).any(-1).float().mean(-1)  # (n,)
    return Estimate.of(shared.numpy())


def _hits(
    train: Embedding, labels_train: ArrayLike, test: Embedding, labels_test: ArrayLike, k: int, what: str
) -> np.ndarray:
    """Whether each test row is classified right: (M,), 0 or 1."""
    train = _means(train)
    test = _means(test).to(train.dtype)
    known, target = np.asarray(labels_train), np.asarray(labels_test)
    if known.shape != (len(train),) or target.shape != (len(test),):
        raise InputError(
            f"{what}: {len(train)} and {len(test)} codes, but labels of shape {known.shape} and {target.shape}."
        )
    if not 1 <= k <= len(train):
        raise InputError(f"{what}: k must be between 1 and the {len(train)} training codes, got {k}.")
    classes, label = np.unique(known, return_inverse=True)
    votes_for = torch.as_tensor(label.reshape(-1), device=train.device)
    voters = votes_for[nearest(test, train, k)[1]]  # (M, k)
    votes = torch.zeros(len(test), len(classes), device=train.device)
    votes.scatter_add_(1, voters, torch.ones_like(voters, dtype=votes.dtype))
    return (classes[votes.argmax(1).cpu().numpy()] == target).astype(np.float64)


def _components(
    train: Any, test: Any, n_components: int, log1p: bool, random_state: int, what: str
) -> tuple[Tensor, Tensor]:
    """Principal components of the training rows, and both parts in them: (N, C), (M, C)."""
    from sklearn.decomposition import PCA

    a, b = _flat(train, what), _flat(test, what)
    if a.shape[1] != b.shape[1]:
        raise InputError(f"{what}: rows of {a.shape[1]} and of {b.shape[1]} entries; give both parts of one data set.")
    if n_components < 1:
        raise InputError(f"{what}: n_components must be at least 1, got {n_components}.")
    if log1p:
        if min(a.min(), b.min()) < 0:
            raise InputError(f"{what}: log1p is for counts, but the smallest entry is {min(a.min(), b.min()):.3g}.")
        a, b = np.log1p(a), np.log1p(b)
    pca = PCA(min(n_components, *a.shape), svd_solver="randomized", random_state=random_state).fit(a)
    return torch.from_numpy(pca.transform(a)), torch.from_numpy(pca.transform(b))


def _flat(x: Any, what: str) -> np.ndarray:
    array = x.detach().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x)
    array = array.reshape(len(array), -1)
    if array.dtype != np.float64:
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise InputError(f"{what}: X has entries that are not finite; drop or fill them first.")
    return array


def _means(codes: Embedding) -> Tensor:
    mean = codes.mean if isinstance(codes, Codes) else torch.as_tensor(codes)
    mean = mean.detach().flatten(1)
    return mean if mean.is_floating_point() else mean.float()
