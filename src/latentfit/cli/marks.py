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

    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file))
    except UnicodeDecodeError:
        raise InputError(f"{option} {path} is not utf-8 text.") from None
    while rows and not rows[-1]:
        rows.pop()
    if any(len(row) > 1 for row in rows):
        raise InputError(f"{option} {path} has several columns; expected one, a label in each line.")
    cells = [row[0].strip() if row else "" for row in rows]
    if n_rows is not None and len(cells) == n_rows + 1:
        cells = cells[1:]
    if n_rows is None or len(cells) == n_rows:
        refuse_gaps(option, path, cells)
    return np.array(cells)


def refuse_gaps(option: str, path: Path, cells: list[str]) -> None:
    """Every row needs its label: a blank line, or an empty cell as pandas writes what is missing.

    Raises:
        InputError: with the first such row.
    """
    gaps = [row for row, cell in enumerate(cells) if not cell]
    if gaps:
        what = "a label" if option == "--labels" else "a group"
        raise InputError(
            f"{option} {path}: {len(gaps):,} of {len(cells):,} rows lack {what}, first row {gaps[0]} (from 0)."
        )
