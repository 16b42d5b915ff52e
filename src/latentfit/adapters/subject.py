"""Whatever is to be diagnosed or retrofitted, behind one face."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from latentfit import methods
from latentfit.adapters.adapt import adapt
from latentfit.adapters.adapted import AdaptedVAE, Loss, OwnRows, TrainingFacts
from latentfit.adapters.decoding import NoDecoder
from latentfit.adapters.example import between_0_and_1, first_rows
from latentfit.data.batch import Batch
from latentfit.errors import DataWarning, InputError
from latentfit.evaluation.rows import evaluation_rows
from latentfit.model.vae import VAEModule
from latentfit.training import SETTLED, late_slope, short_record

#: ratio of two spans of data that is a matter of units, such as 255
ANOTHER_SCALE = 50.0


@dataclass(frozen=True)
class Subject:
    """A VAE and what is known about it.

    Attributes:
        vae: the model behind the contract.
        rows: (X, argument's name in messages) -> the rows as `vae` takes them.
        name: what tables call it.
        loss, training_facts, own_rows: see `AdaptedVAE`; None where nothing is known.
        can_score: whether log p(x given z) can be computed.
        grey: whether its rows are grey pixels under a Bernoulli.
        columns: names of a table's columns, or their numbers, where they are known.
    """

    vae: VAEModule
    rows: Callable[[Any, str], Batch]
    name: str
    loss: Loss | None = None
    training_facts: TrainingFacts | None = None
    own_rows: OwnRows | None = None
    can_score: bool = True
    grey: bool = False
    columns: Sequence[str | int] = ()

    @property
    def can_decode(self) -> bool:
        """Whether there is a decoder to show samples with."""
        return not isinstance(self.vae.decoder, NoDecoder)


def subject(model: Any, example: Any = None) -> Subject:
    """A fitted `lf.VAE`, a `VAEModule`, an adapted model or a foreign one (it is adapted) as a `Subject`.

    Args:
        model: the model.
        example: rows it was trained on or their like; a foreign model is run on its first ones, and a Bernoulli is
            asked whether they are grey.

    Raises:
        InputError: an estimator that is not fitted, or see `adapt`.
    """
    if hasattr(model, "get_params") and hasattr(model, "_rows"):
        return _of_estimator(model)
    if not isinstance(model, VAEModule):
        model = adapt(model, example=example)
    grey = example is not None and is_grey(model, example)
    if isinstance(model, AdaptedVAE):
        grey = grey or model.grey
        return Subject(
            model,
            _rows_of(model, grey, model.data_shape, model.read, model.data_range),
            model.model_name,
            loss=model.loss,
            training_facts=model.training_facts,
            own_rows=model.own_rows,
            can_score=model.can_score,
            grey=grey,
            columns=_names(example),
        )
    name = type(model).__name__
    facts = None if model.trained is None else facts_of(model.trained)
    loss = None if facts is None or facts.kl_weight_reached is None else Loss(facts.kl_weight_reached, "nll")
    return Subject(
        model, _rows_of(model, grey), name, loss=loss, training_facts=facts, grey=grey, columns=_names(example)
    )


def facts_of(trained: Mapping[str, Any]) -> TrainingFacts:
    """What the short record of a run says of it; see `latentfit.training.short_record`."""
    history = [{"step": step, "validation": value} for step, value in trained.get("validation", ())]
    steps = int(trained.get("steps", 0))
    gain = late_slope(history, steps)
    early = trained.get("stopped") == "early"
    return TrainingFacts(
        kl_weight_reached=trained.get("kl_weight"),
        converged=True if early else None if gain is None else gain < SETTLED,
        steps=steps,
        late_gain=gain,
    )


def is_grey(model: VAEModule, example: Any) -> bool:
    """Whether a Bernoulli is to score values between 0 and 1."""
    if model.likelihood.name != "bernoulli":
        return False
    return between_0_and_1(first_rows(example).x)


def _rows_of(
    model: VAEModule,
    grey: bool,
    data_shape: torch.Size | None = None,
    read: Callable[[Any], Batch] | None = None,
    data_range: tuple[float, float] | None = None,
) -> Callable[[Any, str], Batch]:
    def rows(X: Any, what: str = "X") -> Batch:
        given = read(X) if read is not None and hasattr(X, "obsm") else X
        batch = evaluation_rows(given, model, what)
        if data_shape is not None and batch.x.shape[1:] != data_shape:
            raise InputError(
                f"{what} has rows of shape {tuple(batch.x.shape[1:])}; the model was adapted on rows of shape "
                f"{tuple(data_shape)}. Reshape {what} like the example."
            )
        if data_range is not None:
            _warn_of_another_scale(batch, data_range, what)
        if not grey:
            _check_support(model, batch, what)
        return batch

    return rows


def _check_support(model: VAEModule, batch: Batch, what: str) -> None:
    """Refuse rows the likelihood cannot score, which would give numbers all the same."""
    try:
        model.check_rows(batch.x)
    except InputError as error:
        raise InputError(f"{what}: {error}") from None


def _warn_of_another_scale(batch: Batch, data_range: tuple[float, float], what: str) -> None:
    """Pixels of 0..255 where the example's were of 0..1, or the reverse; a heavy tail alone is not another scale."""
    low, high = float(batch.x.min()), float(batch.x.max())
    span, was = high - low, data_range[1] - data_range[0]
    if span > ANOTHER_SCALE * was or was > ANOTHER_SCALE * span:
        warnings.warn(
            f"{what} lies in [{low:.3g}, {high:.3g}], the rows that the model was adapted on in "
            f"[{data_range[0]:.3g}, {data_range[1]:.3g}]: give all of them scaled as in training.",
            DataWarning,
            stacklevel=5,
        )


def _of_estimator(estimator: Any) -> Subject:
    """A scikit-learn estimator: its own preparation of rows, and its method's KL weight."""
    name = type(estimator).__name__
    if not hasattr(estimator, "module_"):
        raise InputError(f"This {name} is not fitted yet: call fit(X) first.")

    def rows(X: Any, what: str = "X") -> Batch:
        return evaluation_rows(estimator._rows(X), estimator.module_, what)

    schedule = methods.get(estimator.method).kl_weight(max(1, estimator.n_steps_))
    weight = float(schedule(schedule.settled_at))
    trained = estimator.module_.trained
    if trained is None:  # saved before the module kept a record of its own
        trained = short_record(estimator.history_, estimator.n_steps_, estimator.n_steps_, "", weight)
    return Subject(
        estimator.module_,
        rows,
        name,
        loss=Loss(weight, "nll"),
        training_facts=facts_of(trained),
        columns=estimator._units.model_columns,
    )


def _names(example: Any) -> list[str]:
    """What the columns of a DataFrame or the variables of an AnnData are called."""
    names = getattr(example, "columns", getattr(example, "var_names", ()))
    return [str(name) for name in names]
