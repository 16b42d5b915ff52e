from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from latentfit.data.batch import Batch
from latentfit.data.noise import Binarise
from latentfit.data.rows import Rows, as_batch
from latentfit.errors import InputError

X = np.random.default_rng(0).standard_normal((12, 3))


class Items(Dataset):
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


class Stream(IterableDataset):
    def __iter__(self):
        return ((torch.from_numpy(row), 0) for row in X)


class NoLength(Dataset):
    def __getitem__(self, i):
        return torch.zeros(3)


def read_only():
    x = X.copy()
    x.flags.writeable = False
    return x


@pytest.mark.parametrize(
    "given",
    [
        X,
        X.tolist(),
        torch.from_numpy(X),
        torch.from_numpy(X).requires_grad_(),
        pd.DataFrame(X, columns=["a", "b", "b"]),
        pd.DataFrame(X).astype("Float64"),
        sparse.csr_matrix(X),
        TensorDataset(torch.from_numpy(X), torch.zeros(12)),
        Items([(torch.from_numpy(row), 1) for row in X]),
        Items(list(X)),
        Stream(),
        DataLoader(TensorDataset(torch.from_numpy(X), torch.zeros(12)), batch_size=5),
        DataLoader(Items(list(X)), batch_size=5),
        Batch(torch.from_numpy(X)),
        X.astype(">f8"),
        read_only(),
        X[::-1][::-1],
        np.asfortranarray(X),
    ],
    ids=lambda given: type(given).__name__,
)
def test_every_kind_of_data_gives_the_same_rows(given):
    batch = as_batch(given, dtype=torch.float64)
    assert batch.x.dtype == torch.float64
    assert not batch.x.requires_grad
    np.testing.assert_array_equal(batch.x.numpy(), X)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int16", "uint16", "uint32", "int64", "float16", "float32"])
def test_number_types_become_float32(dtype):
    x = np.array([[0, 1], [1, 0]], dtype=dtype)
    batch = as_batch(x)
    assert batch.x.dtype == torch.float32
    np.testing.assert_array_equal(batch.x.numpy(), x.astype(np.float32))


def test_a_shuffling_loader_is_read_once_in_its_order():
    generator = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.arange(20.0).unsqueeze(1))
    x = as_batch(DataLoader(data, batch_size=4, shuffle=True, generator=generator)).x[:, 0]
    assert sorted(x.tolist()) == list(range(20))
    assert x.tolist() != list(range(20))


def test_the_result_does_not_share_memory_with_what_is_changed_later():
    x = X.astype(np.float32).copy()
    rows = Rows(as_batch(x))
    before = rows.batch(torch.arange(12)).x.clone()
    picked = rows.batch(torch.arange(12))
    picked.x.zero_()
    assert torch.equal(rows.batch(torch.arange(12)).x, before)


def test_fields_go_along():
    context = np.arange(12)
    mask = torch.ones(12, 3, dtype=torch.bool)
    batch = as_batch(Batch(torch.from_numpy(X), weight=torch.rand(12), mask=mask), context=context)
    rows = Rows(batch)
    index = torch.tensor([7, 0, 7])
    picked = rows.batch(index)
    assert picked.context.shape == (3, 1)
    assert picked.context.flatten().tolist() == [7, 0, 7]
    assert torch.equal(picked.index, index)
    assert torch.equal(picked.weight, batch.weight[index])
    assert torch.equal(picked.mask, mask[index])


def test_unobserved_entries_may_be_nan():
    x = torch.tensor([[1.0, float("nan")], [2.0, 3.0]])
    batch = as_batch(Batch(x, mask=~x.isnan()))
    assert torch.equal(batch.x, torch.tensor([[1.0, 0.0], [2.0, 3.0]]))


def test_a_subset_keeps_its_row_numbers():
    rows = Rows(as_batch(X)).subset(torch.tensor([9, 4, 2])).subset(np.array([1, 2]))
    assert len(rows) == 2
    assert rows.all().index.tolist() == [4, 2]
    assert torch.equal(rows.batch(torch.tensor([1])).x, as_batch(X).x[[2]])


