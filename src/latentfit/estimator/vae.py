"""The scikit-learn estimator."""

from __future__ import annotations

import copy
import dataclasses
import math
import sys
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from latentfit import methods
from latentfit.data.batch import Batch
from latentfit.data.prepared import prepare_rows
from latentfit.data.rows import as_batch
from latentfit.errors import DataWarning, InputError
from latentfit.evaluation.codes import encode_rows
from latentfit.evaluation.likelihood import log_likelihood
from latentfit.evaluation.proposal import Proposal, encoder_proposal, fit_proposal
from latentfit.evaluation.rows import blocks, decoder_rows
from latentfit.evaluation.terms import elbo_terms
from latentfit.model import RANKABLE, RECIPE, Prior, VAEModule, fit
from latentfit.training import isolated_rng, show_progress

if TYPE_CHECKING:
    from typing import Self

#: training rows and steps the evaluation proposal is fitted with at most
PROPOSAL_ROWS, PROPOSAL_STEPS = 5_000, 400
#: with fewer rows the encoder itself is the proposal
FEWEST_PROPOSAL_ROWS = 8


class VAE(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    r"""A variational autoencoder in scikit-learn's manners: rows in, NumPy out.

    Trains p(x, z) = p(z) p(x given z) by its evidence lower bound; everything it scores is in nats per row.
    Rows are arrays, tensors, DataFrames, a `Dataset` or a `DataLoader`: (n, d), or images (n, h, w) and
    (n, h, w, c). Columns of a table that are constant on the training rows are left out of the model and put
    back in what it returns. Integers under a density are dequantised, 8-bit grey values under a Bernoulli
    binarised: drawn afresh in training, and when encoding and scoring by a draw that belongs to the row.

    Args:
        latent_dim: D, or "auto": half the columns, 2 to 16, and 40 for rows of more than 256 numbers.
        method: a name of `latentfit methods`: "standard", "annealed", "mixture", "realnvp", ...
        likelihood: a name, `{"name", "args"}`, or None to choose it from the data.
        network: "mlp", "gated_mlp", "residual_conv", or None: an mlp, gated above 256 numbers a row.
        network_args: further arguments of both networks, such as `{"hidden": [64]}`.
        max_steps: gradient steps; None: forty passes over the data, within 1,500 and 20,000.
        batch_size: rows a step.
        learning_rate: the peak rate of Adam; None: the recipe that every method shares.
        validation_fraction: share of the rows that decides when to stop and which weights are kept.
        n_importance_samples: draws per row for log p(x).
        device: "cpu", "cuda", "cuda:1" or "auto".
        precision: "fp32" or "bf16".
        random_state: an int for the same result each time, a `RandomState`, or None.
        verbose: show progress on stderr.

    Attributes:
        module_: the fitted `VAEModule`; likelihood_: `{"name", "args"}`; notes_: what was done to the data.
        n_features_in_, feature_names_in_: as everywhere in scikit-learn; for images the numbers in a row.
        history_: one record per logged step; n_steps_: gradient steps done; seed_: the seed `fit` used.

    Raises:
        InputError: rows or settings that cannot be used.

    Warns:
        DataWarning: what was done to the data, where anything was.

    Source: Kingma & Welling (2014), arXiv 1312.6114.

    Example:
        >>> import numpy as np, latentfit as lf
        >>> X = np.random.default_rng(0).normal(size=(100, 4))
        >>> vae = lf.VAE(latent_dim=2, max_steps=20).fit(X)
        >>> vae.transform(X).shape, vae.sample(3).shape, vae.score_samples(X).shape
        ((100, 2), (3, 4), (100,))
    """

    def __init__(
        self,
        latent_dim: int | str = "auto",
        method: str = "standard",
        *,
        likelihood: str | Mapping[str, Any] | None = None,
        network: str | None = None,
        network_args: Mapping[str, Any] | None = None,
        max_steps: int | None = None,
        batch_size: int = 128,
        learning_rate: float | None = None,
        validation_fraction: float = 0.1,
        n_importance_samples: int = 100,
        device: str = "cpu",
        precision: str = "fp32",
        random_state: int | np.random.RandomState | None = 0,
        verbose: bool = False,
    ) -> None:
        self.latent_dim = latent_dim
        self.method = method
        self.likelihood = likelihood
        self.network = network
        self.network_args = network_args
        self.max_steps = max_steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.validation_fraction = validation_fraction
        self.n_importance_samples = n_importance_samples
        self.device = device
        self.precision = precision
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: Any = None) -> Self:
        """Train on rows X (n, *data_shape), n at least 2; y is ignored. Returns itself."""
        if not 0 <= self.validation_fraction < 1:
            raise InputError(f"validation_fraction must be in [0, 1), got {self.validation_fraction!r}.")
        method = methods.get(self.method)
        x = self._intake(X, reset=True)
        seed = _seed(self.random_state)
        order = np.random.default_rng(seed).permutation(len(x))
        n_held_out = round(self.validation_fraction * len(x))
        n_held_out = n_held_out if 2 <= n_held_out <= len(x) - 2 else 0
        # shuffled, for parts of these rows stand for all of them
        held_out, train = np.split(order, [n_held_out])
        names = getattr(self, "feature_names_in_", None)
        data = prepare_rows(x, train, likelihood=self.likelihood, columns=names, random_state=seed)
        for note in data.notes:
            warnings.warn(f"{type(self).__name__}: {note}.", DataWarning, stacklevel=2)
        if self.verbose:
            print(f"Likelihood  {data.description}, {data.reason}", file=sys.stderr)

        data_shape = tuple(data.x.shape[1:])
        numel = math.prod(data_shape)
        batch_size, max_steps = plain(self.batch_size), plain(self.max_steps)
        recipe = dataclasses.replace(RECIPE, batch_size=batch_size)
        recipe = dataclasses.replace(
            recipe,
            max_steps=methods.default_steps(len(train), batch_size, quick=False) if max_steps is None else max_steps,
            learning_rate=RECIPE.learning_rate if self.learning_rate is None else self.learning_rate,
            device=self.device,
            precision=self.precision,  # type: ignore[arg-type]  # checked by the recipe
        )
        with isolated_rng(seed):
            module = methods.build(
                method,
                data_shape=data_shape,
                latent_dim=self._latent_dim(numel),
                likelihood=data.likelihood,
                network=self.network or methods.default_network(numel),
                network_args=self.network_args,
                preprocess=data.preprocess,
                encoder_input=data.encoder_input,
            )
        module.check_rows(data.x)
        with show_progress() if self.verbose else nullcontext() as progress:
            result = fit(
                module,
                data.training_batch(torch.as_tensor(train)),
                X_validation=data.scoring_batch(torch.as_tensor(held_out)) if n_held_out else None,
                validation_fraction=0.0,
                objective=method.objective(recipe.max_steps),
                prepare=data.prepare,
                recipe=recipe,
                random_state=seed,
                progress=progress,
            )
        self.module_, self.likelihood_, self.notes_ = module, data.likelihood, data.notes
        self.history_, self.n_steps_, self.seed_ = result.history, result.steps, seed
        self._units = data.units
        rows = data.x[torch.as_tensor(train[:PROPOSAL_ROWS])]
        self._proposal = _fitted_proposal(module, rows, min(PROPOSAL_STEPS, recipe.max_steps), seed)
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Means of q(z given x): X (n, *data_shape) -> (n, D)."""
        check_is_fitted(self, "module_")
        return self._codes(X).cpu().numpy()

    def inverse_transform(self, Z: Any) -> np.ndarray:
        """Decoder means E[x given z] in the units and shape of the data: Z (n, D) -> (n, *data_shape).

        Raises:
            InputError: codes of another width.
        """
        check_is_fitted(self, "module_")
        z = as_batch(Z, what="Z", min_rows=1).x
        d = self._n_features_out
        if z.shape[1:] != (d,):
            raise InputError(f"inverse_transform: Z has shape {tuple(z.shape)}; expected (n, {d}), as of transform.")
        z = z.reshape(-1, *self.module_.event_shape)
        with torch.inference_mode():
            means = [self.module_.decode_mean(z[rows].to(self.module_.device)) for rows in self._blocks(len(z))]
        return self._units.to_data(torch.cat(means), drawn=False)

    def reconstruct(self, X: Any) -> np.ndarray:
        """Decoder means at the codes' means, `inverse_transform(transform(X))`: (n, *data_shape)."""
        check_is_fitted(self, "module_")
        return self.inverse_transform(self._codes(X))

    def sample(
        self,
        n: int = 1,
        observation_noise: bool = True,
        random_state: int | np.random.RandomState | None = None,
    ) -> np.ndarray:
        """Draws z ~ p(z), then p(x given z) or its mean where `observation_noise` is False: (n, *data_shape).

        Args:
            n: rows.
            observation_noise: whether to draw x or to return decoder means.
            random_state: of the draws; None: the estimator's own, so an int there gives the same rows each
                time.

        Raises:
            InputError: n below 1.
        """
        check_is_fitted(self, "module_")
        if not isinstance(n, int | np.integer) or n < 1:
            raise InputError(f"sample: n must be a whole number of at least 1, got {n!r}.")
        seed = _seed(self.random_state if random_state is None else random_state)
        generator = torch.Generator(device=self.module_.device).manual_seed(seed)
        with torch.inference_mode():
            parts = [
                self.module_.sample(rows.stop - rows.start, observation_noise=observation_noise, generator=generator)
                for rows in self._blocks(int(n))
            ]
        return self._units.to_data(torch.cat(parts), drawn=observation_noise)

    def score_samples(self, X: Any) -> np.ndarray:
        """log p(x) of each row by importance sampling, seeded: X (n, *data_shape) -> (n,), nats.

        A lower bound in expectation, by `n_importance_samples` draws from a proposal fitted on the training
        rows; `latentfit.evaluation.log_likelihood` gives its diagnostics too.

        Raises:
            CapabilityError: a prior whose density cannot enter log p(x).

        Warns:
            ReliabilityWarning: where more than 1 % of the rows have a Pareto-k above 0.7.
            DataWarning: where a column that was constant in training has another value, of which no score knows.
        """
        check_is_fitted(self, "module_")
        return log_likelihood(
            self.module_,
            self._rows(X),
            n_importance_samples=self.n_importance_samples,
            proposal=self._proposal,
            random_state=self.seed_,
        ).values

    def score(self, X: Any, y: Any = None) -> float:
        """Mean log p(x), nats per row; y is ignored."""
        return float(self.score_samples(X).mean())

    def elbo(self, X: Any) -> np.ndarray:
        """The evidence lower bound of each row at KL weight 1, seeded: (n,), nats."""
        check_is_fitted(self, "module_")
        return elbo_terms(self.module_, self._rows(X), random_state=self.seed_).elbo_per_row

    def _with_prior(self, prior: Prior, rows: Tensor) -> Self:
        """The same VAE under another prior: networks shared, the proposal fitted again on training rows."""
        return self._with_module(self.module_.with_parts(prior=prior), rows)

    def _with_module(self, module: VAEModule, rows: Tensor) -> Self:
        """The same estimator around another module, its proposal fitted on training rows."""
        changed = copy.copy(self)
        changed.module_ = module
        changed._proposal = _fitted_proposal(module, rows[:PROPOSAL_ROWS], PROPOSAL_STEPS, self.seed_)
        return changed

    @property
    def _n_features_out(self) -> int:
        return self.module_.event_shape.numel()

    def _latent_dim(self, numel: int) -> int:
        d = self.latent_dim
        if d == "auto":
            return methods.default_latent_dim(numel)
        if not isinstance(d, int | np.integer) or d < 1:
            raise InputError(f"latent_dim must be a whole number of at least 1 or 'auto', got {d!r}.")
        methods.check_latent_dim(int(d), numel)
        return int(d)

    def _blocks(self, n: int) -> list[slice]:
        row = torch.empty((1, *self._units.model_shape), device="meta")
        return list(blocks(n, decoder_rows(Batch(row), self.module_.device)))

    def _codes(self, X: Any) -> Tensor:
        return encode_rows(self.module_, self._rows(X)).mean.flatten(1)

    def _rows(self, X: Any) -> Tensor:
        """Rows as the module scores them: (n, *model_shape)."""
        rows = self._intake(X, reset=False)
        self._units.check_grey(rows)
        changed = self._units.changed(rows)
        if changed is not None:
            warnings.warn(f"{changed} Codes and scores are those of the other columns.", DataWarning, stacklevel=3)
        x = self._units.to_model(rows)
        self.module_.check_rows(x)
        return x

    def _intake(self, X: Any, *, reset: bool) -> np.ndarray:
        """Checked rows (n, *data_shape) float32; uint8 stays, for that type says that they are grey."""
        if isinstance(X, Batch) and not (X.context is X.mask is X.weight is None):
            raise InputError("VAE takes bare rows; for a context, a mask or weights use VAEModule and latentfit.fit.")
        if hasattr(X, "columns") and not X.columns.is_unique:
            twice = X.columns[X.columns.duplicated()][0]
            raise InputError(f"X has the column {twice!r} more than once; give every column a name of its own.")
        numbers = X.astype(np.float64) if isinstance(X, np.ndarray) and X.dtype == object else X
        x = np.ascontiguousarray(as_batch(numbers, min_rows=2 if reset else 1).x.cpu().numpy())
        if str(getattr(X, "dtype", "")).removeprefix("torch.") == "uint8":
            x = x.astype(np.uint8)
        if x.ndim == 2:
            try:
                validate_data(self, X if hasattr(X, "columns") else x, reset=reset, skip_check_array=True)
            except ValueError as error:  # scikit-learn's words, in one line and as ours
                raise InputError(" ".join(str(error).split())) from None
        elif reset:
            self.n_features_in_ = math.prod(x.shape[1:])
            self.__dict__.pop("feature_names_in_", None)
        if not reset and x.shape[1:] != self._units.data_shape:
            wanted = self._units.data_shape
            same = math.prod(x.shape[1:]) == math.prod(wanted)
            hint = f" The same numbers: X.reshape(-1, {', '.join(map(str, wanted))})?" if same else ""
            raise InputError(f"VAE was fitted on rows of shape {wanted}, got {x.shape[1:]}.{hint}")
        return x

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = tags.input_tags.three_d_array = True
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags


def _fitted_proposal(module: VAEModule, rows: Tensor, max_steps: int, seed: int) -> Proposal | None:
    if module.prior.density not in RANKABLE:
        return None
    if len(rows) < FEWEST_PROPOSAL_ROWS:
        return encoder_proposal(module)
    return fit_proposal(module, rows, max_steps=max_steps, random_state=seed)


def _seed(random_state: int | np.random.RandomState | None) -> int:
    if isinstance(random_state, int | np.integer) and random_state >= 0:
        return int(random_state)
    if random_state is None or isinstance(random_state, np.random.RandomState):
        return int(check_random_state(random_state).randint(2**31 - 1))
    raise InputError(f"random_state must be an int of at least 0, a RandomState or None, got {random_state!r}.")


def plain(value: Any) -> Any:
    """Numbers of NumPy, as grids and ranges give them, as Python's."""
    return value.item() if isinstance(value, np.generic) else value
