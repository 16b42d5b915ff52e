"""A name or a path -> data with their origin."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from latentfit.data.folder import read_folder
from latentfit.data.idx import FILES, IDX_SETS, load_idx_set
from latentfit.data.readers import (
    Columns,
    Table,
    read_csv,
    read_h5ad,
    read_idx_file,
    read_npy,
    read_npz,
    read_parquet,
)
from latentfit.data.splits import FRACTIONS, MNIST_FRACTIONS
from latentfit.errors import InputError

READERS: dict[str, Callable[[Path, Columns], Table]] = {
    ".npy": read_npy,
    ".npz": read_npz,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".parquet": read_parquet,
    ".h5ad": read_h5ad,
}
#: suffixes of other programs' files -> what to do
ADVICE = {
    ".pt": "torch files are pickles; save the array with numpy.save",
    ".pth": "torch files are pickles; save the array with numpy.save",
    ".pkl": "pickles are never loaded; save the array with numpy.save",
    ".pickle": "pickles are never loaded; save the array with numpy.save",
    ".xlsx": "save the sheet as .csv",
    ".mat": "save the array with numpy.save(path, scipy.io.loadmat(...)[key])",
    ".h5": "save the array with numpy.save",
    ".zip": "unpack it and give the folder",
}
FORMATS = ".npy, .npz, .csv, .parquet, .h5ad, idx(.gz), or a folder of images"


@dataclass(frozen=True, slots=True)
class Source:
    """Data with their origin.

    Attributes:
        name: what was typed, or the file's stem.
        x: (N, *data_shape) in the dtype it is stored in.
        origin: one clause for people: size, range and where it is from.
        labels: (N,) or None.
        groups: (N,) labels of related rows, or None.
        columns: names of a table's columns, or None.
        is_test: (N,) bool, the set's own test rows, or None.
        constant_columns: names (or numbers) of a table's columns with one value, which carry no information.
        fractions: of train, validation, selection and test by which this set is split.
        built_in: whether the set is public, so that showing its rows is harmless.
    """

    name: str
    x: np.ndarray
    origin: str
    labels: np.ndarray | None = None
    groups: np.ndarray | None = None
    columns: tuple[str, ...] | None = None
    is_test: np.ndarray | None = None
    constant_columns: tuple[str, ...] = ()
    fractions: tuple[float, float, float, float] = FRACTIONS
    built_in: bool = False

    def __len__(self) -> int:
        return len(self.x)

    @property
    def n_test(self) -> int:
        """Number of the set's own test rows."""
        return 0 if self.is_test is None else int(self.is_test.sum())

    @property
    def fingerprint(self) -> str:
        """SHA-256 of shape, dtype and content, 64 hex digits: the same data, whatever file they came in."""
        digest = hashlib.sha256(f"{self.x.shape}{self.x.dtype.str}".encode())
        digest.update(np.ascontiguousarray(self.x).data.cast("B"))
        return digest.hexdigest()


def load(
    name_or_path: str | Path,
    data_dir: Path | None = None,
    *,
    labels_key: str | None = None,
    groups_key: str | None = None,
    drop: str | Sequence[str] = (),
    columns: Sequence[str] | None = None,
) -> Source:
    """Data by name, or from a file.

    Args:
        name_or_path: `digits`, `mnist`, `fashion-mnist`, or a path: .npy, .npz, .csv, .parquet, .h5ad,
            idx(.gz), or a folder of images.
        data_dir: where named sets are looked for first, and downloaded to.
        labels_key: where the labels are: a column, an array of the .npz, a column of obs, or a .npy file.
        groups_key: where the groups are, likewise.
        drop: a table's columns that are no data, such as numbers of rows, names and dates.
        columns: those that are, as of the table that a model was trained on; a table that has all of them is read
            in their order, and what else it has is left out.

    Raises:
        InputError: no such name or file, or one that cannot be used.
        MissingExtraError: the format needs an optional package.

    Example:
        >>> load("digits").origin
        'digits, 1,797 images 8x8, integers 0..16, from scikit-learn'
    """
    name = str(name_or_path)
    dropped = (drop,) if isinstance(drop, str) else tuple(drop)
    if name == "digits" or name in IDX_SETS:
        if dropped:
            raise InputError(_nothing_to_drop(name, dropped))
        return _digits() if name == "digits" else _idx_set(name, data_dir)
    path = Path(name_or_path)
    if not path.exists():
        raise InputError(_unknown(name))
    table = _read(path, Columns(labels_key, groups_key, dropped, None if columns is None else tuple(columns)))
    return _from_table(table, path)


def datasets() -> list[dict[str, Any]]:
    """The named sets: name, title, rows, shape, mirrors, and files (SHA-256 of the content uncompressed)."""
    listed: list[dict[str, Any]] = [
        {
            "name": "digits",
            "title": "Digits (scikit-learn)",
            "rows": 1797,
            "shape": [8, 8],
            "files": {},
            "mirrors": [],
        }
    ]
    for known in IDX_SETS.values():
        files = {f"{file}.gz": known.sha256[file] for file in FILES}
        entry = {"name": known.name, "title": known.title, "rows": 70_000, "shape": [28, 28]}
        listed.append({**entry, "files": files, "mirrors": list(known.mirrors)})
    return listed