def test_rows_are_prepared_afresh_each_time():
    grey = torch.full((4, 200), 0.5)
    rows = Rows(Batch(grey), Binarise(torch.Generator().manual_seed(0)))
    first, second = rows.all().x, rows.batch(torch.arange(4)).x
    assert set(first.unique().tolist()) == {0.0, 1.0}
    assert not torch.equal(first, second)


def test_one_row_is_enough_where_nothing_is_fitted():
    assert len(as_batch(X[:1], min_rows=1)) == 1


NAN = X.copy()
NAN[3, 1] = np.nan
INF = X.copy()
INF[0, 2] = np.inf


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.float64(3.0), "X is a single number; expected rows first"),
        (np.zeros(5), r"X is one-dimensional, \(5,\).*x.reshape\(-1, 1\)"),
        (np.zeros((0, 3)), r"X is empty: 0 rows, shape \(0, 3\)"),
        (np.zeros((3, 0)), r"0 feature\(s\) \(shape=\(3, 0\)\) while a minimum of 1 is required"),
        (np.zeros((1, 3)), r"X has one row \(1 sample\), shape \(1, 3\); at least 2 are needed"),
        (NAN, r"X: 2.78 % of the entries are NaN, first in column 1; .*Batch\(x, mask=observed\)"),
        (INF, r"X: 2.78 % of the entries are infinite \(inf\), first in column 2"),
        (pd.DataFrame(NAN, columns=list("abc")), r"X: 2.78 % of the entries are NaN, first in column 'b'"),
        (np.full((3, 2), 1e300), "X reaches 1e[+]300, too large for float32"),
        (np.array([["a"], ["b"]]), "X holds a str32 entries, not numbers"),
        (np.array([[{}], [1]], dtype=object), "X holds an object entries, not numbers"),
        (np.zeros((3, 2), dtype=complex), "Complex data not supported: X is torch.complex128"),
        (np.zeros((3, 2), dtype="datetime64[s]"), r"X holds a datetime64\[s\] entries"),
        (pd.DataFrame({"a": [1, 2], "who": ["x", "y"]}), "X: column 'who' is not numeric .*first value 'x'"),
        ([[1, 2], [3]], "X is a list with rows of different lengths"),
        ("cells.npy", r"X is a str; .*load\(path\) reads files"),
        ({"x": X}, "X is a dict; expected an array, a tensor"),
        (None, "X is a NoneType; expected an array, a tensor"),
        (object(), "X is an object; expected an array, a tensor"),
        (Items([]), "X is empty: it gave no item"),
        (Items([np.zeros(3), np.zeros(4)]), r"X: item 1 has rows of shape \(4,\), the first \(3,\)"),
        (Items([{"x": 1}]), r"X gives dictionaries \(x\); expected tensors"),
        (NoLength(), "the Dataset NoLength has no length"),
        (DataLoader(Items(["a", "b"])), "X holds a str|X gives a list|X holds"),
        (
            Batch(torch.zeros(3, 2), mask=torch.ones(3, 1)),
            r"X: the mask has shape \(3, 1\), the data \(3, 2\)",
        ),
    ],
)
def test_what_is_no_data_is_refused_in_one_line(given, message):
    with pytest.raises(InputError, match=message) as caught:
        as_batch(given)
    assert "\n" not in str(caught.value)


def test_contexts_must_match():
    with pytest.raises(InputError, match="context has 5 rows, X 12; they must agree"):
        as_batch(X, context=np.zeros(5))


def test_the_argument_is_named():
    with pytest.raises(InputError, match="X_test has one row"):
        as_batch(X[:1], what="X_test")


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.ones(11), r"weight has shape \(11,\), expected \(12,\)"),
        (torch.full((12,), -1.0), "weight must be finite, 0 or more"),
        (torch.zeros(12), "and not all 0"),
        (torch.full((12,), torch.nan), "weight must be finite"),
    ],
)
def test_weights_are_one_for_each_row(weight, message):
    with pytest.raises(InputError, match=message):
        as_batch(Batch(torch.rand(12, 3), weight=weight))


def test_a_column_of_weights_is_flattened():
    """(N, 1) times (N,) would be (N, N)."""
    assert as_batch(Batch(torch.rand(12, 3), weight=torch.ones(12, 1))).weight.shape == (12,)
