"""What a diagnosis and a retrofit work on: the model, rows to fit priors on, other rows to judge them by."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler, TensorDataset

from latentfit.adapters import Subject, subject
from latentfit.data.batch import Batch
from latentfit.data.noise import binarise_once
from latentfit.data.splits import is_missing, refuse_missing
from latentfit.errors import DataWarning, InputError
from latentfit.evaluation.codes import Codes, encode_rows, refuse_one_group
from latentfit.evaluation.ladder import Ladder, Progress, climb, cross_fit, split_rows
from latentfit.model import Prior

#: the share of training rows that finds the defensive weight
VALIDATION_SHARE = 0.1
#: numbers of training rows kept beside their codes, a gigabyte in float32; a loader is read through once
KEPT_NUMBERS = 250_000_000
LOADED_ROWS = 256
#: what a row without a label is called
UNLABELLED = "(no label)"
#: rows that priors are fitted on, and rows that judge them, at least
FEWEST_TRAIN, FEWEST_TEST = 20, 10


@dataclass(frozen=True)
class Material:
    """A model and its rows, encoded once.

    Where only one set of rows was given, `train` and `test` are halves of it, and `whole` has both in order.

    Attributes:
        subject: the model behind the contract.
        train: rows that proposals are fitted on, a seeded choice where a loader has more than memory should;
            test: rows everything is judged by.
        codes_train, codes_test: q(z given x) of all training rows, which priors are fitted on, and of the test rows.
        whole: codes of all rows where the two were split off from one set, else None.
        labels, groups: of the test rows, or None.
    """

    subject: Subject
    train: Batch
    test: Batch
    codes_train: Codes
    codes_test: Codes
    whole: Codes | None = None
    labels: np.ndarray | None = None

    @property
    def groups(self) -> np.ndarray | None:
        """Labels of related test rows."""
        return self.codes_test.groups

    @property
    def separate(self) -> bool:
        """Whether test rows were given beside the training rows."""
        return self.whole is None

    def at_centre(self) -> Material:
        """The same rows for the ordinary VAE at the centre, where the model's weights have a distribution."""
        return replace(self, subject=replace(self.subject, vae=self.subject.vae.centre()))

    def scored(self, part: Batch) -> Batch:
        """Rows as the likelihood scores them: grey pixels under a Bernoulli are binarised once, seed 0."""
        if not self.subject.grey:
            return part
        x = binarise_once(part.x.cpu(), random_state=0).to(part.x)
        return Batch(x, part.context, part.index, part.weight, part.mask)


def gather(
    model: Any,
    X_test: Any,
    X_train: Any,
    *,
    labels: ArrayLike | str | None = None,
    groups: ArrayLike | str | None = None,
    random_state: int = 0,
    what: str = "diagnose",
) -> Material:
    """The material for a model: its own rows where it keeps them, halves where no training rows were given.

    Labels and groups are of the test rows (of all rows, where there is one set), or the name of a column of the
    rows that the model keeps.

    Raises:
        InputError: no rows at all, or too few; labels or groups of another length.

    Warns:
        DataWarning: where test rows are training rows.
    """
    example = X_test if X_test is not None else X_train
    under = subject(model, example)
    if example is None:
        if under.own_rows is None:
            raise InputError(f"{what}: give rows, {what}(model, X); {under.name} keeps none of its own.")
        own = under.own_rows
        label, group = (own.lookup(value)[1] if isinstance(value, str) else value for value in (labels, groups))
        return _apart(under, own.train, own.held_out, label, group, random_state, what)
    for name, value in (("labels", labels), ("groups", groups)):
        if isinstance(value, str):
            raise InputError(f"{what}: {name}={value!r} names a column, but {under.name} keeps no rows; give an array.")
    marks = [name for name, value in (("labels", labels), ("groups", groups)) if value is not None]
    if marks and isinstance(getattr(example, "sampler", None), RandomSampler):
        raise InputError(
            f"{what}: X is a DataLoader that shuffles, so {' and '.join(marks)} cannot belong to its rows. "
            "Give one with shuffle=False, or the rows themselves."
        )
    if X_test is None or X_train is None:
        rows = under.rows(example, "X")
        if len(rows) < 2 * FEWEST_TRAIN:
            raise InputError(
                f"{what}: X has {len(rows)} rows, of which a half fits priors and the other half judges them: at least "
                f"{2 * FEWEST_TRAIN} are needed."
            )
        label, group = _per_row(labels, rows, "labels", what), _per_row(groups, rows, "groups", what)
        codes = encode_rows(under.vae, rows, groups=group, random_state=random_state)
        fitted, judged = split_rows(len(rows), group, 0.5, random_state)
        train, test = (rows[torch.as_tensor(part, device=rows.x.device)] for part in (fitted, judged))
        picked = None if label is None else label[judged]
        return Material(under, train, test, codes[fitted], codes[judged], codes, picked)
    train, codes = _read(under, X_train, "X_train", random_state)
    test = under.rows(X_test, "X_test")
    shared = overlap(train.x, test.x)
    if shared:
        warnings.warn(
            f"{what}: X overlaps the training data ({shared:,} of {len(test):,} rows identical): gaps are optimistic.",
            DataWarning,
            stacklevel=3,
        )
    return _apart(under, train, test, labels, groups, random_state, what, codes)


