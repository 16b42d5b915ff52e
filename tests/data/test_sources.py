from __future__ import annotations

import gzip
import importlib.util
import os
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from latentfit.data import idx
from latentfit.data.idx import FILES, IDX_SETS, IdxSet, load_idx_set, read_idx
from latentfit.data.sources import datasets, load
from latentfit.errors import InputError, LatentfitError, LatentfitWarning, MissingExtraError

rng = np.random.default_rng(0)
X = rng.standard_normal((10, 3))
Y = np.arange(10) % 2


def idx_bytes(array: np.ndarray) -> bytes:
    code = {np.dtype(dtype).newbyteorder("="): code for code, dtype in idx.DTYPES.items()}[array.dtype]
    shape = b"".join(n.to_bytes(4, "big") for n in array.shape)
    return bytes([0, 0, code, array.ndim]) + shape + array.astype(array.dtype.newbyteorder(">")).tobytes()


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


# ------------------------------------------------------------------ names


def test_digits():
    source = load("digits")
    assert source.origin == "digits, 1,797 images 8x8, integers 0..16, from scikit-learn"
    assert source.x.shape == (1797, 8, 8)
    assert source.x.dtype == np.uint8
    assert source.labels is not None
    assert source.labels.shape == (1797,)
    assert (source.n_test, source.built_in) == (0, True)


def real_data() -> Path:
    return Path(os.environ.get("LATENTFIT_DATA", Path(__file__).parents[2].parent / "shared" / "data"))


@pytest.mark.parametrize("name", list(IDX_SETS))
def test_the_real_sets(name):
    # reading checks the SHA-256 of all four files
    if not any((folder / f"{FILES[0]}.gz").is_file() for folder in (real_data() / name, real_data())):
        pytest.skip(f"{name} is not here")
    source = load(name, real_data())
    assert source.x.shape == (70_000, 28, 28)
    assert source.x.dtype == np.uint8
    assert source.n_test == 10_000
    assert source.is_test is not None
    assert source.is_test[-10_000:].all()
    assert source.labels is not None
    assert np.bincount(source.labels).shape == (10,)


def test_every_name_is_listed():
    listed = {entry["name"]: entry for entry in datasets()}
    assert set(listed) == {"digits", *IDX_SETS}
    assert all(len(digest) == 64 for entry in listed.values() for digest in entry["files"].values())


# ------------------------------------------------------------------ idx sets: found, downloaded, refused

IMAGES = rng.integers(0, 256, (6, 4, 4), dtype=np.uint8)
CONTENTS = {
    FILES[0]: idx_bytes(IMAGES[:4]),
    FILES[1]: idx_bytes(np.arange(4, dtype=np.uint8)),
    FILES[2]: idx_bytes(IMAGES[4:]),
    FILES[3]: idx_bytes(np.arange(2, dtype=np.uint8)),
}


def little_set(*mirrors: str) -> IdxSet:
    return IdxSet("little", "Little", mirrors, {file: idx._sha256(c) for file, c in CONTENTS.items()})


