"""What codes know of labels and of the data's own neighbours."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from latentfit.errors import InputError
from latentfit.evaluation import Codes, against_pca, knn_accuracy, neighbourhood_overlap, neighbours, pca_baseline


def test_nearest_neighbours_are_those_of_scikit_learn(monkeypatch):
    from sklearn.neighbors import KNeighborsClassifier

    rng = np.random.default_rng(0)
    label = rng.integers(0, 4, 600)
    x = rng.normal(size=(600, 3)) + 1.2 * np.eye(4, 3)[label] + 100.0
    names = np.array(["a", "b", "c", "d"])[label]
    expected = KNeighborsClassifier(15).fit(x[:400], names[:400]).score(x[400:], names[400:])
    got = knn_accuracy(x[:400], names[:400], x[400:], names[400:])
    assert got.value == pytest.approx(expected)
    monkeypatch.setattr(neighbours, "BLOCK_DISTANCES", 7 * 400)
    assert knn_accuracy(x[:400], names[:400], x[400:], names[400:]) == got
    with pytest.raises(InputError, match="labels of shape"):
        knn_accuracy(x, label[:5], x, label)
    with pytest.raises(InputError, match="k must be"):
        knn_accuracy(x, label, x, label, k=0)


@pytest.mark.parametrize("itself", [True, False])
def test_neighbours_and_distances_are_brute_force_s_far_from_the_origin(itself, monkeypatch):
    x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0)) + 1e3
    monkeypatch.setattr(neighbours, "BLOCK_DISTANCES", 33 * 200)
    direct = (x[:, None].double() - x.double()).norm(dim=-1)
    if not itself:
        direct.fill_diagonal_(torch.inf)
    expected = direct.topk(3, largest=False)
    distance, index = neighbours.nearest(x, x, 3, itself=itself)
    assert torch.equal(index, expected.indices)
    torch.testing.assert_close(distance.double(), expected.values, rtol=1e-3, atol=1e-6)


def digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    return load_digits(return_X_y=True)


def test_the_baseline_is_scikit_learn_s_pipeline_on_digits():
    from sklearn.decomposition import PCA
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline

    x, label = digits()
    pipeline = make_pipeline(PCA(8, svd_solver="full"), KNeighborsClassifier(15))
    expected = pipeline.fit(x[:1200], label[:1200]).score(x[1200:], label[1200:])
    got = pca_baseline(x[:1200].reshape(-1, 8, 8), label[:1200], x[1200:].reshape(-1, 8, 8), label[1200:], 8)
    assert got.value == pytest.approx(expected, abs=0.005)
    logged = pca_baseline(np.expm1(x[:1200]), label[:1200], np.expm1(x[1200:]), label[1200:], 8, log1p=True)
    assert logged.value == pytest.approx(got.value, abs=0.005)
    with pytest.raises(InputError, match="counts"):
        pca_baseline(-x, label, x, label, 8, log1p=True)


def test_the_difference_to_the_baseline_is_paired():
    x, label = digits()
    train, test = slice(0, 1200), slice(1200, None)
    found = against_pca(x[train, :20], x[train], label[train], x[test, :20], x[test], label[test], n_components=8)
    assert found.difference.value == pytest.approx(found.codes.value - found.pca.value)
    assert found.pca == pca_baseline(x[train], label[train], x[test], label[test], 8)
    unpaired = np.hypot(found.codes.std_error, found.pca.std_error)
    assert found.difference.std_error < unpaired
    with pytest.raises(InputError, match="labels of shape"):
        against_pca(x[train], x[train], label[train], x[test], x[train], label[test])


def test_the_overlap_is_one_for_the_data_itself_and_chance_for_noise():
    x, _ = digits()
    rng = np.random.default_rng(0)
    rotation = np.linalg.qr(rng.standard_normal((64, 64)))[0]
    same = neighbourhood_overlap(3 * x @ rotation + 1, x, n_components=64, n_max=600)
    assert same.value > 0.995
    noise = neighbourhood_overlap(rng.standard_normal((len(x), 4)), x, n_max=600)
    assert abs(noise.value - 15 / 599) < 4 * noise.std_error
    codes = Codes.of(x[:, 20:40], std=np.ones((len(x), 20)))
    assert noise.value + 0.05 < neighbourhood_overlap(codes, x, n_max=600).value < same.value
    with pytest.raises(InputError, match="same rows"):
        neighbourhood_overlap(x[:5], x)
    with pytest.raises(InputError, match="k must be"):
        neighbourhood_overlap(x, x, k=600, n_max=600)
