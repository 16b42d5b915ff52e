"""One reader for each file format. Each gives a `Table`; every bad file is one `InputError` line."""

from __future__ import annotations

import re
import warnings
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from latentfit.data.idx import read_idx
from latentfit.errors import DataWarning, InputError, MissingExtraError

DATA_KEYS = ("x", "X", "data")
LABEL_KEYS = ("y", "labels", "label", "target")


@dataclass(frozen=True, slots=True)
class Table:
    """What a file holds: x (N, *data_shape) in its own dtype, and what came with it."""

    x: np.ndarray
    labels: np.ndarray | None = None
    groups: np.ndarray | None = None
    columns: tuple[str, ...] | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Columns:
    """What a file's columns are, by their names.

    Attributes:
        labels, groups: a column of a table or of obs, an array of an .npz, or a .npy file.
        drop: columns of a table that are no data.
        wanted: the data, in this order; a table's other columns are left out.
    """

    labels: str | None = None
    groups: str | None = None
    drop: tuple[str, ...] = ()
    wanted: tuple[str, ...] | None = None


def read_npy(path: Path, columns: Columns) -> Table:
    """A .npy file; labels and groups from .npy files of their own."""
    x = load_array(path)
    return Table(x, _own_file(columns.labels, path), _own_file(columns.groups, path))


def load_array(path: Path) -> np.ndarray:
    """The array of a .npy file; pickled objects are refused."""
    try:
        with path.open("rb") as file:
            if file.read(6) != b"\x93NUMPY":
                raise InputError(f"{path} is not a .npy file; write it with numpy.save.")
        array = np.load(path, allow_pickle=False)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from None
    except (ValueError, EOFError) as error:
        raise InputError(f"{path} cannot be read: {_load_error(error)}") from None
    return array


def read_npz(path: Path, columns: Columns) -> Table:
    """A .npz file: the array x, X or data, or the only one; y or labels where present."""
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path} cannot be read: it is not a complete .npz file; write it with numpy.savez.")
    try:
        # numpy leaves a file open that it opened itself and that is no archive
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            keys = list(archive.files)
            label_key = _pick(columns.labels, LABEL_KEYS, keys, path)
            group_key = _pick(columns.groups, ("groups",), keys, path)
            others = [key for key in keys if key not in (label_key, group_key)]
            named = [key for key in DATA_KEYS if key in others]
            key = named[0] if named else (others[0] if len(others) == 1 else None)
            if key is None:
                held = ", ".join(keys) or "nothing"
                raise InputError(f"{path} holds {held}; expected an array named x, X or data, or a single one.")
            arrays = {name: archive[name] for name in (key, label_key, group_key) if name is not None}
    except InputError:
        raise
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, OSError, KeyError) as error:
        raise InputError(f"{path} cannot be read: {_load_error(error)}") from None
    labels = None if label_key is None else arrays[label_key]
    return Table(arrays[key], labels, None if group_key is None else arrays[group_key])


def read_csv(path: Path, columns: Columns) -> Table:
    """A .csv or .tsv file of numeric columns; separator and header as its first two lines show."""
    import pandas as pd

    compressed = path.suffix.lower() == ".gz"
    try:
        head = pd.read_csv(path, nrows=2, header=None, sep="\0", engine="python", dtype=str, quoting=3)
        lines = [str(line) for line in head.iloc[:, 0]]
        separator = max((",", ";", "\t"), key=lines[0].count)
        has_header = _is_header(*([cell.strip().strip('"') for cell in line.split(separator)] for line in lines))
        frame = pd.read_csv(path, sep=separator, header=0 if has_header else None)
    except (pd.errors.EmptyDataError, IndexError):
        raise InputError(f"{path} is empty; expected rows of numbers.") from None
    except pd.errors.ParserError as error:
        detail = " ".join(str(error).split()).removeprefix("Error tokenizing data. C error: ")
        raise InputError(
            f"{path} has rows of different lengths ({detail}); every row needs the same columns."
        ) from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not utf-8 text; save it as utf-8{' or .gz' if compressed else ''}.") from None
    except (OSError, EOFError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}.") from None
    frame.columns = [str(name) for name in frame.columns]
    return _from_frame(frame, path, columns)


