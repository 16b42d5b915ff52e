"""SCVI and its AnnData against scvi-tools itself. Run where that is installed; tested with 1.4.2 and 1.5.1."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import numpy as np
import pytest
import torch

from latentfit.adapters import adapt
from latentfit.adapters.cells import cells, latents_of
from latentfit.adapters.scvi import matches, training_facts
from latentfit.errors import CapabilityError, InputError
from latentfit.evaluation import elbo_terms

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the package's own, of the libraries below it
    scvi = pytest.importorskip("scvi", reason="needs scvi-tools in an environment of its own")

pytestmark = pytest.mark.filterwarnings("default")  # what the package itself does with its libraries is its own affair

#: every way of setting up a model that changes what encoder, decoder or likelihood read
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "zinb": ({}, {}),
    "nb, dispersion per batch, encoder sees the batch": (
        {"gene_likelihood": "nb", "dispersion": "gene-batch", "encode_covariates": True},
        {},
    ),
    "zinb, dispersion per cell, ln": ({"dispersion": "gene-cell", "latent_distribution": "ln"}, {}),
    "poisson, embedded batch": ({"gene_likelihood": "poisson", "batch_representation": "embedding"}, {}),
    "covariates": (
        {"encode_covariates": True, "n_layers": 2},
        {"continuous_covariate_keys": ["depth"], "categorical_covariate_keys": ["donor", "sex"]},
    ),
    "size factor": ({}, {"size_factor_key": "size"}),
    "one batch": ({"gene_likelihood": "nb"}, {"batch_key": None}),
}


def counts(seed: int = 0) -> Any:
    scvi.settings.seed = seed
    adata = scvi.data.synthetic_iid(batch_size=120)
    rng = np.random.default_rng(seed)
    adata.obs["depth"] = rng.normal(size=adata.n_obs).astype(np.float32)
    adata.obs["donor"] = rng.choice(list("abc"), adata.n_obs)
    adata.obs["sex"] = rng.choice(list("fm"), adata.n_obs)
    adata.obs["size"] = adata.X.sum(1) / 100
    adata.obs["cell_state"] = rng.choice(["x", "y"], adata.n_obs)
    return adata


def trained(
    adata: Any, setup: dict[str, Any] | None = None, *, epochs: int = 2, sizes: tuple = (0.8, 0.1), **model: Any
):
    plan = model.pop("plan", {"n_epochs_kl_warmup": 16})
    scvi.model.SCVI.setup_anndata(adata, **{"batch_key": "batch", "labels_key": "labels", **(setup or {})})
    made = scvi.model.SCVI(adata, n_latent=4, n_hidden=16, **model)
    train_size, validation_size = sizes
    made.train(
        max_epochs=epochs,
        train_size=train_size,
        validation_size=validation_size,
        check_val_every_n_epoch=1 if validation_size else None,
        plan_kwargs=plan,
        batch_size=32,
        enable_progress_bar=False,
        accelerator="cpu",
    )
    return made


@pytest.fixture(scope="module")
def model() -> Any:
    return trained(counts(), epochs=4)


def held_out(model: Any) -> np.ndarray:
    return np.sort(np.concatenate([model.validation_indices, model.test_indices]))


@pytest.mark.parametrize("variant", VARIANTS)
def test_encoder_and_likelihood_are_scvis_own(variant: str) -> None:
    arguments, setup = VARIANTS[variant]
    model = trained(counts(), setup, **arguments)
    adapted, rows = adapt(model), held_out(model)
    before, state = adapted.weights_sha256(), torch.get_rng_state()
    x = adapted.own_rows.held_out
    with torch.no_grad():
        q = adapted.encode(x)
        assert torch.equal(state, torch.get_rng_state())  # scvi draws as it encodes
        mean, var = model.get_latent_representation(indices=rows, return_dist=True)
        np.testing.assert_allclose(q.mean.numpy(), mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(q.std.square().numpy(), var, rtol=1e-5)

        z = q.rsample_with_log_prob(1, torch.Generator().manual_seed(0))[0]
        ours = adapted.log_likelihood(x, z)[0].numpy()
        tensors = next(iter(model._make_data_loader(adata=model.adata, indices=rows, batch_size=1_000)))
        inferred = model.module.inference(**model.module._get_inference_input(tensors))
        inferred["z"] = model.module.z_encoder.z_transformation(z[0])
        generated = model.module.generative(**model.module._get_generative_input(tensors, inferred))
        loss = model.module.loss(tensors, inferred, generated)
    np.testing.assert_allclose(ours, -loss.reconstruction_loss["reconstruction_loss"].numpy(), rtol=1e-4)
    kl = elbo_terms(adapted, x, n_draws=1)
    np.testing.assert_allclose(kl.kl_per_row, loss.kl_local["kl_divergence_z"].numpy(), rtol=1e-4, atol=1e-5)
    assert adapted.weights_sha256() == before


def test_elbo_is_scvis_own(model: Any) -> None:
    ours = elbo_terms(adapt(model), adapt(model).own_rows.held_out, n_draws=100)
    theirs = np.mean([float(model.get_elbo(indices=held_out(model))) for _ in range(30)])
    np.testing.assert_allclose(float(ours.elbo), theirs, rtol=1e-3)


@pytest.mark.parametrize("arguments", [{}, {"latent_distribution": "ln", "dispersion": "gene-batch"}])
def test_the_gain_is_real(arguments: dict[str, Any], gain_is_real) -> None:
    adapted = adapt(trained(counts(), **arguments))
    gain_is_real(adapted, adapted.own_rows.held_out)


def test_library_size_as_a_second_latent_leaves_the_codes() -> None:
    model = trained(counts(), use_observed_lib_size=False)
    adapted = adapt(model)
    assert not adapted.can_score
    assert "its KL stays, untouched" in " ".join(str(adapted).split())
    with torch.no_grad():
        q = adapted.encode(adapted.own_rows.held_out)
    mean, _ = model.get_latent_representation(indices=held_out(model), return_dist=True)
    np.testing.assert_allclose(q.mean.numpy(), mean, rtol=1e-5, atol=1e-6)
    with pytest.raises(CapabilityError, match="No likelihood is known"):
        elbo_terms(adapted, adapted.own_rows.held_out, n_draws=1)


def test_what_is_printed(model: Any) -> None:
    adapted = adapt(model)
    lines = repr(adapted).splitlines()
    assert lines[0] == "Adapted SCVI (zinb, 100 genes, 4 units) on cpu"
    assert lines[2].endswith("zinb, dispersion gene; given: library size, 2 batches")
    assert lines[3] == " loss       nll + KL; KL weight ended at 0.19: 4 epochs of a 16-epoch warm-up"
    assert lines[4] == " rows       scvi's own: 192 training cells, 48 held out"
    ln = trained(counts(), latent_distribution="ln")
    printed = " ".join(repr(adapt(ln)).split())
    assert "softmax of the untransformed latent; the prior lives on the untransformed one" in printed


def test_own_rows_are_those_scvi_kept(model: Any) -> None:
    own = adapt(model).own_rows
    assert set(own.train.index.tolist()) == set(model.train_indices.tolist())
    assert own.held_out.index.tolist() == held_out(model).tolist()
    np.testing.assert_array_equal(own.held_out.x.numpy(), model.adata.X[held_out(model)])
    torch.testing.assert_close(own.held_out.context[:, 0], own.held_out.x.sum(1))
    labels, groups = own.lookup("cell_state"), own.lookup("batch")
    np.testing.assert_array_equal(labels[1], np.asarray(model.adata.obs["cell_state"])[held_out(model)])
    assert set(groups[0]) == {"batch_0", "batch_1"}
    code = own.train.context[:, 1:].argmax(1).numpy()
    np.testing.assert_array_equal(groups[0], np.array(["batch_0", "batch_1"])[code])
    with pytest.raises(InputError, match="no column 'cel_state'; it has batch, labels, depth"):
        own.lookup("cel_state")
    assert adapt(trained(counts(), sizes=(1.0, None))).own_rows is None


def test_sparse_counts_and_other_cells(model: Any) -> None:
    from scipy import sparse

    other = counts(seed=1)
    other.X = sparse.csr_matrix(other.X)
    rows = cells(model, [3, 1], other)
    np.testing.assert_array_equal(rows.x.numpy(), counts(seed=1).X[[3, 1]])
    with torch.no_grad():
        q = adapt(model).encode(rows)
    mean, _ = model.get_latent_representation(other, indices=[3, 1], return_dist=True)
    np.testing.assert_allclose(q.mean.numpy(), mean, rtol=1e-5, atol=1e-6)


def test_a_context_is_needed_where_it_is_read(model: Any) -> None:
    adapted = adapt(model)
    rows = adapted.own_rows.held_out
    with torch.no_grad():
        torch.testing.assert_close(adapted.encode(rows.x).mean, adapted.encode(rows).mean)
    with pytest.raises(InputError, match="This VAE is conditional"):
        adapted.decode(torch.zeros(2, 4))
    reads = adapt(trained(counts(), encode_covariates=True))
    with pytest.raises(InputError, match=r"Batch.context \(N, 3\).*got none"):
        reads.encode(rows.x)


def test_training_facts(model: Any, tmp_path: Any) -> None:
    facts = training_facts(model)
    assert facts.kl_weight_reached == pytest.approx(3 / 16)
    assert str(facts.warmup) == "4 epochs of a 16-epoch warm-up"
    assert facts.converged is None
    assert adapt(model).loss.effective_beta(100) == pytest.approx(3 / 16)
    model.save(str(tmp_path / "saved"))
    loaded = scvi.model.SCVI.load(str(tmp_path / "saved"), adata=model.adata, accelerator="cpu")
    assert not hasattr(loaded, "trainer")  # the plan is lost, the history is not
    assert training_facts(loaded) == facts
    loaded.history_ = {**loaded.history, "kl_weight": 1.01 * loaded.history["kl_weight"]}  # no whole number of epochs
    assert str(training_facts(loaded).warmup) == "4 epochs, fewer than its warm-up"
    loaded.history_ = None
    assert training_facts(loaded).kl_weight_reached is None
    assert adapt(loaded).loss is None
    by_steps = trained(counts(), plan={"n_epochs_kl_warmup": None, "n_steps_kl_warmup": 40})
    assert str(training_facts(by_steps).warmup) == "12 steps of a 40-step warm-up"
    finished = training_facts(trained(counts(), epochs=3, plan={"n_epochs_kl_warmup": 2}))
    assert (finished.kl_weight_reached, finished.warmup) == (1.0, None)


def test_a_copy_has_its_own_weights(model: Any) -> None:
    adapted = adapt(model)
    other = copy.deepcopy(adapted)
    with torch.no_grad():
        other.likelihood.log_dispersion.add_(1.0)
    assert other.foreign[0].px_r is other.likelihood.log_dispersion
    assert other.weights_sha256() != adapted.weights_sha256()
    assert other.own_rows is adapted.own_rows


def test_what_is_refused(model: Any) -> None:
    adata = counts()
    scvi.model.SCVI.setup_anndata(adata, batch_key="batch", labels_key="labels")
    untrained = scvi.model.SCVI(adata)
    assert matches(untrained)
    with pytest.raises(InputError, match="is not trained yet"):
        adapt(untrained)
    untrained.is_trained_ = True
    untrained.module.gene_likelihood = "normal"
    with pytest.raises(CapabilityError, match="'normal' is not adapted"):
        adapt(untrained)
    untrained.module.gene_likelihood, untrained.module.dispersion = "nb", "gene-label"
    with pytest.raises(CapabilityError, match="only with its label"):
        adapt(untrained)
    scvi.model.SCANVI.setup_anndata(adata, labels_key="labels", unlabeled_category="none", batch_key="batch")
    with pytest.raises(CapabilityError, match=r"SCANVI is not adapted.*diagnose_latents\(mean, var=var\)"):
        adapt(scvi.model.SCANVI(adata))
    with pytest.raises(InputError, match="leave out spread"):
        adapt(model, spread="var")


def test_minified_files_bring_their_codes() -> None:
    model = trained(counts())
    mean, var = model.get_latent_representation(return_dist=True)
    model.adata.obsm["X_latent_qzm"], model.adata.obsm["X_latent_qzv"] = mean, var
    model.minify_adata()
    found = latents_of(model.adata)
    np.testing.assert_allclose(found[0], mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found[1], var, rtol=1e-5)
    with pytest.raises(InputError, match="is minified"):
        adapt(model)