def certify(
    material: Material, p: Prior, rungs: Sequence[str], random_state: int, progress: Progress | None = None
) -> Ladder:
    """The ladder of a model: judged on its test rows, or cross-fitted where one set of rows is all there is."""
    if material.whole is not None:
        return cross_fit(material.whole, p, rungs=rungs, random_state=random_state, progress=progress)
    train = material.codes_train
    fitted, validation = fit_and_validation(train, random_state)
    return climb(
        train[fitted],
        train[validation],
        material.codes_test,
        p,
        rungs=rungs,
        random_state=random_state,
        progress=progress,
    )


def some(rows: Batch, n: int, random_state: int) -> Batch:
    """At most n rows, a seeded choice in their order."""
    return rows[torch.as_tensor(some_numbers(len(rows), n, random_state), device=rows.x.device)]


def some_numbers(n_rows: int, n: int, random_state: int) -> np.ndarray:
    """At most n of n_rows row numbers, seeded, sorted."""
    if n_rows <= n:
        return np.arange(n_rows)
    return np.sort(np.random.default_rng(random_state).choice(n_rows, n, replace=False))


def overlap(train: Tensor, test: Tensor) -> int:
    """How many test rows are, byte for byte, training rows; constant rows (blank images) do not count."""
    seen = {hash(row.tobytes()) for row in _rows(train)}
    return sum(bool((row != row[0]).any()) and hash(row.tobytes()) in seen for row in _rows(test))


def fit_and_validation(codes: Codes, random_state: int) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers priors are fitted on, and those that find the defensive weight: of other groups, if there are any."""
    held_out, fitted = split_rows(len(codes), codes.groups, VALIDATION_SHARE, random_state)
    return fitted, held_out


def _read(under: Subject, X: Any, what: str, random_state: int) -> tuple[Batch, Codes]:
    """Rows and codes of training data; a loader or data set is encoded batch by batch, and its rows are thinned."""
    if not isinstance(X, DataLoader | Dataset) or isinstance(X, TensorDataset):
        rows = under.rows(X, what)
        return rows, encode_rows(under.vae, rows, random_state=random_state)
    loader = X if isinstance(X, DataLoader) else DataLoader(X, batch_size=LOADED_ROWS)
    generator = np.random.default_rng(random_state)
    n = len(loader) * (loader.batch_size or LOADED_ROWS) if hasattr(loader, "__len__") else 0
    kept, codes = [], []
    for item in loader:
        rows = under.rows(item[0] if isinstance(item, tuple | list) else item, what)
        codes.append(encode_rows(under.vae, rows, random_state=random_state))
        share = min(1.0, KEPT_NUMBERS / (max(n, 1) * rows.x[0].numel()))
        chosen = np.flatnonzero(generator.random(len(rows)) < share)
        kept.append(rows[torch.as_tensor(chosen, device=rows.x.device)])
    if not kept:
        raise InputError(f"{what} is a loader that yields nothing; expected batches of rows.")
    return _joined(kept), Codes.joined(codes)


def _joined(parts: list[Batch]) -> Batch:
    context = None if parts[0].context is None else torch.cat([p.context for p in parts if p.context is not None])
    return Batch(torch.cat([part.x for part in parts]), context)


def _apart(
    under: Subject,
    train: Batch,
    test: Batch,
    labels: Any,
    groups: Any,
    random_state: int,
    what: str,
    codes: Codes | None = None,
) -> Material:
    for name, rows, fewest in (("X_train", train, FEWEST_TRAIN), ("X_test", test, FEWEST_TEST)):
        if len(rows) < fewest:
            raise InputError(f"{what}: {name} has {len(rows)} rows; at least {fewest} are needed.")
    group = _per_row(groups, test, "groups", what)
    return Material(
        under,
        train,
        test,
        encode_rows(under.vae, train, random_state=random_state) if codes is None else codes,
        encode_rows(under.vae, test, groups=group, random_state=random_state),
        labels=_per_row(labels, test, "labels", what),
    )


def _rows(x: Tensor) -> np.ndarray:
    return np.ascontiguousarray(x.flatten(1).cpu().float().numpy())


def _per_row(values: Any, rows: Batch, name: str, what: str) -> np.ndarray | None:
    if values is None:
        return None
    array = np.asarray(values)
    if array.shape != (len(rows),):
        raise InputError(f"{what}: {name} has shape {array.shape}, expected ({len(rows)},), one for each row.")
    if name == "groups":
        refuse_missing(array, f"{what}: groups")
        refuse_one_group(array, what)
    elif (missing := is_missing(array)).any():
        return np.where(missing, UNLABELLED, array.astype(str))
    return array.astype(str) if array.dtype.kind == "O" else array