def read_parquet(path: Path, columns: Columns) -> Table:
    """A .parquet file of numeric columns."""
    import pandas as pd

    require_package("pyarrow", "parquet", path)
    try:
        frame = pd.read_parquet(path)
    except (OSError, ValueError, NotImplementedError) as error:  # what pyarrow's own errors derive from
        raise InputError(f"{path} is not a readable .parquet file: {_one_line(error)}.") from None
    frame.columns = [str(name) for name in frame.columns]
    return _from_frame(frame, path, columns)


def read_h5ad(path: Path, columns: Columns) -> Table:
    """An AnnData file: layers["counts"] where it exists, else X; labels and groups are columns of obs."""
    require_package("anndata", "anndata", path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # anndata's remarks on its own storage format
        import anndata

        try:
            adata = anndata.read_h5ad(path)
        except (OSError, KeyError, ValueError, AttributeError, TypeError, RuntimeError) as error:
            raise InputError(f"{path} is not a readable .h5ad file: {_one_line(error)}.") from None
    counts = "counts" in adata.layers
    matrix: Any = adata.layers["counts"] if counts else adata.X
    if matrix is None:
        raise InputError(f"{path} has neither X nor layers['counts'] (a minified file?); expected expression values.")
    x = np.asarray(matrix.toarray() if hasattr(matrix, "toarray") else matrix)
    return Table(
        x,
        _obs(adata, columns.labels, path),
        _obs(adata, columns.groups, path),
        tuple(map(str, adata.var_names)),
        "layers['counts']" if counts else "X",
    )


def read_idx_file(path: Path, columns: Columns) -> Table:
    """An idx file, gzipped or not."""
    return Table(read_idx(path), _own_file(columns.labels, path), _own_file(columns.groups, path))


def _from_frame(frame: Any, path: Path, columns: Columns) -> Table:
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    notes = []
    if len(frame.columns) and frame.columns[0] == "Unnamed: 0" and _counts_rows(frame["Unnamed: 0"].to_numpy()):
        frame = frame.drop(columns="Unnamed: 0")
        notes.append("row numbers in the first column left out")
    taken = {}
    for key in filter(None, (columns.labels, columns.groups, *columns.drop)):
        if key not in frame.columns:
            raise InputError(f"{path} has no column {key!r}; its columns are {_listed(frame.columns)}.")
        taken[key] = frame[key].to_numpy()
    frame = frame.drop(columns=list(taken))
    left_out = list(columns.drop)
    if columns.wanted is not None and frame.columns.is_unique:
        absent = [name for name in columns.wanted if name not in frame.columns]
        if absent:
            raise InputError(
                f"{path} has no column {_listed(absent)}, which the model was trained with; its columns are "
                f"{_listed(frame.columns)}."
            )
        left_out += [name for name in frame.columns if name not in columns.wanted]
        frame = frame[list(columns.wanted)]
    if left_out:
        notes.append(f"left out: {_listed(left_out)}")
    if len(frame) == 0 or frame.shape[1] == 0:
        raise InputError(f"{path} has {len(frame)} rows and {frame.shape[1]} columns of data; expected numbers.")
    wrong = {}
    for position, name in enumerate(frame.columns):
        column = frame.iloc[:, position]
        if not (is_numeric_dtype(column.dtype) or is_bool_dtype(column.dtype)):
            wrong[name] = _not_numbers(column, str(name))
        elif column.isna().any():
            row = int(column.isna().to_numpy().argmax())
            wrong[name] = (
                f"has {int(column.isna().sum()):,} of its {len(column):,} values missing, first in row {row} (from 0). "
                "Fill or drop them; in Python, Batch(x, mask=observed) marks them."
            )
    if wrong:
        first, *others = wrong
        too = f" Text or missing values too: {_listed(others)}." if others else ""
        raise InputError(f"{path}: column {first!r} {wrong[first]}{too}")
    x = frame.to_numpy()
    if x.dtype.kind == "O":  # pandas' own nullable types
        x = frame.to_numpy(dtype=np.float64)
    return Table(
        x,
        taken.get(columns.labels) if columns.labels else None,
        taken.get(columns.groups) if columns.groups else None,
        tuple(frame.columns),
        ", ".join(notes),
    )


def _not_numbers(column: Any, name: str) -> str:
    """Why a column of text cannot be used: a slip among numbers, decimal commas, or words."""
    import pandas as pd

    wrong = pd.to_numeric(column, errors="coerce").isna() & column.notna()
    row = int(wrong.to_numpy().argmax())
    value = column.iloc[row]
    if re.fullmatch(r"[-+]?\d+,\d+", str(value)):
        return f"has {value!r} in row {row} (from 0): write decimals with points, not commas."
    if 2 * wrong.sum() < len(column):
        return (
            f"has {value!r} in row {row} (from 0), which is no number, and {int(wrong.sum()):,} such of "
            f"{len(column):,} in all. Mend or drop them."
        )
    return (
        f"is not numeric (first value {column.iloc[0]!r}). Leave it out: drop={name!r}, use it as labels: "
        f"labels_key={name!r}, or encode it (pandas.get_dummies)."
    )


def _counts_rows(column: np.ndarray) -> bool:
    """Whether a nameless first column is what `to_csv` and R write unasked."""
    return any(np.array_equal(column, np.arange(start, start + len(column))) for start in (0, 1))


def _own_file(key: str | None, path: Path) -> np.ndarray | None:
    """Labels beside a format that has no names: a .npy file."""
    if key is None:
        return None
    if not key.endswith(".npy"):
        raise InputError(
            f"{path} has no named columns, so {key!r} is not in it; give a .npy file with one entry a row."
        )
    if not Path(key).is_file():
        raise InputError(f"{key} does not exist.")
    return load_array(Path(key))


def _obs(adata: Any, key: str | None, path: Path) -> np.ndarray | None:
    if key is None:
        return None
    column = key.removeprefix("obs:")
    if column not in adata.obs:
        raise InputError(f"{path} has no obs column {column!r}; it has {_listed(adata.obs.columns)}.")
    return np.asarray(adata.obs[column])


def _pick(wanted: str | None, usual: Sequence[str], keys: Sequence[str], path: Path) -> str | None:
    if wanted is not None and wanted not in keys:
        raise InputError(f"{path} has no array {wanted!r}; it holds {_listed(keys)}.")
    return wanted if wanted is not None else next((key for key in usual if key in keys and len(keys) > 1), None)


def require_package(package: str, extra: str, path: Path) -> None:
    import importlib.util

    if importlib.util.find_spec(package) is None:
        raise MissingExtraError(f'Reading {path.name} needs {package}: pip install "latentfit[{extra}]".')


def _load_error(error: Exception) -> str:
    text = _one_line(error)
    if "pickle" in text.lower():
        return "it holds pickled Python objects, which are never loaded; save plain numbers (x.astype(float))."
    return f"it is truncated or damaged ({text})."


def _is_header(first: list[str], second: list[str] | None = None) -> bool:
    """Whether the first line of a table names its columns: words stand above numbers, or it counts them from 0.

    An empty first cell before words, or before such a count, is the name of an index; any other is a missing value.

    >>> _is_header(["age", "height"], ["31", "1.8"]), _is_header(["5.1", "3.5", "setosa"], ["4.9", "3.0", "setosa"])
    (True, False)
    """
    if second is None:
        return not all(map(_is_number, first))
    words = first if first[0] else first[1:]
    if len(words) > 1 and words == [str(column) for column in range(len(words))]:
        return True
    named = [bool(cell) and not _is_number(cell) for cell in first]
    named[0] = named[0] or (len(words) < len(first) and not any(map(_is_number, words)))
    if any(name and _is_number(below) for name, below in zip(named, second, strict=False)):
        return True
    if all(map(_is_number, first)) and _could_be_names(first, second):
        warnings.warn(
            f"The first line, {', '.join(first[:3])}, ..., is read as a row of numbers. If it names the columns, give "
            "them names that are no numbers.",
            DataWarning,
            stacklevel=2,
        )
    return all(named)


def _could_be_names(first: list[str], second: list[str]) -> bool:
    """Whole numbers, each larger than the one before, such as years, above numbers that are not whole."""
    try:
        above, below = [int(cell) for cell in first], [float(cell) for cell in second]
    except ValueError:
        return False
    rising = all(a < b for a, b in pairwise(above))
    return len(above) > 1 and rising and not all(value.is_integer() for value in below)


def _is_number(cell: str) -> bool:
    if cell.strip().strip('"').lower() in ("true", "false"):
        return True
    try:
        float(cell.strip().strip('"'))
    except ValueError:
        return False
    return True


def _listed(names: Any) -> str:
    shown = [str(name) for name in names]
    return ", ".join(shown[:8]) + (", ..." if len(shown) > 8 else "")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200].rstrip(".")