def _digits() -> Source:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = digits.images.astype(np.uint8)
    origin = f"digits, {_describe(images)}, from scikit-learn"
    return Source("digits", images, origin, labels=digits.target, built_in=True)


def _idx_set(name: str, data_dir: Path | None) -> Source:
    known = IDX_SETS[name]
    images, labels, is_test = load_idx_set(known, None if data_dir is None else Path(data_dir))
    origin = f"{known.title}, {_describe(images)}, {int(is_test.sum()):,} of them for testing"
    return Source(name, images, origin, labels=labels, is_test=is_test, fractions=MNIST_FRACTIONS, built_in=True)


def _read(path: Path, columns: Columns) -> Table:
    reader = _reader(path)
    if columns.drop and reader not in (read_csv, read_parquet):
        raise InputError(_nothing_to_drop(path, columns.drop))
    return reader(path, columns)


def _reader(path: Path) -> Callable[[Path, Columns], Table]:
    if path.is_dir():
        return lambda folder, _: read_folder(folder)
    suffixes = [suffix.lower() for suffix in path.suffixes]
    suffix = suffixes[-1] if suffixes else ""
    if "idx" in path.name.lower() and suffix not in READERS:
        return read_idx_file
    if suffix == ".gz" and suffixes[-2:-1] and suffixes[-2] in (".csv", ".tsv"):
        return read_csv
    if suffix not in READERS:
        advice = ADVICE.get(suffix, "save the array with numpy.save")
        raise InputError(
            f"{path} has an unknown format {suffix or 'without suffix'!r}; expected {FORMATS}. Try: {advice}."
        )
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty (0 bytes).")
    return READERS[suffix]


def _from_table(table: Table, path: Path) -> Source:
    x = table.x
    if x.dtype.kind not in "biuf":
        raise InputError(f"{path} holds {x.dtype} entries, not numbers; encode text as numbers.")
    if x.ndim < 2:
        raise InputError(f"{path} has shape {x.shape}; expected rows first, (N, columns) or (N, *image).")
    if len(x) < 2 or 0 in x.shape:
        raise InputError(f"{path} has shape {x.shape}; expected at least 2 rows and 1 column.")
    if x.dtype.kind == "f":
        _require_finite(x, table.columns, path)
    for what, values in (("labels", table.labels), ("groups", table.groups)):
        if values is not None and values.shape != (len(x),):
            raise InputError(f"{path}: {what} have shape {values.shape}; expected one for each of the {len(x)} rows.")
    detail = f", {table.note}" if table.note else ""
    return Source(
        path.stem if path.is_file() else path.name,
        x,
        f"{path.name}, {_describe(x)}{detail}",
        labels=table.labels,
        groups=table.groups,
        columns=table.columns,
        constant_columns=_constant(x, table.columns),
    )


def _require_finite(x: np.ndarray, columns: tuple[str, ...] | None, path: Path) -> None:
    finite = np.isfinite(x)
    if finite.all():
        return
    bad = ~finite.reshape(len(x), -1)
    column = int(bad.any(axis=0).argmax())
    word = "NaN" if np.isnan(x).any() else "infinite"
    raise InputError(
        f"{path}: {bad.mean():.2g} of the entries are {word}, first in column "
        f"{columns[column] if columns else column!r}. Fill or drop them; in Python, Batch(x, "
        "mask=observed) marks "
        "what is missing."
    )


def _constant(x: np.ndarray, columns: tuple[str, ...] | None) -> tuple[str, ...]:
    if x.ndim != 2:
        return ()
    return tuple(columns[j] if columns else str(j) for j in np.flatnonzero((x == x[:1]).all(axis=0)))


def _describe(x: np.ndarray) -> str:
    """Size and range in words: "1,797 images 8x8, integers 0..16"."""
    low, high = x.min(), x.max()
    if x.ndim == 2:
        size = f"{x.shape[0]:,} rows of {x.shape[1]:,} columns"
    else:
        size = f"{x.shape[0]:,} images {'x'.join(map(str, x.shape[1:]))}"
    whole = x.dtype.kind in "biu" or bool((x == np.rint(x)).all())
    return f"{size}, " + (f"integers {int(low)}..{int(high)}" if whole else f"reals {low:.3g} to {high:.3g}")


def _nothing_to_drop(name: str | Path, dropped: Sequence[str]) -> str:
    return f"{name} has no named columns, so none to drop: {', '.join(dropped)}. Tables have: .csv, .tsv and .parquet."


def _unknown(name: str) -> str:
    names = ["digits", *IDX_SETS]
    close = difflib.get_close_matches(name.lower().replace("_", "-"), names, n=1, cutoff=0.7)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    known = f"Names: {', '.join(names)}; files: {FORMATS}."
    return f"No data {name!r}: neither a file nor a known name.{hint} {known}"
