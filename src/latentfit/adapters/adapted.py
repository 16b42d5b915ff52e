"""A VAE somebody else wrote, behind the contract, and what is known of how it was trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Generator, Tensor, nn

from latentfit.adapters.understood import Understood
from latentfit.data.batch import Batch
from latentfit.errors import CapabilityError, InputError
from latentfit.likelihoods import Normal
from latentfit.model.contracts import LatentDistribution, Likelihood, Posterior, Prior
from latentfit.model.vae import VAEModule
from latentfit.saving import weights_sha256
from latentfit.training.modes import modes_kept

Reconstruction = Literal["nll", "sum", "mse_sum", "mse_mean", "bce_sum", "bce_mean"]


@dataclass(frozen=True)
class Loss:
    r"""How a VAE was trained: reconstruction + kl_weight * KL, each averaged over the rows of a batch.

    Written as minus an ELBO, -log p(x given z) + beta KL, every such loss has an effective beta. With D entries a
    row, w the KL weight and sigma that of the Normal it is scored with:

    | reconstruction | the term | beta |
    | --- | --- | --- |
    | `nll`, `sum` | -log p(x given z), summed over entries | w |
    | `bce_sum`; `bce_mean` | binary cross-entropy, summed; averaged over entries | w; w D |
    | `mse_sum`; `mse_mean` | squared error, summed; averaged over entries | w / (2 sigma^2); w D / (2 sigma^2) |

    Args:
        kl_weight: w, of the KL summed over latents.
        reconstruction: a name of the table.

    Raises:
        InputError: a weight below 0, another name.

    Source: Rybkin, Daniilidis & Levine (2021), arXiv:2006.13202.

    Example:
        >>> Loss(2.5e-4, "mse_mean").formula(64 * 64 * 3, sigma=1.0)
        '0.00025 x 12,288 / (2 x 1^2) = 1.5'
    """

    kl_weight: float
    reconstruction: Reconstruction

    def __post_init__(self) -> None:
        if not (math.isfinite(self.kl_weight) and self.kl_weight >= 0):
            raise InputError(f"kl_weight must be 0 or more, got {self.kl_weight!r}.")
        if self.reconstruction not in get_args(Reconstruction):
            names = ", ".join(get_args(Reconstruction))
            raise InputError(f"reconstruction is one of {names}, got {self.reconstruction!r}.")

    def effective_beta(self, n_entries: int, sigma: float | None = None) -> float:
        """The KL weight beside -log p(x given z): D = n_entries of a row, sigma of its Normal.

        Raises:
            InputError: a squared error without sigma.
        """
        beta = self.kl_weight * (n_entries if self._averaged else 1)
        return beta / (2 * self._needed(sigma) ** 2) if self._squared else beta

    def formula(self, n_entries: int, sigma: float | None = None) -> str:
        """The same with its arithmetic, in one line."""
        parts = f"{self.kl_weight:g}"
        if self._averaged:
            parts += f" x {n_entries:,}"
        if self._squared:
            parts += f" / (2 x {self._needed(sigma):.3g}^2)"
        plain = not self._averaged and not self._squared  # nothing is computed: the weight is beta
        return parts if plain else f"{parts} = {self.effective_beta(n_entries, sigma):.2g}"

    @property
    def _averaged(self) -> bool:
        return self.reconstruction.endswith("_mean")

    @property
    def _squared(self) -> bool:
        return self.reconstruction.startswith("mse")

    def _needed(self, sigma: float | None) -> float:
        if sigma is None or not sigma > 0:
            raise InputError(f"The effective beta of {self.reconstruction!r} depends on sigma, which is {sigma!r}.")
        return sigma


@dataclass(frozen=True)
class TrainingFacts:
    """What a package's own history says of a training.

    Attributes:
        kl_weight_reached: the KL weight at the end, or None.
        warmup: the arithmetic where the warm-up was not finished: 100 epochs of a 400-epoch warm-up.
        converged: whether the validation curve had settled; None: nothing to tell it by.
        steps: gradient steps done, where they are known; late_gain: nats per row that the held-out ELBO still won in
            the last fifth of them.
    """

    kl_weight_reached: float | None = None
    warmup: Understood | None = None
    converged: bool | None = None
    steps: int | None = None
    late_gain: float | None = None


@dataclass(frozen=True)
class OwnRows:
    """Rows that a package keeps with its model.

    Attributes:
        train, held_out: the rows it trained on, and those it did not.
        lookup: a column's name -> its entries for train (N,) and held_out (M,).
    """

    train: Batch
    held_out: Batch
    lookup: Callable[[str], tuple[np.ndarray, np.ndarray]]

    def __deepcopy__(self, memo: dict[int, Any]) -> OwnRows:
        """Itself: a copy of the model reads the same rows, which may be gigabytes."""
        return self


class AdaptedVAE(VAEModule):
    """A VAE somebody else wrote, behind the contract. Its modules are inside; their weights are never changed.

    `encode` and `decode` run the foreign modules in eval mode and restore each module's flag, until `.train()` is
    called on this model itself. `print(model)` shows what was understood, `summary` in another language.

    Args:
        encoder: x (N, *data_shape) -> what `posterior` takes.
        decoder: z (B, *event_shape) -> the likelihood's parameters.
        prior, posterior: as in `VAEModule`.
        likelihood: None for latent-only mode, in which nothing about p(x given z) can be scored.
        model_name: what the model is called in tables.
        understood: what `print` shows, one for each line.
        foreign: the modules whose weights are proved unchanged.
        data_shape: shape of a row, where it is known; data_range: what its entries lie in.
        device: where it runs, needed only where nothing inside has parameters.
        loss, training_facts, own_rows: what is known of the training.
        grey: whether a Bernoulli will have to score grey pixels, which it cannot without binarising them.
        conditional: as in `VAEModule`.
        read: makes rows of what the package calls data (an AnnData); None where arrays are all there is.
        notes: what was warned of when it was adapted.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        *,
        prior: Prior,
        posterior: Posterior,
        likelihood: Likelihood | None,
        model_name: str,
        understood: Sequence[Understood] = (),
        foreign: Sequence[nn.Module] = (),
        data_shape: Sequence[int] | None = None,
        data_range: tuple[float, float] | None = None,
        device: torch.device | str | None = None,
        loss: Loss | None = None,
        training_facts: TrainingFacts | None = None,
        own_rows: OwnRows | None = None,
        grey: bool = False,
        conditional: bool = False,
        read: Callable[[Any], Batch] | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        scored = LatentOnly() if likelihood is None else likelihood
        super().__init__(encoder, decoder, prior, posterior, scored, conditional=conditional)
        self.model_name, self.understood = model_name, list(understood)
        self.foreign = tuple(foreign)  # in a tuple, so that a module in both networks is not registered thrice
        self.data_shape = None if data_shape is None else torch.Size(data_shape)
        self.data_range = data_range
        self.loss, self.training_facts, self.own_rows, self.grey = loss, training_facts, own_rows, grey
        self.read, self.notes = read, list(notes)
        self._given_device = None if device is None else torch.device(device)
        for part in (prior, posterior, scored):
            part.to(self.device).eval()
        self.training = False  # this flag alone: those of the foreign modules are their owner's

    @property
    def device(self) -> torch.device:
        """Where the foreign model is."""
        found = next((t.device for m in self.foreign for t in (*m.parameters(), *m.buffers())), None)
        return found or self._given_device or torch.device("cpu")

    @property
    def can_score(self) -> bool:
        """Whether there is a likelihood, hence a log p(x given z)."""
        return not isinstance(self.likelihood, LatentOnly)

    @property
    def sigma(self) -> float | None:
        """The fixed sigma of a Normal likelihood, else None."""
        fixed = isinstance(self.likelihood, Normal) and not isinstance(self.likelihood.scale, str)
        return float(self.likelihood.scale) if fixed else None  # type: ignore[arg-type]  # no string, as checked

    def encode(self, batch: Batch | Tensor) -> LatentDistribution:
        with self._at_work():
            return super().encode(batch)

    def decode(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        with self._at_work():
            return super().decode(z, context)

    def check_parameters(self, x: Tensor, params: Tensor) -> None:
        if self.can_score:  # else whatever is decoded is only shown
            super().check_parameters(x, params)

    def weights_sha256(self) -> str:
        """SHA-256 of every foreign parameter and buffer; "" where there is no module."""
        return weights_sha256(*self.foreign)

    def summary(self, lang: str = "en") -> str:
        """What was understood, in lines of at most 79 characters.

        Raises:
            InputError: an unknown language.
        """
        lines = [line for part in self.understood for line in part.lines(lang)]
        return "\n".join(lines) or f"Adapted {self.model_name}"

    def config(self) -> dict[str, Any]:
        """Refused: the code of a foreign model is not ours to store."""
        raise CapabilityError(
            f"{self.model_name} is adapted: its code is yours and is not stored. Save the prior fitted to it "
            "(lf.save(fix.prior, 'prior/')) and go on decoding with your own model."
        )

    def __repr__(self) -> str:
        return self.summary()

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        if self.training:
            yield
        else:
            with in_eval(self.encoder, self.decoder):
                yield


class LatentOnly(Likelihood):
    """In place of a likelihood that was not given: the decoder's output is shown, nothing of it is scored."""

    base_measure = "density"

    def __init__(self) -> None:
        super().__init__()

    def entry_log_prob(self, x: Tensor, params: Tensor, context: Tensor | None = None) -> Tensor:
        raise CapabilityError(
            "No likelihood is known of this model, so log p(x), the ELBO and the inference gap cannot be computed. "
            "Give it: adapt(model, example=x, likelihood='normal' | 'bernoulli' | ...)."
        )

    def mean(self, params: Tensor, context: Tensor | None = None) -> Tensor:
        return params

    def sample(self, params: Tensor, context: Tensor | None = None, generator: Generator | None = None) -> Tensor:
        raise CapabilityError(
            "No likelihood is known of this model, so x cannot be drawn, only decoded: "
            "sample(n, observation_noise=False), or adapt(..., likelihood=...)."
        )

    def check(self, x: Tensor) -> None:
        """Whatever it is, it is not scored."""


@contextmanager
def in_eval(*modules: nn.Module) -> Iterator[None]:
    """Foreign modules in eval mode inside, by their flags alone: `train` of somebody else's module may do anything."""
    with modes_kept(*modules):
        for module in modules:
            for part in module.modules():
                part.training = False
        yield
