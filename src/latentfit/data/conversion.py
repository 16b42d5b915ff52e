"""Whatever the user has -> a `Batch` of finite numbers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from latentfit.data.batch import Batch
from latentfit.errors import DataWarning, InputError

ACCEPTED = "an array, a tensor, a DataFrame, a torch Dataset or a DataLoader"


def as_batch(
    X: Any,
    *,
    context: Any = None,
    dtype: torch.dtype = torch.float32,
    what: str = "X",
    min_rows: int = 2,
) -> Batch:
    """What a user calls data, as a `Batch` of finite numbers.

    Args:
        X: numpy array, tensor, list, pandas DataFrame, scipy sparse matrix, torch `Dataset` or `DataLoader`
            (first item of a tuple; read once, in its order), or a `Batch`. Rows first: (N, *data_shape).
        context: (N, C) or (N,), what is given and not modelled.
        dtype: of the result's floats.
        what: the argument's name in messages.
        min_rows: fewest rows accepted; 1 where nothing is fitted.

    Returns:
        The batch. Where a `Batch` has a mask, unobserved entries may be NaN and become 0.

    Raises:
        InputError: no numbers, no rows, no columns, entries that are NaN or infinite, another number of
            contexts.

    Example:
        >>> as_batch(np.eye(3)).x.shape
        torch.Size([3, 3])
    """
    batch = X if isinstance(X, Batch) else Batch(_as_tensor(X, what))
    if context is not None:
        batch = replace(batch, context=_as_tensor(context, "context"))
    x = _checked(batch.x, what, dtype, min_rows, batch.mask)
    if dtype == torch.float32 and batch.x.device.type == "cpu" and batch.x.dtype != torch.bfloat16:
        coarse = coarse_columns(batch.x.detach().numpy())
        if coarse:
            note = coarse_note(coarse, getattr(X, "columns", None))
            warnings.warn(f"{what}: {note}.", DataWarning, stacklevel=2)
    given = batch.context
    if given is not None:
        given = given.unsqueeze(1) if given.dim() == 1 else given
        if given.shape[0] != x.shape[0]:
            raise InputError(f"context has {given.shape[0]} rows, {what} {x.shape[0]}; they must agree.")
        given = _checked(given, "context", dtype, 1, None).to(x.device)
    return replace(batch, x=x, context=given, weight=_checked_weight(batch.weight, len(x)))


def _checked_weight(weight: Tensor | None, n_rows: int) -> Tensor | None:
    if weight is None:
        return None
    flat = weight.squeeze(1) if weight.dim() == 2 and weight.shape[1] == 1 else weight
    if flat.shape != (n_rows,):
        raise InputError(f"weight has shape {tuple(weight.shape)}, expected ({n_rows},), one for each row.")
    if not bool(torch.isfinite(flat).all()) or bool((flat < 0).any()) or not bool((flat > 0).any()):
        raise InputError("weight must be finite, 0 or more, and not all 0.")
    return flat


def _checked(x: Tensor, what: str, dtype: torch.dtype, min_rows: int, mask: Tensor | None) -> Tensor:
    shape = tuple(x.shape)
    if x.dim() == 0:
        raise InputError(f"{what} is a single number; expected rows first, (N, columns) or (N, *image).")
    if x.dim() == 1:
        raise InputError(
            f"{what} is one-dimensional, {shape}; expected rows first, (N, columns). Reshape your data: "
            "x.reshape(-1, 1) if it has one column, x.reshape(1, -1) if it is one row."
        )
    if shape[0] == 0:
        raise InputError(f"{what} is empty: 0 rows, shape {shape}. A minimum of {min_rows} is required.")
    if 0 in shape:
        raise InputError(f"{what} is empty: 0 feature(s) (shape={shape}) while a minimum of 1 is required.")
    if shape[0] < min_rows:
        got = "one row (1 sample)" if shape[0] == 1 else f"{shape[0]} rows"
        raise InputError(f"{what} has {got}, shape {shape}; at least {min_rows} are needed.")
    if x.is_complex():
        raise InputError(f"Complex data not supported: {what} is {x.dtype}; try real and imaginary part as columns.")
    if mask is not None:
        if mask.shape != x.shape:
            raise InputError(f"{what}: the mask has shape {tuple(mask.shape)}, the data {shape}; they must agree.")
        x = torch.where(mask, x, torch.zeros((), dtype=x.dtype, device=x.device))
    if x.is_floating_point():
        _require_finite(x, what)
    converted = x.detach().to(dtype)
    if converted.dtype != x.dtype and not _all_finite(converted):
        largest = x.abs().max().item()
        raise InputError(f"{what} reaches {largest:.3g}, too large for {_name(dtype)}; rescale it or use float64.")
    return converted


def coarse_columns(x: np.ndarray) -> list[int]:
    """Columns of a table (N, D) that vary, but by fewer than 128 steps of float32 at their size.

    >>> coarse_columns(np.array([[1.7e9, 1.0], [1.7e9 + 60, 2.0]]))
    [0]
    """
    if x.ndim != 2 or x.dtype.kind not in "iuf" or x.dtype.itemsize < 4 or x.dtype == np.float32:
        return []
    low, high = x.min(axis=0).astype(np.float64), x.max(axis=0).astype(np.float64)
    step = np.finfo(np.float32).eps * np.maximum(abs(low), abs(high))
    return np.flatnonzero((high > low) & (high - low < 128 * step)).tolist()


def coarse_note(columns: list[int], names: Any = None) -> str:
    """What is to be said of such columns."""
    shown = [str(column if names is None else names[column]) for column in columns[:5]]
    listed = ", ".join(shown) + (", ..." if len(columns) > 5 else "")
    few = "column" if len(columns) == 1 else "columns"
    return (
        f"{few} {listed}: values so close to each other for their size are hardly told apart in float32, in which all "
        "is computed; subtract the smallest value first"
    )


def _all_finite(x: Tensor) -> bool:
    """Whether no entry is NaN or infinite; a finite sum settles it without a mask of x's size."""
    return bool(x.sum().isfinite()) or bool(x.isfinite().all())


