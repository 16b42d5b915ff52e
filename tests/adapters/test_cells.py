"""What scvi's adapter is made of, without scvi-tools: layout of the context, codes in files, densities, the curve."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from latentfit.adapters.cells import CellContext, latents_of, to_anndata
from latentfit.adapters.scvi import CellDispersion, matches, training_facts
from latentfit.errors import InputError
from latentfit.likelihoods import NegativeBinomial, ZeroInflatedNegativeBinomial


def test_codes_that_a_file_holds() -> None:
    mean, var = np.zeros((3, 2), np.float32), np.full((3, 2), 0.25, np.float32)
    new = SimpleNamespace(obsm={"X_pca": mean, "scvi_latent_qzm": mean, "scvi_latent_qzv": var})
    np.testing.assert_array_equal(latents_of(new)[1], var)
    old = SimpleNamespace(obsm={"_scvi_latent_qzm": mean, "_scvi_latent_qzv": var})
    np.testing.assert_array_equal(latents_of(old)[1], var)
    np.testing.assert_array_equal(latents_of(SimpleNamespace(obsm={"m": mean, "v": var}), "m", "v")[0], mean)
    with pytest.raises(InputError, match="found X_pca, X_scVI"):
        latents_of(SimpleNamespace(obsm={"X_scVI": mean, "X_pca": mean}))
    with pytest.raises(InputError, match="is no variance"):
        latents_of(SimpleNamespace(obsm={"m": mean, "v": -var}), "m", "v")
    with pytest.raises(InputError, match="both mean_key and var_key"):
        latents_of(new, mean_key="scvi_latent_qzm")


@pytest.mark.parametrize(
    ("curve", "converged"), [([9, 5, 3, 2, 1.5, 1.2, 1.1, 1.05, 1.04, 1.0], True), (range(10, 0, -1), False)]
)
def test_converged_by_the_validation_curve(curve: Any, converged: bool) -> None:
    import pandas as pd

    history = {"elbo_validation": pd.DataFrame({"elbo_validation": np.asarray(curve, float)})}
    assert training_facts(SimpleNamespace(history=history)).converged is converged


def test_a_context_of_another_width_is_refused() -> None:
    with pytest.raises(InputError, match=r"Batch.context \(N, 4\).*got \(2, 1\)"):
        CellContext(n_batch=3).unpack(torch.ones(2, 1))


def test_other_objects_are_not_scvis() -> None:
    assert not matches(torch.nn.Linear(1, 1))
    assert not matches(None)


def test_results_go_to_the_slots(tmp_path: Any) -> None:
    anndata = pytest.importorskip("anndata", reason="needs the extra anndata")
    n = 7
    adata = anndata.AnnData(np.ones((n, 2), np.float32))
    to_anndata(adata, np.zeros((n, 4)), np.ones(n), {"prior": "mixture", "gain": 0.4})
    assert adata.obsm["X_latentfit"].dtype == np.float32
    adata.write_h5ad(tmp_path / "cells.h5ad")
    read = anndata.read_h5ad(tmp_path / "cells.h5ad")
    assert read.uns["latentfit"]["prior"] == "mixture"
    assert read.obs["latentfit_log_prob"].eq(1).all()
    with pytest.raises(InputError, match=f"codes is of 3 cells, adata of {n}"):
        to_anndata(adata, np.zeros((3, 4)))


def test_context_layout_round_trips() -> None:
    layout = CellContext(n_batch=3, n_categories=(2, 4), n_reals=2)
    library, batch = torch.tensor([[5.0], [7.0]]), torch.tensor([[2.0], [0.0]])
    categories, reals = torch.tensor([[1.0, 3.0], [0.0, 2.0]]), torch.tensor([[0.5, -1.0], [2.0, 3.0]])
    context = layout.pack(library, batch, categories, reals)
    assert context.shape == (2, 1 + 3 + 2 + 4 + 2)
    for got, put in zip(layout.unpack(context), (library, batch, categories, reals), strict=True):
        torch.testing.assert_close(got.float(), put)


@pytest.mark.parametrize("zero_inflated", [False, True])
def test_dispersion_per_cell_is_the_same_density(zero_inflated: bool) -> None:
    shared = (ZeroInflatedNegativeBinomial if zero_inflated else NegativeBinomial)(n_columns=5)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        shared.log_dispersion.copy_(torch.randn(5, generator=generator))
    log_mean, dropout = torch.randn(2, 4_000, 5, generator=generator).unbind(0)
    parts = [log_mean, shared.log_dispersion.expand_as(log_mean), *([dropout] if zero_inflated else [])]
    per_cell, params = CellDispersion(zero_inflated), torch.stack(parts, -1)
    given = torch.stack([log_mean, dropout], -1) if zero_inflated else log_mean
    x = per_cell.sample(params, generator=generator)
    per_cell.check(x)
    torch.testing.assert_close(per_cell.log_prob(x, params), shared.log_prob(x, given))
    torch.testing.assert_close(per_cell.mean(params), shared.mean(given))
    assert abs(((x - per_cell.mean(params)) / x.std()).mean().item()) < 5 / (4_000 * 5) ** 0.5