def store(folder: Path, **changed: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in CONTENTS.items():
        (folder / f"{file}.gz").write_bytes(gzip.compress(content))
    return folder


@pytest.fixture(autouse=True)
def nowhere(monkeypatch, tmp_path):
    """Neither the tester's own data nor their network are touched."""
    monkeypatch.delenv("LATENTFIT_DATA", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("place", ["data_dir", "data_dir/little", "environment", "environment/little", "data/little"])
def test_an_idx_set_is_found_where_it_may_lie(place, tmp_path, monkeypatch):
    store(tmp_path / place)
    monkeypatch.setenv("LATENTFIT_DATA", str(tmp_path / "environment"))
    x, labels, is_test = load_idx_set(little_set(), tmp_path / "data_dir")
    assert np.array_equal(x, IMAGES)
    assert labels.tolist() == [0, 1, 2, 3, 0, 1]
    assert is_test.tolist() == [False] * 4 + [True] * 2


def test_a_set_is_downloaded_checked_and_found_again(tmp_path):
    store(tmp_path / "mirror")
    bad = store(tmp_path / "damaged")
    for file in FILES:
        (bad / f"{file}.gz").write_bytes(gzip.compress(b"something else"))
    mirrors = (f"{bad.as_uri()}/", f"{(tmp_path / 'gone').as_uri()}/", f"{(tmp_path / 'mirror').as_uri()}/")
    x, _, _ = load_idx_set(little_set(*mirrors), tmp_path / "here")
    assert np.array_equal(x, IMAGES)
    assert sorted(p.name for p in (tmp_path / "here" / "little").iterdir()) == sorted(f"{f}.gz" for f in FILES)
    again, _, _ = load_idx_set(little_set(), tmp_path / "here")
    assert np.array_equal(again, IMAGES)


def test_offline_says_what_to_do(tmp_path):
    gone = (tmp_path / "gone").as_uri() + "/"
    with pytest.raises(InputError) as caught:
        load_idx_set(little_set(gone, gone, gone, gone))
    assert str(caught.value) == (
        "Little is not in data/ and could not be downloaded (4 mirrors tried, no network?). Put "
        "t10k-images-idx3-ubyte.gz and its three sisters into data/, or run: latentfit compare digits. "
        "Checksums: latentfit datasets."
    )
    assert not (tmp_path / "data").exists()


def test_a_damaged_file_is_named(tmp_path):
    folder = store(tmp_path / "d")
    (folder / f"{FILES[2]}.gz").write_bytes(gzip.compress(idx_bytes(IMAGES[:1])))
    with pytest.raises(InputError, match=rf"{FILES[2]}.gz is not Little's \(SHA-256 .* Delete it"):
        load_idx_set(little_set(), folder)


def test_the_sister_set_under_the_same_file_names_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setitem(IDX_SETS, "little", little_set())
    store(tmp_path / "d")
    other = IdxSet("other", "Other", (), dict.fromkeys(FILES, "0" * 64))
    with pytest.raises(InputError, match=r"Other is not in .* could not be downloaded"):
        load_idx_set(other, tmp_path / "d")


def test_an_unwritable_folder_is_named(tmp_path):
    write(tmp_path / "file", "in the way")
    mirror = store(tmp_path / "mirror").as_uri() + "/"
    with pytest.raises(InputError, match=r"cannot be written: .*; choose another data_dir"):
        load_idx_set(little_set(mirror), tmp_path / "file")


# ------------------------------------------------------------------ files


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "int32", "float32", "float64"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx(dtype, suffix, tmp_path):
    array = (rng.random((5, 2, 3)) * 100).astype(dtype)
    path = tmp_path / f"a-idx3{suffix}"
    path.write_bytes(gzip.compress(idx_bytes(array)) if suffix else idx_bytes(array))
    source = load(path)
    assert source.x.dtype == np.dtype(dtype)
    assert np.array_equal(source.x, array)


@pytest.mark.parametrize("dtype", ["uint8", "int64", "float32", "float64", "bool"])
def test_npy_keeps_its_dtype(dtype, tmp_path):
    x = (rng.random((6, 2, 2)) * 2).astype(dtype)
    np.save(tmp_path / "a.npy", x)
    np.save(tmp_path / "y.npy", np.arange(6))
    source = load(tmp_path / "a.npy", labels_key=str(tmp_path / "y.npy"))
    assert source.x.dtype == np.dtype(dtype)
    assert np.array_equal(source.x, x)
    assert source.labels is not None
    assert source.labels.tolist() == list(range(6))
    assert source.name == "a"


@pytest.mark.parametrize("key", ["x", "X", "data", "anything"])
def test_npz(key, tmp_path):
    np.savez(tmp_path / "a.npz", **{key: X, "y": Y})
    source = load(tmp_path / "a.npz")
    assert np.array_equal(source.x, X)
    assert source.labels is not None
    assert np.array_equal(source.labels, Y)


def test_npz_groups(tmp_path):
    np.savez(tmp_path / "a.npz", x=X, batch=Y)
    groups = load(tmp_path / "a.npz", groups_key="batch").groups
    assert groups is not None
    assert np.array_equal(groups, Y)


@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_csv(header, separator, tmp_path):
    frame = pd.DataFrame(X, columns=["a", "b", "c"])
    frame.to_csv(tmp_path / "a.csv", index=False, header=header, sep=separator)
    source = load(tmp_path / "a.csv")
    np.testing.assert_allclose(source.x, X)
    assert source.columns == (("a", "b", "c") if header else ("0", "1", "2"))


def test_csv_labels_groups_row_numbers_and_constant_columns(tmp_path):
    frame = pd.DataFrame({"a": Y, "who": ["u", "v"] * 5, "const": 3, "batch": Y})
    frame.to_csv(tmp_path / "a.csv")
    source = load(tmp_path / "a.csv", labels_key="who", groups_key="batch")
    assert source.columns == ("a", "const")
    assert source.constant_columns == ("const",)
    assert source.labels is not None
    assert source.labels.tolist() == ["u", "v"] * 5
    assert source.groups is not None
    assert source.origin == "a.csv, 10 rows of 2 columns, integers 0..3, row numbers in the first column left out"


def test_columns_that_are_no_data_are_dropped(tmp_path):
    frame = pd.DataFrame({"id": ["u", "v"] * 5, "b": Y, "when": "today", "a": X[:, 0], "who": Y})
    frame.to_csv(tmp_path / "a.csv", index=False)
    source = load(tmp_path / "a.csv", drop=["id", "when"], labels_key="who")
    assert source.columns == ("b", "a")
    assert source.origin.endswith(", left out: id, when")
    np.testing.assert_array_equal(source.labels, Y)
    assert load(tmp_path / "a.csv", drop="id", labels_key="when").columns == ("b", "a", "who")
    with pytest.raises(InputError, match=r"a\.csv has no column 'nope'"):
        load(tmp_path / "a.csv", drop=["id", "nope"])
    with pytest.raises(InputError, match=r"a\.npy has no named columns, so none to drop: id"):
        load(_npy(tmp_path / "a.npy", X), drop="id")
    with pytest.raises(InputError, match="digits has no named columns"):
        load("digits", drop="id")


def test_the_columns_of_a_model_are_found_in_a_wider_table(tmp_path):
    frame = pd.DataFrame({"id": ["u", "v"] * 5, "b": Y, "a": X[:, 0]})
    frame.to_csv(tmp_path / "a.csv", index=False)
    source = load(tmp_path / "a.csv", columns=("a", "b"))
    np.testing.assert_allclose(source.x, np.column_stack([X[:, 0], Y]), rtol=1e-12)
    assert source.origin.endswith(", left out: id")
    with pytest.raises(InputError, match="has no column c, which the model was trained with"):
        load(tmp_path / "a.csv", drop="id", columns=("a", "c"))


def test_csv_as_spreadsheets_write_it(tmp_path):
    write(tmp_path / "a.csv", '\ufeff"a";"b"\r\n1;2.5\r\n3;4\r\n')
    source = load(tmp_path / "a.csv")
    assert source.columns == ("a", "b")
    assert source.x.tolist() == [[1.0, 2.5], [3.0, 4.0]]


def test_gzipped_csv(tmp_path):
    pd.DataFrame(X).to_csv(tmp_path / "a.csv.gz", index=False, header=False)
    np.testing.assert_allclose(load(tmp_path / "a.csv.gz").x, X)


def test_parquet(tmp_path):
    pytest.importorskip("pyarrow")
    pd.DataFrame({"a": X[:, 0], "b": pd.array(Y, dtype="Int64"), "who": ["u"] * 10}).to_parquet(tmp_path / "a.parquet")
    source = load(tmp_path / "a.parquet", labels_key="who")
    np.testing.assert_array_equal(source.x, np.column_stack([X[:, 0], Y]))
    assert source.columns == ("a", "b")


@pytest.mark.parametrize("layer", [True, False])
@pytest.mark.parametrize("dense", [True, False])
def test_h5ad(layer, dense, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        anndata = pytest.importorskip("anndata")
        from scipy import sparse

        counts = rng.poisson(1.0, (10, 4)).astype(np.float32)
        kept = counts if dense else sparse.csr_matrix(counts)
        obs = pd.DataFrame({"state": ["u", "v"] * 5}, index=[str(i) for i in range(10)])
        var = pd.DataFrame(index=list("abcd"))
        x, layers = (np.log1p(counts), {"counts": kept}) if layer else (kept, {})
        anndata.AnnData(x, obs=obs, var=var, layers=layers).write_h5ad(tmp_path / "a.h5ad")
    source = load(tmp_path / "a.h5ad", labels_key="obs:state")
    assert np.array_equal(source.x, counts)
    assert source.columns == ("a", "b", "c", "d")
    assert source.labels is not None
    assert source.labels.tolist() == ["u", "v"] * 5
    with pytest.raises(InputError, match="has no obs column 'nope'; it has state"):
        load(tmp_path / "a.h5ad", labels_key="nope")


@pytest.mark.parametrize("colour", [False, True])
def test_folder_of_images(colour, tmp_path):
    image = pytest.importorskip("PIL.Image")
    pixels = rng.integers(0, 256, (4, 5, 6, 3) if colour else (4, 5, 6), dtype=np.uint8)
    for i, p in enumerate(pixels):
        folder = tmp_path / "cats" if i < 2 else tmp_path / "dogs"
        folder.mkdir(exist_ok=True)
        image.fromarray(p).save(folder / f"{i}.png")
    source = load(tmp_path)
    assert np.array_equal(source.x, pixels.transpose(0, 3, 1, 2) if colour else pixels)
    assert source.labels is not None
    assert source.labels.tolist() == ["cats", "cats", "dogs", "dogs"]


def test_the_fingerprint_is_that_of_the_data(tmp_path):
    np.save(tmp_path / "a.npy", X)
    np.savez(tmp_path / "b.npz", x=X)
    np.save(tmp_path / "c.npy", X + 1e-9)
    a, b, c = (load(tmp_path / name).fingerprint for name in ("a.npy", "b.npz", "c.npy"))
    assert a == b
    assert a != c


# ------------------------------------------------------------------ what cannot be used


def _npy(path, array):
    np.save(path, array, allow_pickle=True)
    return path


def _truncated(path, keep=0.6):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    return path


def _npz(path, **arrays):
    np.savez(path, **arrays)
    return path


def _bytes(path, content):
    path.write_bytes(content)
    return path


def _flipped(path):
    np.savez_compressed(path, x=np.arange(2000.0).reshape(100, 20))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    return _bytes(path, bytes(content))


def _png(folder, name, size, mode="L"):
    image = pytest.importorskip("PIL.Image")
    image.new(mode, size).save(folder / name)
    return folder


def _deviating(d):
    _png(d, "a.png", (4, 4))
    return _png(d, "b.png", (4, 5))


def _colourful(d):
    _png(d, "a.png", (4, 4))
    return _png(d, "b.png", (4, 4), "RGB")


def _broken_image(d):
    _bytes(d / "b.png", b"no image")
    return d


NAN = X.copy()
NAN[2, 1] = np.nan
GOOD_IDX = idx_bytes(IMAGES)

BAD = {
    "missing file": (
        lambda d: d / "no.npy",
        "No data '.*no.npy': neither a file nor a known name. Names: digits",
    ),
    "misspelt name": (lambda d: "Fashion_MNIST", "No data 'Fashion_MNIST'.* Did you mean 'fashion-mnist'"),
    "unknown format": (lambda d: write(d / "a.txt", "1"), "unknown format '.txt'; expected .npy"),
    "torch file": (
        lambda d: write(d / "a.pt", "1"),
        "torch files are pickles; save the array with numpy.save",
    ),
    "no suffix": (lambda d: write(d / "a", "1"), "unknown format 'without suffix'"),
    "empty file": (lambda d: write(d / "a.npy", ""), "a.npy is empty \\(0 bytes\\)"),
    "not an npy": (lambda d: write(d / "a.npy", "hello, hello"), "a.npy is not a .npy file"),
    "pickled npy": (
        lambda d: _npy(d / "a.npy", np.array([{}, 1], dtype=object)),
        "holds pickled Python objects, which are never loaded",
    ),
    "truncated npy": (
        lambda d: _truncated(_npy(d / "a.npy", X)),
        "a.npy cannot be read: it is truncated or damaged",
    ),
    "text npy": (lambda d: _npy(d / "a.npy", np.array([["a", "b"]] * 3)), "holds <U1 entries, not numbers"),
    "one axis": (lambda d: _npy(d / "a.npy", np.zeros(5)), r"has shape \(5,\); expected rows first"),
    "one row": (lambda d: _npy(d / "a.npy", np.zeros((1, 5))), "expected at least 2 rows and 1 column"),
    "NaN": (
        lambda d: _npy(d / "a.npy", NAN),
        r"0.033 of the entries are NaN, first in column 1. .*Batch\(x, mask",
    ),
    "inf": (
        lambda d: _npy(d / "a.npy", np.where(np.isnan(NAN), np.inf, NAN)),
        "are infinite",
    ),
    "not an npz": (lambda d: write(d / "a.npz", "hello"), "a.npz cannot be read"),
    "truncated npz": (lambda d: _truncated(_npz(d / "a.npz", x=X)), "it is not a complete .npz file"),
    "npy named npz": (lambda d: _npy(d / "a.npy", X).rename(d / "a.npz"), "it is not a complete .npz file"),
    "npz with a flipped byte": (
        lambda d: _flipped(d / "a.npz"),
        "a.npz cannot be read: it is truncated or damaged",
    ),
    "pickled npz": (lambda d: _npz(d / "a.npz", x=np.array([{}], dtype=object)), "pickled Python objects"),
    "ambiguous npz": (
        lambda d: _npz(d / "a.npz", a=X, b=X),
        "holds a, b; expected an array named x, X or data",
    ),
    "short labels": (
        lambda d: _npz(d / "a.npz", x=X, y=Y[:3]),
        r"labels have shape \(3,\); expected one for each",
    ),
    "empty csv": (lambda d: write(d / "a.csv", "\n\n"), "a.csv is empty; expected rows of numbers"),
    "header only": (lambda d: write(d / "a.csv", "a,b\n"), "a.csv has 0 rows and 2 columns of data"),
    "ragged csv": (
        lambda d: write(d / "a.csv", "a,b\n1,2\n1,2,3,4\n"),
        "a.csv has rows of different lengths",
    ),
    "text column": (
        lambda d: write(d / "a.csv", "a,species\n1,setosa\n2,setosa\n"),
        "column 'species' is not numeric .first value 'setosa'.*drop='species'.*labels_key='species'",
    ),
    "missing values": (
        lambda d: write(d / "a.csv", "a,b\n1,2\n1,\n3,4\n"),
        r"column 'b' has 1 of its 3 values missing, first in row 1 \(from 0\)",
    ),
    "several columns": (
        lambda d: write(d / "a.csv", "who,a,smoker,bmi\nx,1,no,2\ny,1,yes,\n"),
        "column 'who' is not numeric .*Text or missing values too: smoker, bmi",
    ),
    "a slip among numbers": (
        lambda d: write(d / "a.csv", "a,b\n1,2\n1,oops\n3,4\n"),
        r"column 'b' has 'oops' in row 1 \(from 0\), which is no number, and 1 such of 3 in all",
    ),
    "decimal commas": (
        lambda d: write(d / "a.csv", "a;b\n1;2,5\n3;4\n"),
        r"column 'b' has '2,5' in row 0 \(from 0\): write decimals with points",
    ),
    "latin-1 csv": (lambda d: _bytes(d / "a.csv", "a,b\né,1\n".encode("latin-1")), "a.csv is not utf-8 text"),
    "truncated csv.gz": (
        lambda d: _bytes(d / "a.csv.gz", gzip.compress(b"1,2\n" * 500)[:-20]),
        "a.csv.gz cannot be read",
    ),
    "not a parquet": (lambda d: write(d / "a.parquet", "hello"), "is not a readable .parquet file"),
    "not an h5ad": (lambda d: write(d / "a.h5ad", "hello"), "is not a readable .h5ad file"),
    "truncated idx.gz": (
        lambda d: _bytes(d / "a-idx3.gz", gzip.compress(GOOD_IDX)[:-9]),
        r"is truncated or damaged \(not a complete gzip file\)",
    ),
    "not idx": (
        lambda d: _bytes(d / "a-idx3", b"\x89PNG...."),
        "is not an idx file: it begins with 89 50 4e 47",
    ),
    "short idx": (lambda d: _bytes(d / "a-idx3", GOOD_IDX[:-1]), "promises 96 bytes of data .* it holds 95"),
    "empty idx": (lambda d: _bytes(d / "a-idx3", b""), "is not an idx file: it begins with nothing"),
    "no images": (lambda d: d, "holds no images; looked for .png"),
    "image of another size": (
        _deviating,
        r"b.png is 4x5 grey uint8, but a.png is 4x4 grey uint8; all images",
    ),
    "image in colour": (_colourful, r"b.png is 4x4 colour uint8, but a.png is 4x4 grey uint8"),
    "broken image": (_broken_image, "b.png cannot be read as an image"),
}


@pytest.mark.parametrize("case", BAD, ids=list(BAD))
def test_what_cannot_be_used_is_refused_in_one_line(case, tmp_path):
    make, message = BAD[case]
    folder = tmp_path / "d"
    folder.mkdir()
    with pytest.raises(InputError, match=message) as caught:
        load(make(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ({"labels_key": "nope"}, "a.csv has no column 'nope'; its columns are a, b"),
        ({"groups_key": "nope"}, "a.csv has no column 'nope'; its columns are a, b"),
    ],
)
def test_an_unknown_column_is_answered_with_those_there_are(key, message, tmp_path):
    with pytest.raises(InputError, match=message):
        load(write(tmp_path / "a.csv", "a,b\n1,2\n3,4\n"), **key)


@pytest.mark.parametrize(
    ("key", "message"),
    [("species", "has no named columns, so 'species' is not in it"), ("no.npy", "no.npy does not exist")],
)
def test_labels_of_a_nameless_format_are_a_file(key, message, tmp_path):
    with pytest.raises(InputError, match=message):
        load(_npy(tmp_path / "a.npy", X), labels_key=key)


@pytest.mark.parametrize(
    ("file", "extra"), [("a.parquet", "parquet"), ("a.h5ad", "anndata"), ("pictures/a.png", "images")]
)
def test_a_missing_extra_is_named(file, extra, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    write(path, "content")
    with pytest.raises(MissingExtraError, match=rf'pip install "latentfit\[{extra}\]"'):
        load(path if extra != "images" else path.parent)


def test_an_unreadable_file_is_one_line(tmp_path):
    (tmp_path / "a.npy").mkdir()
    with pytest.raises(LatentfitError, match="holds no images"):
        load(tmp_path / "a.npy")
    with pytest.raises(InputError, match="cannot be read"):
        read_idx(tmp_path)


@pytest.mark.parametrize(
    ("columns", "header", "index"),
    [
        (["0", "1", "2"], True, False),  # pandas' own names
        (["a", "b", "c"], True, True),  # and its index, without a name
        (["a", "", "c"], True, False),
        (["a", "b", "c"], False, False),
    ],
)
def test_a_header_is_told_from_a_first_row(tmp_path, columns, header, index):
    x = np.random.default_rng(0).normal(size=(20, 3))
    pd.DataFrame(x, columns=columns).to_csv(tmp_path / "x.csv", header=header, index=index)
    assert load(str(tmp_path / "x.csv")).x.shape == (20, 3)


def test_a_first_row_with_words_or_gaps_is_no_header(tmp_path):
    """As the iris data are published: no header, and the class in the last column."""
    rows = pd.DataFrame(np.random.default_rng(0).normal(size=(20, 3))).assign(kind="setosa")
    rows.to_csv(tmp_path / "x.csv", header=False, index=False)
    with pytest.raises(InputError, match="column '3' is not numeric"):
        load(str(tmp_path / "x.csv"))
    assert load(str(tmp_path / "x.csv"), labels_key="3").x.shape == (20, 3)
    rows.drop(columns="kind").mask(rows.index.to_numpy()[:, None] == [0, -1, -1]).to_csv(
        tmp_path / "gap.csv", header=False, index=False
    )
    with pytest.raises(InputError, match="missing, first in row 0"):
        load(str(tmp_path / "gap.csv"))
    (rows.iloc[:, :3] > 0).to_csv(tmp_path / "flags.csv", header=False, index=False)
    assert len(load(str(tmp_path / "flags.csv")).x) == 20


def test_years_that_may_be_names_are_told(tmp_path):
    x = pd.DataFrame(np.random.default_rng(0).normal(size=(20, 3)), columns=[2019, 2020, 2021])
    x.to_csv(tmp_path / "x.csv", index=False)
    with pytest.warns(LatentfitWarning, match="The first line, 2019, 2020, 2021, ..., is read as a row of numbers"):
        assert len(load(str(tmp_path / "x.csv")).x) == 21
