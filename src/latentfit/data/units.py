"""The way from a user's rows to the rows a VAE is trained on and scored by, and back."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentfit.data.inspection import inspect
from latentfit.data.prepared import PreparedData, prepare_data
from latentfit.errors import InputError

#: sizes of a last axis that is taken for colours
_COLOURS = (1, 3, 4)


@dataclass(frozen=True)
class Units:
    """How rows as the user has them become rows as a VAE scores them, and how its rows become the user's.

    Attributes:
        data_shape: of a row as the user has it.
        model_shape: of a row as the VAE has it.
        constants: columns that are left out, each with its value.
        channels_last: whether the user's images are (h, w, c).
        noise: what makes the rows fair to score, as in `PreparedData`.
        random_state: seed of the noise.
    """

    data_shape: tuple[int, ...]
    model_shape: tuple[int, ...]
    constants: tuple[tuple[int, float], ...] = ()
    channels_last: bool = False
    noise: dict[str, Any] | None = None
    random_state: int = 0

    def arrange(self, x: np.ndarray) -> np.ndarray:
        """Without the constant columns, channels first: (n, *data_shape) -> (n, *model_shape)."""
        if self.constants:
            return np.ascontiguousarray(x[:, self._kept])
        return np.ascontiguousarray(x.transpose(0, 3, 1, 2)) if self.channels_last else x

    def to_model(self, x: np.ndarray) -> Tensor:
        """The user's rows as they are scored: (n, *data_shape) -> (n, *model_shape) float32.

        Binarisation and dequantisation belong to the row: its draw depends on its content and the seed alone,
        so that a row has one code, whichever rows come with it.
        """
        rows = self.arrange(x).astype(np.float32)
        if self.noise is None:
            return torch.from_numpy(rows)
        u = np.stack([_row_uniform(row, self.random_state) for row in rows])
        if self.noise["name"] == "binarise":
            return torch.from_numpy((u < rows / np.float32(255)).astype(np.float32))
        width = np.float32(self.noise["args"]["width"])
        return torch.from_numpy(width * (rows + u))

    def to_data(self, x: Tensor, *, drawn: bool) -> np.ndarray:
        """The VAE's rows in the user's units: (n, *model_shape) -> (n, *data_shape).

        Args:
            x: draws of x, or their means.
            drawn: whether they are draws, which are whole numbers again where the data were dequantised.
        """
        rows = x.cpu().numpy()
        if self.noise is not None and self.noise["name"] == "binarise":
            rows = np.float32(255) * rows
        elif self.noise is not None:
            rows = rows / np.float32(self.noise["args"]["width"])
            rows = np.floor(rows) if drawn else rows - np.float32(0.5)
        if self.channels_last:
            rows = np.ascontiguousarray(rows.transpose(0, 2, 3, 1))
        if self.constants:
            whole = np.empty((len(rows), *self.data_shape), dtype=rows.dtype)
            whole[:, self._kept] = rows
            for column, value in self.constants:
                whole[:, column] = value
            rows = whole
        return rows

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Units:
        """The inverse of `to_json`."""
        return cls(
            data_shape=tuple(stored["data_shape"]),
            model_shape=tuple(stored["model_shape"]),
            constants=tuple((int(column), float(value)) for column, value in stored["constants"]),
            channels_last=stored["channels_last"],
            noise=stored["noise"],
            random_state=stored["random_state"],
        )

    @property
    def _kept(self) -> list[int]:
        dropped = {column for column, _ in self.constants}
        return [column for column in range(self.data_shape[0]) if column not in dropped]


def prepare_rows(
    x: np.ndarray,
    train_rows: np.ndarray,
    *,
    likelihood: str | Mapping[str, Any] | None = None,
    random_state: int = 0,
) -> tuple[PreparedData, Units, list[str]]:
    """Prepare a user's rows for training, and keep how: `prepare_data` for rows that come without a source.

    Columns of a table that are constant on the training rows are left out, colours come first, and 8-bit grey
    values are binarised where a Bernoulli was asked for.

    Args:
        x: (N, *data_shape), float32 or uint8.
        train_rows: row numbers; moments are theirs.
        likelihood, random_state: see `prepare_data`.

    Returns:
        The prepared data, the units, and in words what was done.

    Raises:
        InputError: a table of nothing but constant columns, and what `prepare_data` refuses.
    """
    data_shape = x.shape[1:]
    notes: list[str] = []
    constants: tuple[tuple[int, float], ...] = ()
    if len(data_shape) == 1:
        train = x[train_rows]
        dropped = np.flatnonzero((train == train[:1]).all(axis=0))
        if len(dropped) == data_shape[0]:
            raise InputError(f"All {data_shape[0]} columns are constant: there is nothing to model.")
        constants = tuple((int(column), float(train[0, column])) for column in dropped)
    if constants:
        some = ", ".join(str(column) for column, _ in constants[:5]) + (", ..." if len(constants) > 5 else "")
        what = "1 constant column is" if len(constants) == 1 else f"{len(constants)} constant columns are"
        notes.append(f"{what} left out of the model: {some}")
    last = len(data_shape) == 3 and data_shape[-1] in _COLOURS and data_shape[0] not in _COLOURS
    units = Units(data_shape, data_shape, constants, last)
    arranged = units.arrange(x)
    name = likelihood.get("name") if isinstance(likelihood, Mapping) else likelihood
    binarise = name == "bernoulli" and inspect(arranged).kind == "grey"
    data = prepare_data(
        arranged,
        train_rows,
        likelihood=likelihood,
        source_name="mnist" if binarise else None,
        random_state=random_state,
    )
    if binarise:
        notes.append("8-bit grey values are binarised, afresh in training and by one fixed draw for each row after it")
    units = Units(data_shape, tuple(arranged.shape[1:]), constants, last, data.noise, random_state)
    return data, units, notes + data.notes


def _row_uniform(row: np.ndarray, random_state: int) -> np.ndarray:
    digest = hashlib.blake2b(row.tobytes(), digest_size=8).digest()
    rng = np.random.default_rng([random_state, int.from_bytes(digest, "little")])
    return rng.random(row.shape, dtype=np.float32)
