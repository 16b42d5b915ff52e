"""Codes in a file: .npz of any framework, .h5ad of scvi-tools."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from latentfit.cli.marks import read_marks, split_marks
from latentfit.cli.program import note_of_rows
from latentfit.errors import InputError


def read_latents(
    path: Path, groups: str | None = None, mean_key: str | None = None, var_key: str | None = None
) -> dict[str, Any]:
    """The arguments of `diagnose_latents` that a file holds: mean, one spread, train, groups.

    Args:
        path: .npz with `mean` and one of `std`, `var`, `logvar`, and where there are `train_mean`, `train_std` (or
            the other), `groups`; or .h5ad with the slots of a minified scvi model.
        groups: a file of groups, or a column of obs.
        mean_key, var_key: other slots.

    Raises:
        InputError: what is missing, with what is there.
    """
    file, column = split_marks(groups)
    if path.suffix == ".h5ad":
        return _of_anndata(path, file, column, mean_key, var_key)
    result = _of_npz(path)
    if column is not None:
        raise InputError(
            f"--groups {column}: {path} has no columns; give a .npy or .csv file, or the key groups in it."
        )
    if file is not None:
        result["groups"] = read_marks("--groups", file, len(result["mean"]))
    return result


def _of_npz(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except Exception as error:  # numpy raises whatever the damage suggests
        raise InputError(
            f"--latents {path} is not a complete .npz file of numbers; write it with numpy.savez."
        ) from error
    spreads = [name for name in ("std", "var", "logvar") if name in arrays]
    if "mean" not in arrays or len(spreads) != 1:
        held = ", ".join(arrays) or "nothing"
        raise InputError(f"--latents {path} needs the keys mean and exactly one of std, var, logvar; it holds {held}.")
    kind = spreads[0]
    result: dict[str, Any] = {"mean": arrays["mean"], kind: arrays[kind]}
    if arrays["mean"].shape != arrays[kind].shape:
        raise InputError(
            f"--latents {path}: mean has shape {arrays['mean'].shape}, {kind} {arrays[kind].shape}; they must agree."
        )
    if "train_mean" in arrays:
        if f"train_{kind}" not in arrays:
            raise InputError(f"--latents {path} holds train_mean, so it needs train_{kind} too (the kind of {kind}).")
        result["train"] = (arrays["train_mean"], arrays[f"train_{kind}"])
    if "groups" in arrays:
        result["groups"] = arrays["groups"]
    return result


def _of_anndata(
    path: Path, file: Path | None, column: str | None, mean_key: str | None, var_key: str | None
) -> dict[str, Any]:
    import warnings

    from latentfit.adapters.cells import latents_of
    from latentfit.data.readers import require_package

    require_package("anndata", "anndata", path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # anndata's remarks on its own storage format
        import anndata

        try:
            adata = anndata.read_h5ad(path)
        except Exception as error:  # h5py raises whatever the damage suggests
            detail = " ".join(str(error).split())[:200].rstrip(".")
            raise InputError(f"--latents {path} is not a readable .h5ad file: {detail}.") from None
    mean, var = latents_of(adata, mean_key, var_key)
    note_of_rows(f"Codes: mean and variance of {len(mean):,} cells, {mean.shape[1]} units, from obsm of {path.name}.")
    result: dict[str, Any] = {"mean": mean, "var": var}
    if file is not None:
        result["groups"] = read_marks("--groups", file, len(mean))
    elif column is not None:
        name = column.removeprefix("obs:")
        if name not in adata.obs:
            raise InputError(f"{path} has no obs column {name!r}; it has {', '.join(map(str, adata.obs.columns))}.")
        result["groups"] = np.asarray(adata.obs[name].astype(str))
    return result
