"""Cells of an AnnData: rows for an adapted SCVI, codes that a file holds already, and the slots that results go to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn import functional as F

from latentfit.adapters.adapted import OwnRows
from latentfit.data.batch import Batch
from latentfit.errors import InputError

#: cells made dense at once
BLOCK_CELLS = 4_096
#: where scvi-tools keeps mean and variance of q(z given x) in minified files: now, before 1.0, and in its hub
LATENT_KEYS = (
    ("scvi_latent_qzm", "scvi_latent_qzv"),
    ("_scvi_latent_qzm", "_scvi_latent_qzv"),
    ("X_latent_qzm", "X_latent_qzv"),
)


@dataclass(frozen=True)
class CellContext:
    """How `Batch.context` (N, C) holds what is given of a cell: library | one-hot batch | one-hot categories | reals.

    Attributes:
        n_batch: width of the one-hot batch; a single batch takes no column.
        n_categories: of each categorical covariate.
        n_reals: number of continuous covariates.
        size_factor: whether the first column is the user's size factor, not the sum of the counts.
    """

    n_batch: int
    n_categories: tuple[int, ...] = ()
    n_reals: int = 0
    size_factor: bool = False

    @classmethod
    def of(cls, module: Any, manager: Any) -> CellContext:
        """Of an SCVI's module and its AnnData manager."""
        registered = manager.data_registry
        categories: tuple[int, ...] = ()
        if "extra_categorical_covs" in registered:
            categories = tuple(int(n) for n in manager.get_state_registry("extra_categorical_covs").n_cats_per_key)
        n_reals = int(manager.summary_stats.get("n_extra_continuous_covs", 0))
        return cls(int(module.n_batch), categories, n_reals, bool(module.use_size_factor_key))

    @property
    def widths(self) -> tuple[int, ...]:
        """Columns of each part."""
        return (1, self.n_batch if self.n_batch > 1 else 0, *self.n_categories, self.n_reals)

    def pack(self, library: Tensor, batch: Tensor, categories: Tensor | None, reals: Tensor | None) -> Tensor:
        """library (N, 1), batch (N, 1) codes, categories (N, K) codes, reals (N, R) -> (N, C)."""
        parts = [library]
        if self.n_batch > 1:
            parts.append(F.one_hot(batch[:, 0].long(), self.n_batch))
        if categories is not None:
            codes = categories.long().unbind(1)
            parts += [F.one_hot(code, n) for code, n in zip(codes, self.n_categories, strict=True)]
        if reals is not None:
            parts.append(reals)
        return torch.cat([part.to(library.dtype) for part in parts], dim=1)

    def unpack(self, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """What `pack` took.

        Raises:
            InputError: no context, or one of another width.
        """
        if context is None or context.shape[1] != sum(self.widths):
            got = "none" if context is None else f"{tuple(context.shape)}"
            raise InputError(
                f"An adapted SCVI needs Batch.context (N, {sum(self.widths)}): library size, batch and covariates of "
                f"each cell; got {got}. latentfit.adapters.cells.cells(model, indices) makes such rows."
            )
        library, batch, *one_hots, reals = context.split(self.widths, dim=1)
        code = batch.argmax(1, keepdim=True) if self.n_batch > 1 else torch.zeros_like(library).long()
        categories = torch.cat([one_hot.argmax(1, keepdim=True) for one_hot in one_hots], dim=1) if one_hots else None
        return library, code, categories, reals if self.n_reals else None


def cells(model: Any, indices: ArrayLike | None = None, adata: Any = None) -> Batch:
    """Cells as an adapted SCVI reads them: counts (N, genes), context (N, C), and their numbers as `index`.

    Args:
        model: the scvi model.
        indices: numbers of the cells, in the order wanted; all by default.
        adata: another AnnData with the same genes; the model's own by default.

    Raises:
        InputError: counts that are not kept.
    """
    manager = _manager(model, adata)
    layout = CellContext.of(model.module, manager)
    rows = np.arange(manager.adata.n_obs) if indices is None else np.asarray(indices, dtype=np.int64)

    def registered(key: str, wanted: bool = True) -> Tensor | None:
        return torch.from_numpy(_dense(manager.get_from_registry(key), rows)) if wanted else None

    x, batch = registered("X"), registered("batch")
    assert x is not None
    assert batch is not None
    library = registered("size_factor") if layout.size_factor else x.sum(1, keepdim=True)
    categories = registered("extra_categorical_covs", bool(layout.n_categories))
    reals = registered("extra_continuous_covs", layout.n_reals > 0)
    assert library is not None
    return Batch(x, layout.pack(library, batch, categories, reals), torch.from_numpy(rows))


def own_rows(model: Any) -> OwnRows | None:
    """The cells scvi trained on, and its validation and test cells together, in the AnnData's order; None without."""
    kept = [model.train_indices, *(part for part in (model.validation_indices, model.test_indices) if part is not None)]
    if kept[0] is None or sum(map(len, kept[1:])) == 0:
        return None
    train, held_out = np.sort(kept[0]), np.sort(np.concatenate(kept[1:]).astype(np.int64))

    def lookup(column: str) -> tuple[np.ndarray, np.ndarray]:
        """`column` of `obs`; "batch" and "labels" also mean those that `setup_anndata` was told."""
        obs = model.adata_manager.adata.obs
        told = model.registry["setup_args"].get(f"{column}_key")
        name = told if column not in obs and told is not None else column
        if name not in obs:
            raise InputError(f"adata.obs has no column {column!r}; it has {', '.join(map(str, obs.columns))}.")
        values = np.asarray(obs[name])
        return values[train], values[held_out]

    return OwnRows(cells(model, train), cells(model, held_out), lookup)


def latents_of(adata: Any, mean_key: str | None = None, var_key: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance (N, D) of q(z given x) that a minified AnnData keeps: no model and no counts needed.

    Args:
        adata: with `obsm["scvi_latent_qzm"]` and `obsm["scvi_latent_qzv"]`, or those of older files.
        mean_key, var_key: other keys of `obsm`, both or neither.

    Raises:
        InputError: nothing there, with what is; a variance of another shape or below 0.
    """
    if (mean_key is None) != (var_key is None):
        raise InputError("latents_of: give both mean_key and var_key, or neither.")
    present = sorted(map(str, adata.obsm.keys()))
    pairs = LATENT_KEYS if mean_key is None else ((mean_key, var_key),)
    found = next((pair for pair in pairs if set(pair) <= set(present)), None)
    if found is None:
        looked_for = " or ".join(f"{mean} with {var}" for mean, var in pairs)
        raise InputError(
            f"No codes with a variance in adata.obsm: looked for {looked_for}, found "
            f"{', '.join(present) or 'nothing'}. scvi writes them by model.minify_adata(); a mean alone "
            "(X_scVI) is not enough. Other keys: mean_key=, var_key= (--mean-key, --var-key)."
        )
    mean, var = (np.asarray(adata.obsm[key], dtype=np.float32) for key in found)
    if mean.shape != var.shape or not bool((var >= 0).all()):
        raise InputError(
            f"adata.obsm[{found[1]!r}] is no variance of obsm[{found[0]!r}]: shapes {var.shape} and {mean.shape}, "
            f"least entry {var.min():g}."
        )
    return mean, var


def to_anndata(
    adata: Any, codes: ArrayLike, log_prob: ArrayLike | None = None, uns: Mapping[str, Any] | None = None
) -> None:
    """Write results into an AnnData, in place: obsm["X_latentfit"], obs["latentfit_log_prob"], uns["latentfit"].

    Args:
        adata: N cells.
        codes: (N, D), the mean of q(z given x) of every cell.
        log_prob: (N,), nats, or None.
        uns: facts of the run: numbers, strings and lists, which every file format holds.

    Raises:
        InputError: another number of cells.
    """
    columns = {"codes": np.asarray(codes), **({} if log_prob is None else {"log_prob": np.asarray(log_prob)})}
    for name, values in columns.items():
        if len(values) != adata.n_obs:
            raise InputError(
                f"to_anndata: {name} is of {len(values)} cells, adata of {adata.n_obs}; encode all of its cells."
            )
    adata.obsm["X_latentfit"] = columns["codes"].reshape(adata.n_obs, -1).astype(np.float32)
    if log_prob is not None:
        adata.obs["latentfit_log_prob"] = columns["log_prob"].astype(np.float64)
    if uns is not None:
        adata.uns["latentfit"] = dict(uns)


def _manager(model: Any, adata: Any) -> Any:
    if adata is None:
        return model.adata_manager
    return model.get_anndata_manager(model._validate_anndata(adata), required=True)


def _dense(values: Any, rows: np.ndarray) -> np.ndarray:
    """Rows of an array, a sparse matrix or a data frame as float32 (N, columns), in blocks."""
    values = values.to_numpy() if hasattr(values, "to_numpy") else values
    dense = np.empty((len(rows), values.shape[1]), dtype=np.float32)
    for start in range(0, len(rows), BLOCK_CELLS):
        part = values[rows[start : start + BLOCK_CELLS]]
        dense[start : start + BLOCK_CELLS] = part.toarray() if hasattr(part, "toarray") else part
    return dense