def _require_finite(x: Tensor, what: str) -> None:
    if _all_finite(x):
        return
    finite = torch.isfinite(x)
    missing = bool(torch.isnan(x).any())
    share = 100 * (1 - finite.double().mean().item())
    column = int((~finite).flatten(1).any(0).nonzero()[0])
    advice = "remove or clip them"
    if missing:
        advice = "fill or drop them; VAEModule and latentfit.fit take Batch(x, mask=observed)"
    raise InputError(
        f"{what}: {share:.3g} % of the entries are {'NaN' if missing else 'infinite (inf)'}, first in column {column}; "
        f"expected finite numbers: {advice}."
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _as_tensor(X: Any, what: str) -> Tensor:
    """Any accepted kind as a tensor of numbers, its dtype kept."""
    if isinstance(X, Tensor):
        return X.to_dense() if X.layout is not torch.strided else X
    if isinstance(X, DataLoader):
        return _joined([_first(batch, what) for batch in X], torch.cat, what, "batch")
    if isinstance(X, TensorDataset):
        return X.tensors[0]
    if isinstance(X, Dataset):
        return _joined([_first(item, what) for item in _items(X, what)], torch.stack, what, "item")
    if _is_pandas(X):
        return _from_pandas(X, what)
    if hasattr(X, "toarray") and hasattr(X, "nnz"):  # scipy sparse, which is not imported to find out
        return _from_array(X.toarray(), what)
    if isinstance(X, str | bytes | Mapping) or not (hasattr(X, "__array__") or isinstance(X, list | tuple)):
        hint = "; load(path) reads files" if isinstance(X, str) or hasattr(X, "__fspath__") else ""
        raise InputError(f"{what} is {_article(type(X).__name__)}; expected {ACCEPTED}{hint}.")
    try:
        array = np.asarray(X)
    except ValueError:
        raise InputError(
            f"{what} is a list with rows of different lengths; every row needs the same columns."
        ) from None
    return _from_array(array, what)


def _from_array(array: np.ndarray, what: str) -> Tensor:
    if array.dtype.kind not in "biufc":
        raise InputError(
            f"{what} holds {_article(array.dtype.name)} entries, not numbers; encode text as numbers, "
            "or convert with x.astype(float)."
        )
    if array.dtype == np.longdouble or (array.dtype.kind == "u" and array.dtype.itemsize > 1):
        array = array.astype(np.float64)
    elif not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    # torch cannot view read-only or negatively strided memory
    usable = array.flags.writeable and all(stride >= 0 for stride in array.strides)
    return torch.from_numpy(array if usable else array.copy())


def _is_pandas(X: Any) -> bool:
    return type(X).__module__.split(".")[0] == "pandas"


def _from_pandas(X: Any, what: str) -> Tensor:
    from pandas.api.types import is_bool_dtype, is_complex_dtype, is_numeric_dtype

    frame = X.to_frame() if X.ndim == 1 else X
    for position, name in enumerate(frame.columns):
        column = frame.iloc[:, position]
        if is_complex_dtype(column.dtype) or not (is_numeric_dtype(column.dtype) or is_bool_dtype(column.dtype)):
            shown = repr(column.iloc[0]) if len(column) else "none"
            raise InputError(
                f"{what}: column {name!r} is not numeric ({column.dtype}, first value {shown}); "
                "drop it or encode it, e.g. with pandas.get_dummies."
            )
    array = frame.to_numpy(dtype=np.float64, na_value=np.nan)
    if np.isnan(array).any():
        position = int(np.isnan(array).any(axis=0).argmax())
        raise InputError(
            f"{what}: {100 * np.isnan(array).mean():.3g} % of the entries are NaN, first in column "
            f"{frame.columns[position]!r}; expected finite numbers: fill or drop them; VAEModule and latentfit.fit "
            "take Batch(x, mask=observed)."
        )
    return _from_array(array, what)


def _items(dataset: Dataset, what: str) -> Iterable[Any]:
    if isinstance(dataset, IterableDataset):
        return dataset
    try:
        n = len(dataset)  # type: ignore[arg-type]  # map-style data sets have a length by convention only
    except (TypeError, NotImplementedError):
        raise InputError(f"{what}: the Dataset {type(dataset).__name__} has no length; give a DataLoader.") from None
    return (dataset[i] for i in range(n))


def _first(item: Any, what: str) -> Tensor:
    """The data of one item or batch of a data set: itself, or the first of a tuple."""
    x = item[0] if isinstance(item, list | tuple) and len(item) else item
    if isinstance(x, Tensor):
        return x
    if isinstance(x, Mapping) or isinstance(item, Mapping):
        keys = ", ".join(map(str, x if isinstance(x, Mapping) else item))
        raise InputError(f"{what} gives dictionaries ({keys}); expected tensors, or tuples that begin with x.")
    try:
        return _from_array(np.asarray(x), what)
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{what} gives {_article(type(x).__name__)}; expected tensors.") from None


def _joined(parts: list[Tensor], join: Callable[[list[Tensor]], Tensor], what: str, unit: str) -> Tensor:
    if not parts:
        raise InputError(f"{what} is empty: it gave no {unit}.")
    start = 1 if unit == "batch" else 0
    for i, part in enumerate(parts):
        if part.shape[start:] != parts[0].shape[start:]:
            raise InputError(
                f"{what}: {unit} {i} has rows of shape {tuple(part.shape[start:])}, the first "
                f"{tuple(parts[0].shape[start:])}; all must agree."
            )
    return join(parts)


def _article(noun: str) -> str:
    return f"an {noun}" if noun[:1].lower() in "aeio" else f"a {noun}"
