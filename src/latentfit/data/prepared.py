"""From raw rows to what a VAE is trained on and scored by: the likelihood, the units, the noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from latentfit.data.batch import Batch
from latentfit.data.conversion import coarse_columns, coarse_note
from latentfit.data.inspection import DataKind, inspect, suggest_likelihood
from latentfit.data.noise import Binarise, Dequantise, binarise_once, dequantise_once
from latentfit.data.rows import Prepare
from latentfit.data.transforms import LogStandardise, Standardise, Transform, resolution
from latentfit.data.units import Units
from latentfit.errors import InputError
from latentfit.registry import registry

Measure = Literal["probability mass", "density in the units of the data", "density on the scale [0, 1]"]

#: likelihoods of 0..n: the argument that says how many, and what to add to the largest value seen
_CEILING = {"binomial": ("n", 0), "discretised_logistic": ("levels", 1), "categorical": ("n_classes", 1)}
_NOISES: dict[str, Any] = {"binarise": Binarise, "dequantise": Dequantise}
_COUNTS = ("poisson", "negative_binomial", "zinb")
#: sizes of a last axis that is taken for colours
_COLOURS = (1, 3, 4)
#: the standard deviation of rounding to multiples of 1: 1 / sqrt(12)
_ROUNDING = 0.29
#: a floor of sigma, in standardised units, is within these
_FLOORS = (1e-3, 0.3)


@dataclass(frozen=True)
class PreparedData:
    """Rows ready for training and scoring.

    Attributes:
        likelihood: `{"name", "args"}`.
        reason: why this likelihood, in a few words; `alternatives`: others that take these data.
        x: (N, *data_shape) float32, what is scored: binarised or dequantised once, with a seed, where that applies.
        source: what training batches are prepared from, like x; the same tensor where nothing is drawn afresh.
        units: the way from the user's rows to these and back.
        noise: what draws a training batch afresh, `{"name": "binarise" | "dequantise", "args"}`, or None.
        preprocess: standardisation whose log-determinant is in the nats, fitted on training rows; or None.
        encoder_input: scaling of what the encoder reads, no part of the density; or None.
        notes: what was done to the data that the user should know.
    """

    likelihood: dict[str, Any]
    reason: str
    alternatives: list[str]
    x: Tensor
    source: Tensor
    units: Units
    noise: dict[str, Any] | None = None
    preprocess: Transform | None = None
    encoder_input: Transform | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def measure(self) -> Measure:
        """What log p(x) is a logarithm of: only numbers of one measure can be compared."""
        if registry.build("likelihood", self.likelihood).base_measure == "mass":
            return "probability mass"
        rescaled = self.noise is not None and self.noise["args"].get("width", 1.0) != 1.0
        return "density on the scale [0, 1]" if rescaled else "density in the units of the data"

    @property
    def is_bound(self) -> bool:
        """Whether log p(x) bounds the log-probability of the data from below, for they were dequantised."""
        return self.noise is not None and self.noise["name"] == "dequantise"

    @property
    def description(self) -> str:
        """The likelihood as people write it: `binomial(16)`."""
        name, args = self.likelihood["name"], self.likelihood["args"]
        ceiling = _CEILING.get(name)
        return name if ceiling is None else f"{name}({args[ceiling[0]]})"

    @property
    def prepare(self) -> Prepare | None:
        """Applied to each training batch."""
        return None if self.noise is None else _NOISES[self.noise["name"]](**self.noise["args"])

    def training_batch(self, rows: Tensor) -> Batch:
        """Rows (n,) that training batches are drawn from."""
        return Batch(self.source[rows], index=rows)

    def scoring_batch(self, rows: Tensor) -> Batch:
        """Rows (n,) as they are scored: the same draw for every model."""
        return Batch(self.x[rows], index=rows)


def prepare_rows(
    x: np.ndarray,
    train_rows: np.ndarray,
    *,
    likelihood: str | Mapping[str, Any] | None = None,
    source_name: str | None = None,
    columns: Sequence[str] | None = None,
    random_state: int = 0,
) -> PreparedData:
    """Prepare a user's rows for training and scoring: the one way from a source, or an array, to a VAE's rows.

    Columns of a table that are constant on the training rows are left out, colours come first, and the rest is
    `prepare_data`'s.

    Args:
        x: (N, *data_shape) in its own type.
        train_rows: row numbers; moments are theirs.
        likelihood, source_name, random_state: see `prepare_data`.
        columns: names of a table's columns.

    Returns:
        The prepared data with their units; its notes say in words what was done.

    Raises:
        InputError: a table of nothing but constant columns, and what `prepare_data` refuses.
    """
    data_shape = x.shape[1:]
    constants: tuple[tuple[int, float], ...] = ()
    if len(data_shape) == 1:
        train = x[train_rows].astype(np.float32)  # as the VAE sees them
        dropped = np.flatnonzero((train == train[:1]).all(axis=0))
        if len(dropped) == data_shape[0]:
            raise InputError(f"All {data_shape[0]} columns are constant: there is nothing to model.")
        constants = tuple((int(column), float(train[0, column])) for column in dropped)
    last = len(data_shape) == 3 and data_shape[-1] in _COLOURS and data_shape[0] not in _COLOURS
    names = None if columns is None else tuple(str(name) for name in columns)
    units = Units(data_shape, data_shape, constants, last, random_state=random_state, columns=names)
    notes: list[str] = []
    if constants:
        some = ", ".join(units.name(column) for column, _ in constants[:5]) + (", ..." if len(constants) > 5 else "")
        what = "1 constant column is" if len(constants) == 1 else f"{len(constants)} constant columns are"
        notes.append(f"{what} left out of the model: {some}")
    coarse = coarse_columns(x)
    if coarse:
        notes.append(coarse_note(coarse, names))
    data = prepare_data(
        units.arrange(x), train_rows, likelihood=likelihood, source_name=source_name, random_state=random_state
    )
    units = replace(units, model_shape=data.units.model_shape, noise=data.noise)
    return replace(data, units=units, notes=notes + data.notes)


def prepare_data(
    x: np.ndarray,
    train_rows: np.ndarray,
    *,
    likelihood: str | Mapping[str, Any] | None = None,
    source_name: str | None = None,
    random_state: int = 0,
) -> PreparedData:
    """Choose a likelihood, or take the user's, and bring the rows into the form it scores.

    Args:
        x: (N, *data_shape) in its own type.
        train_rows: row numbers whose moments standardise the data; no other row is looked at for that.
        likelihood: a name, `{"name", "args"}`, or None to choose from the data.
        source_name: the data set's name; MNIST and Fashion-MNIST are binarised as in their literature unless another
            likelihood is asked for.
        random_state: seeds the one stored binarisation or dequantisation.

    Raises:
        InputError: empty, not numeric or not finite data.
    """
    suggestion = suggest_likelihood(x, source_name)
    seen = inspect(x)
    name, args = _wanted(likelihood, suggestion.likelihood, suggestion.args)
    values = torch.as_tensor(np.ascontiguousarray(x, dtype=np.float32))
    rows = torch.as_tensor(train_rows)
    data_shape = tuple(x.shape[1:])
    notes: list[str] = []
    noise: dict[str, Any] | None = None
    preprocess: Transform | None = None
    encoder_input: Transform | None = None
    source = scored = values

    if name == "bernoulli" and seen.kind == "grey":
        if not suggestion.binarise:  # what was seen says it otherwise
            notes.append("8-bit grey values are binarised, afresh in training and once for scoring")
        source = values / 255
        scored, noise = binarise_once(source, random_state=random_state), {"name": "binarise", "args": {}}
    elif name == "continuous_bernoulli" and seen.integral and seen.maximum > 1:
        width = 1.0 / (seen.maximum + 1)
        source = values * width
        scored = dequantise_once(source, width, random_state=random_state)
        noise = {"name": "dequantise", "args": {"width": width}}
        notes.append("integers dequantised into [0, 1]; nats refer to that scale")
    elif name == "normal":
        if seen.integral:
            scored = dequantise_once(values, 1.0, random_state=random_state)
            noise = {"name": "dequantise", "args": {"width": 1.0}}
            notes.append("integers dequantised with uniform noise; log p(x) is a lower bound for the integers")
        preprocess = Standardise(data_shape, per_column=not seen.is_image).fit(scored[rows])
        args = _normal_args(args, scored[rows], preprocess, seen)
    elif name in _COUNTS:
        if len(data_shape) == 1 and name != "poisson":
            args = {"n_columns": data_shape[0], **args}
        registry.build("likelihood", {"name": name, "args": args}).check(values)  # says what it takes instead
        encoder_input = LogStandardise(data_shape).fit(values[rows])
    elif name in _CEILING:
        key, offset = _CEILING[name]
        args = {key: int(seen.maximum) + offset, **args}
        encoder_input = Standardise(data_shape, per_column=False).fit(values[rows])
    return PreparedData(
        likelihood={"name": name, "args": args},
        reason=suggestion.reason if name == suggestion.likelihood else "chosen by you",
        alternatives=suggestion.alternatives,
        x=scored,
        source=source,
        units=Units(data_shape, data_shape, noise=noise, random_state=random_state),
        noise=noise,
        preprocess=preprocess,
        encoder_input=encoder_input,
        notes=notes,
    )


def _wanted(likelihood: Any, suggested: str, suggested_args: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    if likelihood is None:
        return suggested, dict(suggested_args)
    if isinstance(likelihood, str):
        name = registry.canonical("likelihood", likelihood)
        return name, dict(suggested_args) if name == suggested else {}
    if not isinstance(likelihood, Mapping) or "name" not in likelihood:
        raise InputError(f"likelihood must be a name or {{'name', 'args'}}, got {likelihood!r}.")
    return registry.canonical("likelihood", likelihood["name"]), dict(likelihood.get("args") or {})


def _normal_args(args: dict[str, Any], x: Tensor, standardise: Standardise, seen: DataKind) -> dict[str, Any]:
    """One learned sigma for images, one per column for tables, never below the data's own resolution."""
    if not args and not seen.is_image:
        args = {"scale": "column", "n_columns": x.shape[1]}
    # the sd of rounding to the last digit, in standardised units: a smaller sigma buys density with rounding
    floors = (_ROUNDING * resolution(x, per_column=not seen.is_image) / standardise.scale).clamp(*_FLOORS)
    by_column = not seen.is_image and args.get("scale") in ("column", "row")
    # a sigma that all columns share may be as small as the finest of them is recorded
    return {"floor": floors.tolist() if by_column else float(floors.min()), **args}
