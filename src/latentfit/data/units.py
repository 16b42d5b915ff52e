"""The way from a user's rows to the rows a VAE is trained on and scored by, and back."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentfit.errors import InputError


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
        columns: names of a table's columns as the user has them, where they have names.
    """

    data_shape: tuple[int, ...]
    model_shape: tuple[int, ...]
    constants: tuple[tuple[int, float], ...] = ()
    channels_last: bool = False
    noise: dict[str, Any] | None = None
    random_state: int = 0
    columns: tuple[str, ...] | None = None

    @property
    def kept(self) -> list[int]:
        """Columns of a table that are modelled."""
        dropped = {column for column, _ in self.constants}
        return [column for column in range(self.data_shape[0]) if column not in dropped]

    @property
    def model_columns(self) -> list[str] | list[int]:
        """What a table's columns that are modelled are called: their names, or their numbers; of images nothing."""
        if len(self.data_shape) != 1:
            return []
        return self.kept if self.columns is None else [self.columns[column] for column in self.kept]

    def name(self, column: int) -> str:
        """A column's name, or its number."""
        return str(column) if self.columns is None else self.columns[column]

    def check(self, x: np.ndarray, columns: Sequence[str] | None = None) -> None:
        """Refuse rows that are not of the kind that the VAE was trained on.

        Args:
            x: (n, *data_shape).
            columns: their names, where they have names.

        Raises:
            InputError: another shape, other names, other values in a column that is left out, or values that cannot be
                binarised.
        """
        if x.shape[1:] != self.data_shape:
            raise InputError(f"The rows have shape {x.shape[1:]}; the model was trained on rows of {self.data_shape}.")
        if self.columns is not None and columns is not None:
            for column, (was, is_now) in enumerate(zip(self.columns, columns, strict=True)):
                if was != is_now:
                    raise InputError(
                        f"Column {column} is {is_now!r}; the model was trained with {was!r} there. Give the columns by "
                        "the same names in the same order."
                    )
        changed = self.changed(x)
        if changed is not None:
            raise InputError(f"{changed} Leave these rows out, or train on rows like them.")
        self.check_grey(x)

    def check_grey(self, x: np.ndarray) -> None:
        """Refuse rows (n, *data_shape) that a model of binarised pictures would divide by 255 once too often.

        Raises:
            InputError: values other than whole ones of 0..255, or scaled ones.
        """
        if self.noise is not None and self.noise["name"] == "binarise":
            low, high = float(x.min()), float(x.max())
            scaled = x.dtype != np.uint8 and 0 < high <= 1
            if low < 0 or high > 255 or scaled or bool((x != np.rint(x)).any()):
                raise InputError(
                    f"The model binarises 8-bit grey values 0..255; these rows hold {low:.3g} to {high:.3g}. "
                    "Give them as they were before they were scaled or binarised."
                )

    def changed(self, x: np.ndarray) -> str | None:
        """What is to be said where a column that is left out has other values in rows (n, *data_shape), or None."""
        for column, value in self.constants:
            # as float32, which other files of the same numbers may have been stored in
            others = int((x[:, column].astype(np.float32) != np.float32(value)).sum())
            if others:
                return (
                    f"Column {self.name(column)} was {value:g} in all training rows, so the model leaves it out; it is "
                    f"not in {others:,} of these {len(x):,} rows."
                )
        return None

    def arrange(self, x: np.ndarray) -> np.ndarray:
        """Without the constant columns, channels first: (n, *data_shape) -> (n, *model_shape)."""
        if self.constants:
            return np.ascontiguousarray(x[:, self.kept])
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
            whole[:, self.kept] = rows
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
            columns=None if stored.get("columns") is None else tuple(stored["columns"]),
        )


def _row_uniform(row: np.ndarray, random_state: int) -> np.ndarray:
    digest = hashlib.blake2b(row.tobytes(), digest_size=8).digest()
    rng = np.random.default_rng([random_state, int.from_bytes(digest, "little")])
    return rng.random(row.shape, dtype=np.float32)
