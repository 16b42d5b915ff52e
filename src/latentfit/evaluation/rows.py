"""Rows in order, in bounded memory, with noise that belongs to the row: what every evaluation walks over."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from latentfit.data.batch import Batch
from latentfit.data.rows import Rows, as_batch
from latentfit.errors import InputError
from latentfit.model.vae import VAEModule
from latentfit.training.modes import in_eval
from latentfit.training.rng import isolated_rng

#: numbers of one activation at once, 1.6 MB in float32: larger ones leave the cache (a tenth slower)
BLOCK_NUMBERS = 400_000
#: the same where kernels are launched, 17 MB: on an H100 log p(x) takes about a tenth of the time of smaller blocks
DEVICE_NUMBERS = 1 << 22


def evaluation_rows(x: Any, model: nn.Module | None = None, what: str = "X") -> Batch:
    """Rows as a `Batch` in the model's floating dtype, left on the device they are on.

    Args:
        x: whatever `latentfit.data.as_batch` takes, or `Rows`.
        model: whose floating dtype the rows take.
        what: the argument's name in messages.

    Raises:
        InputError: what cannot be used as rows, with the reason.
    """
    if isinstance(x, Rows):
        x = x.all()
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None) if model else None
    if dtype is None:
        dtype = x.dtype if isinstance(x, Tensor) and x.is_floating_point() else torch.get_default_dtype()
    return as_batch(x, dtype=dtype, what=what, min_rows=1)


def blocks(n: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` rows that cover n rows in order."""
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))


def decoder_rows(batch: Batch, device: torch.device) -> int:
    """How many rows to decode at once: a few megabytes for each activation, on a GPU tens."""
    numbers, most = (BLOCK_NUMBERS, 4_096) if device.type == "cpu" else (DEVICE_NUMBERS, 65_536)
    return max(16, min(most, numbers // max(1, batch.x[0].numel())))


def as_models(vae: VAEModule | Sequence[VAEModule]) -> list[VAEModule]:
    """One VAE or several as a list.

    Raises:
        InputError: none at all.
    """
    models = [vae] if isinstance(vae, nn.Module) else list(vae)
    if not models:
        raise InputError("Expected a VAE or a sequence of VAEs, got an empty sequence.")
    return models


def drawn_models(vae: VAEModule | Sequence[VAEModule], random_state: int) -> list[VAEModule]:
    """One VAE or several as ordinary ones: of a distribution over weights, its `n_draws` seeded draws."""
    found: list[VAEModule] = []
    for model in as_models(vae):
        if model.uncertain:
            generator = torch.Generator(device=model.device).manual_seed(random_state)
            found += model.draws(model.n_draws, generator)
        else:
            found.append(model)
    return found


class RowNoise:
    """Standard normal noise of which every row has its own, whatever the model, blocks and other rows.

    Two models scored with the same `random_state` see the same noise in the same row (common random numbers),
    so that their paired difference loses most of its Monte-Carlo error; a row's noise does not move when rows
    are appended.
    """

    def __init__(self, n_rows: int, random_state: int, stream: int = 0) -> None:
        self._seeds = np.random.SeedSequence([random_state, stream]).generate_state(n_rows)

    def draw(self, rows: slice, n: int, shape: Sequence[int], like: Tensor) -> Tensor:
        """eps (n_rows_of_the_slice, n, *shape) with the dtype and device of `like`."""
        generator = torch.Generator(device=like.device)
        seeds = self._seeds[rows]
        eps = torch.empty((len(seeds), n, *shape), dtype=like.dtype, device=like.device)
        for row, seed in zip(eps, seeds, strict=True):
            row.normal_(generator=generator.manual_seed(int(seed)))
        return eps


@contextmanager
def frozen(*modules: nn.Module, random_state: int | None = None) -> Iterator[None]:
    """Modules in eval mode and without gradients to their parameters; all is put back afterwards.

    With `random_state`, global random numbers inside (densities that are unbiased but noisy draw them) are
    repeatable and the outer state is restored.
    """
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    devices = {p.device for m in modules for p in m.parameters()}
    try:
        with in_eval(*modules), nullcontext() if random_state is None else isolated_rng(random_state, *devices):
            yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def to_numpy(values: Tensor) -> np.ndarray:
    """A detached float64 copy in NumPy."""
    return values.detach().cpu().double().numpy()
