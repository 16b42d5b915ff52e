"""What the training loop draws batches from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from latentfit.data.batch import Batch
from latentfit.data.conversion import as_batch

__all__ = ["Prepare", "RowSource", "Rows", "as_batch"]

Prepare = Callable[[Batch], Batch]


class RowSource(Protocol):
    """All that the training loop asks of data."""

    def __len__(self) -> int: ...

    def batch(self, index: Tensor) -> Batch:
        """The rows `index` (B,) int64."""
        ...


class Rows:
    """Rows of data that are gathered by number, and prepared afresh each time they are.

    Args:
        batch: the data, all of it. Row numbers are `batch.index` where that is set and 0..N-1 elsewhere.
        prepare: applied to every gathered batch, such as `Binarise()`; it draws from torch's current RNG
            state.

    Example:
        >>> rows = Rows(as_batch([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]))
        >>> rows.batch(torch.tensor([2, 0])).x.tolist()
        [[5.0, 6.0], [1.0, 2.0]]
    """

    def __init__(self, batch: Batch, prepare: Prepare | None = None) -> None:
        index = torch.arange(len(batch), device=batch.x.device) if batch.index is None else batch.index
        self._data = replace(batch, index=index)
        self.prepare = prepare

    def __len__(self) -> int:
        return len(self._data)

    @property
    def data_shape(self) -> torch.Size:
        """Shape of one row."""
        return self._data.x.shape[1:]

    def batch(self, index: Tensor) -> Batch:
        """The rows `index` (B,) int64, prepared; `Batch.index` holds their numbers."""
        data = self._data
        index = index.to(data.x.device)

        # index_select copies whole rows; t[index] goes through the slower general gather
        def pick(value: Tensor | None) -> Tensor | None:
            return None if value is None else value.index_select(0, index)

        x = data.x.index_select(0, index)
        picked = Batch(x, pick(data.context), pick(data.index), pick(data.weight), pick(data.mask))
        return picked if self.prepare is None else self.prepare(picked)

    def all(self) -> Batch:
        """Every row, prepared."""
        return self._data if self.prepare is None else self.prepare(self._data)

    def subset(self, index: Tensor | np.ndarray) -> Rows:
        """The rows `index` as rows of their own.

        They keep their numbers: a leave-one-out prior must see that a validation row is none of its
        exemplars.
        """
        return Rows(self._data[torch.as_tensor(index, device=self._data.x.device)], self.prepare)

    def to(self, device: torch.device | str) -> Rows:
        """The rows on a device."""
        return Rows(self._data.to(device), self.prepare)
