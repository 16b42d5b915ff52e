"""Labels and groups: from a file of their own, or a column of the data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from latentfit.errors import InputError


def split_marks(value: str | None) -> tuple[Path | None, str | None]:
    """(file, None) where a file was named, (None, column) otherwise."""
    if value is not None and value.endswith((".npy", ".csv")):
        return Path(value), None
    return None, value


def read_marks(option: str, path: Path, n_rows: int | None) -> np.ndarray:
    """One label a row, (n_rows,): a .npy file, or a .csv file of one column, with or without a heading.

    `n_rows` None: not known before the rows are read, as a loader's; then a heading cannot be told from a label.

    Raises:
        InputError: another number of labels, or several columns.
    """
    from latentfit.data.readers import load_array

    values: Any = load_array(path) if path.suffix == ".npy" else _column(option, path, n_rows)
    if n_rows is not None and values.shape != (n_rows,):
        what = option.removeprefix("--")
        raise InputError(f"{option} {path}: {what} must be ({n_rows},), one per row; got {values.shape}.")
    return values


def _column(option: str, path: Path, n_rows: int | None) -> np.ndarray:
    import csv

    from latentfit.data.splits import refuse_missing

    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file))
    except UnicodeDecodeError:
        raise InputError(f"{option} {path} is not utf-8 text.") from None
    while rows and not rows[-1]:
        rows.pop()
    if any(len(row) > 1 for row in rows):
        raise InputError(f"{option} {path} has several columns; expected one, a label in each line.")
    # a blank line, or an empty cell, as pandas writes what is missing
    cells = [row[0].strip() or None if row else None for row in rows]
    if n_rows is not None and len(cells) == n_rows + 1:
        cells = cells[1:]
    if n_rows is None or len(cells) == n_rows:
        refuse_missing(np.array(cells, dtype=object), f"{option} {path}", option.removeprefix("--").removesuffix("s"))
    return np.array(cells)
