"""The order of the rows: shuffled epochs, from a position that can be stored."""

from __future__ import annotations

import torch
from torch import Tensor

from latentfit.errors import InputError


class ShuffledEpochs:
    """Indices of shuffled epochs, without end.

    A last short batch is dropped where an epoch has more than one full batch: its noisier gradient would get
    the same weight as a full one's.

    Args:
        n_rows: rows of the data.
        batch_size: indices a batch, at most `n_rows`.
        seed: of the order.
    """

    def __init__(self, n_rows: int, batch_size: int, seed: int) -> None:
        if n_rows < 1:
            raise InputError("There are no rows to train on.")
        self.n_rows, self.batch_size = n_rows, min(batch_size, n_rows)
        n_full = n_rows // self.batch_size
        self.end = n_full * self.batch_size if n_full > 1 else n_rows
        self.generator = torch.Generator().manual_seed(seed)
        self.position = 0
        self._start_epoch()

    def next(self) -> Tensor:
        """The next batch's indices, (n,) int64."""
        if self.position >= self.end:
            self._start_epoch()
        start, self.position = self.position, min(self.position + self.batch_size, self.end)
        return self.order[start : self.position]

    def state(self) -> tuple[Tensor, int]:
        """The generator's state before this epoch's shuffling, and the position in the epoch."""
        return self.epoch_state, self.position

    def restore(self, epoch_state: Tensor, position: int) -> None:
        """Go back to where `state` was taken."""
        self.generator.set_state(epoch_state)
        self._start_epoch()
        self.position = position

    def _start_epoch(self) -> None:
        self.epoch_state = self.generator.get_state()
        self.order = torch.randperm(self.n_rows, generator=self.generator)
        self.position = 0
