"""The first rows of whatever holds the data: what a foreign model is run on to be understood."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from latentfit.data.batch import Batch
from latentfit.data.rows import Rows, as_batch

#: rows a foreign model is run on
EXAMPLE_ROWS = 256


def first_rows(example: Any, dtype: torch.dtype = torch.float32) -> Batch:
    """At most `EXAMPLE_ROWS` rows of an example, (N, *data_shape).

    Args:
        example: an array, a tensor, a batch with labels (x, y), a DataFrame, a `Dataset` or a `DataLoader`, of which
            the first batch is read, or a `Batch`.
        dtype: of the rows.

    Raises:
        InputError: see `latentfit.data.as_batch`; fewer than two rows.
    """
    if isinstance(example, Dataset):
        example = DataLoader(example, batch_size=EXAMPLE_ROWS)
    if isinstance(example, DataLoader):
        with torch.random.fork_rng(devices=[]):  # a loader draws its seed from the caller's random state
            example = next(iter(example), [])
    if isinstance(example, Rows):
        example = example.all()
    if isinstance(example, list | tuple) and len(example) and _has_rows(example[0]):
        example = example[0]  # (x, y)
    if isinstance(example, Batch) or (isinstance(example, Tensor | np.ndarray) and example.ndim > 0):
        example = example[slice(0, EXAMPLE_ROWS)]
    elif hasattr(example, "iloc"):
        example = example.iloc[:EXAMPLE_ROWS]
    return as_batch(example, dtype=dtype, what="example")[slice(0, EXAMPLE_ROWS)]


def between_0_and_1(x: Tensor) -> bool:
    """Whether some entries are grey, and none lies outside [0, 1]."""
    return bool(((x > 0) & (x < 1)).any()) and bool(((x >= 0) & (x <= 1)).all())


def _has_rows(part: Any) -> bool:
    return isinstance(part, Tensor | np.ndarray) and part.ndim > 1
