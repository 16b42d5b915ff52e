"""scvi-tools' SCVI behind the contract: its networks and likelihood, its own cells, and what its history says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from latentfit.adapters.adapted import AdaptedVAE, Loss, OwnRows, TrainingFacts
from latentfit.adapters.cells import CellContext, cells, own_rows
from latentfit.adapters.given import GivenGaussian
from latentfit.adapters.understood import Understood
from latentfit.errors import CapabilityError, InputError
from latentfit.likelihoods import NegativeBinomial, Poisson, ZeroInflatedNegativeBinomial
from latentfit.likelihoods.negative_binomial import LOG_DISPERSION_BOUNDS, check_counts, sample_counts
from latentfit.likelihoods.numerics import MAX_LOG_RATE, drawn, full_precision, negative_binomial_log_prob
from latentfit.model.contracts import Likelihood
from latentfit.priors import StandardNormalPrior

#: what scvi adds to a mean before its logarithm; with it, log p(x given z) is scvi's own
SCVI_EPS = 1e-8
#: nats per cell: a validation ELBO that won no more in the last fifth of its epochs has settled
SETTLED = 0.1
#: epochs of a validation curve below which nothing is said of it
SHORTEST_CURVE = 10


def matches(model: Any) -> bool:
    """Whether this is one of scvi-tools' models; scvi is not imported."""
    return any(base.__module__.startswith("scvi.model") for base in type(model).__mro__)


def adapt_model(model: Any, *, device: torch.device | str | None = None) -> AdaptedVAE:
    r"""A trained SCVI (or LinearSCVI) as an `AdaptedVAE`: nothing need be said, it knows everything itself.

    x are counts (N, genes); `Batch.context` (N, C) holds the library size, the batch and the covariates of each cell
    (`latentfit.adapters.cells.cells` makes such rows). q(z given x) is scvi's mean and variance; log p(x given z) is
    minus scvi's reconstruction loss. scvi's own `get_elbo` and `get_marginal_ll` have N(0, I) written into them, so
    another prior is scored here and not there.

    With `latent_distribution="ln"` z is scvi's untransformed latent, for there the prior lives. With
    `use_observed_lib_size=False` the library size is a second latent whose KL stays as it is: T(r) holds, and log p(x)
    is not computed.

    Args:
        model: the model, with its AnnData.
        device: where the model is moved; by default it stays.

    Raises:
        CapabilityError: another of scvi's models, or a likelihood or a dispersion that is not carried over.
        InputError: a model that is not trained, or that has no counts at hand.

    Source: Lopez et al. (2018), scVI, doi:10.1038/s41592-018-0229-2. Tested with scvi-tools 1.4.2 and 1.5.1.
    """
    module = _checked(model)
    if device is not None:
        model.to_device(device)
    layout = CellContext.of(module, model.adata_manager)
    observed, facts, rows = bool(module.use_observed_lib_size), training_facts(model), own_rows(model)
    name = type(model).__name__
    reached = facts.kl_weight_reached
    return AdaptedVAE(
        SCVIEncoder(module, layout),
        SCVIDecoder(module, layout),
        prior=StandardNormalPrior(module.n_latent),
        posterior=GivenGaussian(module.n_latent),
        likelihood=_likelihood(module) if observed else None,
        model_name=name,
        understood=_understood(name, module, layout, facts, rows),
        foreign=[module],
        data_shape=(module.n_input,),
        loss=None if reached is None else Loss(reached, "nll"),
        training_facts=facts,
        own_rows=rows,
        conditional=True,
        read=lambda adata: cells(model, adata=adata),
    )


class SCVIEncoder(nn.Module):
    """scvi's own inference: counts (N, genes) and context (N, C) -> mean and standard deviation, each (N, D)."""

    def __init__(self, module: nn.Module, layout: CellContext) -> None:
        super().__init__()
        self.module: Any = module
        self.layout = layout

    def forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        if context is None and not self.module.encode_covariates:
            context = x.new_ones(len(x), sum(self.layout.widths))  # this encoder reads none of it
        inputs = self.module._get_inference_input({"X": x, **_tensors(self.layout, context)})
        with _draws_unnoticed(x):
            q = self.module.inference(**inputs)["qz"]
        return q.loc, q.scale


class SCVIDecoder(nn.Module):
    """scvi's own generative model: z (B, D) and context (B, C) -> the likelihood's parameters (B, genes[, P]).

    They are the log-mean with the library size in it, then log theta where that differs between cells, then the
    dropout logit of "zinb".
    """

    def __init__(self, module: nn.Module, layout: CellContext) -> None:
        super().__init__()
        self.module: Any = module
        self.layout = layout

    def forward(self, z: Tensor, context: Tensor | None) -> Tensor:
        tensors = _tensors(self.layout, context)
        latents = {"z": self.module.z_encoder.z_transformation(z), "library": tensors["library"].log()}
        p = self.module.generative(**self.module._get_generative_input(tensors, latents))["px"]
        if self.module.gene_likelihood == "poisson":
            return (p.rate + SCVI_EPS).log()
        params = [(p.mu + SCVI_EPS).log()]
        if self.module.dispersion != "gene":
            params.append((p.theta + SCVI_EPS).log())
        if self.module.gene_likelihood == "zinb":
            params.append(p.zi_logits)
        return params[0] if len(params) == 1 else torch.stack(params, dim=-1)


class CellDispersion(Likelihood):
    """Negative binomial, zero-inflated or not, whose dispersion the decoder gives for each cell and gene.

    params: (..., N, genes, 2), log-mean and log theta, or (..., N, genes, 3) with the dropout logit. The densities
    are those of `NegativeBinomial` and `ZeroInflatedNegativeBinomial`.
    """

    base_measure = "mass"

    def __init__(self, zero_inflated: bool) -> None:
        super().__init__()
        self.zero_inflated = zero_inflated
        self.n_parameters = 3 if zero_inflated else 2

    def entry_log_prob(self, x: Tensor, params: Tensor, context: Tensor | None = None) -> Tensor:
        log_mean, log_theta, dropout = self._parts(params)
        counted = negative_binomial_log_prob(x.to(log_mean.dtype), log_mean, log_theta)
        if dropout is None:
            return counted
        return torch.where(x == 0, torch.logaddexp(dropout, counted), counted) - F.softplus(dropout)

    def mean(self, params: Tensor, context: Tensor | None = None) -> Tensor:
        log_mean, _, dropout = self._parts(params)
        return log_mean.exp() if dropout is None else torch.sigmoid(-dropout) * log_mean.exp()

    @torch.no_grad()
    def sample(self, params: Tensor, context: Tensor | None = None, generator: Generator | None = None) -> Tensor:
        log_mean, log_theta, dropout = self._parts(params)
        counts = sample_counts(log_mean.exp(), log_theta, generator)
        return (
            counts if dropout is None else counts * drawn(torch.bernoulli, torch.sigmoid(-dropout), generator=generator)
        )

    def check(self, x: Tensor) -> None:
        check_counts("zinb" if self.zero_inflated else "negative_binomial", x, None)

    def _parts(self, params: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        log_mean, log_theta, *dropout = full_precision(params).unbind(-1)
        bounded = log_theta.clamp(*LOG_DISPERSION_BOUNDS)
        return log_mean.clamp(max=MAX_LOG_RATE), bounded, dropout[0] if dropout else None


def training_facts(model: Any) -> TrainingFacts:
    """The KL weight of the last step, the warm-up where it was not finished, and whether the validation ELBO settled.

    A model that was loaded keeps its history and not its plan. The history has the KL weight of every tenth step with
    its epoch: epoch / weight is the length of a warm-up by epochs.
    """
    history = model.history or {}
    settled, plan = _settled(history), getattr(getattr(model, "trainer", None), "lightning_module", None)
    if plan is not None:
        epochs, steps = int(model.trainer.current_epoch), int(model.trainer.global_step)
        unit = "epochs" if plan.n_epochs_kl_warmup else "steps"
        done, length = (epochs, plan.n_epochs_kl_warmup) if unit == "epochs" else (steps, plan.n_steps_kl_warmup)
        low, high = float(plan.min_kl_weight), float(plan.max_kl_weight)
        if not length or done > length:
            return TrainingFacts(high, None, settled)
        weight = low + (high - low) * (done - 1) / length
        return TrainingFacts(weight, _warmup(unit, done, length), settled)
    logged, curve = history.get("kl_weight"), history.get("elbo_train")
    if logged is None or curve is None:
        return TrainingFacts(converged=settled)
    weight, epochs = float(logged.iloc[-1, 0]), len(curve)
    if weight >= 1:
        return TrainingFacts(weight, None, settled)
    found = float(logged.index[-1]) / weight if weight > 0 else 0.0
    if round(found) > 0 and abs(found - round(found)) < 1e-3:
        length = round(found)
        return TrainingFacts((epochs - 1) / length, _warmup("epochs", epochs, length), settled)
    return TrainingFacts(weight, _warmup("fewer", epochs), settled)


def _warmup(what: str, done: int, length: int = 0) -> Understood:
    return Understood(f"warmup.{what}", {"done": done, "length": length})


def _settled(history: Any) -> bool | None:
    """Whether the last fifth of the validation curve won no more than 0.1 nat per cell over the best before."""
    curve = history.get("elbo_validation")
    if curve is None or len(curve) < SHORTEST_CURVE:
        return None
    # scvi's "elbo" is the negative one: the smaller, the better
    values = np.asarray(curve, dtype=float).ravel()
    before = values[: len(values) * 4 // 5].min()
    return bool(before - values.min() <= SETTLED)


def _checked(model: Any) -> Any:
    """The module of a model that can be adapted."""
    kind = type(model).__name__
    module: Any = getattr(model, "module", None)
    classes = {base.__name__ for base in type(module).__mro__ if base.__module__.startswith("scvi.module")}
    if "VAE" not in classes or "SCANVAE" in classes:
        raise CapabilityError(
            f"{kind} is not adapted: only SCVI and LinearSCVI are. Its latents can be diagnosed alone: mean, var = "
            "model.get_latent_representation(return_dist=True); lf.diagnose_latents(mean, var=var)."
        )
    if not model.is_trained:
        raise InputError(f"This {kind} is not trained yet: call model.train() first.")
    if getattr(model, "minified_data_type", None) is not None:
        raise InputError(
            f"This {kind} is minified: its codes are kept, its counts may not be. Load it with the full AnnData, or "
            "diagnose the codes alone: mean, var = latentfit.adapters.cells.latents_of(adata); "
            "lf.diagnose_latents(mean, var=var)."
        )
    if model.adata is None:
        raise InputError(f"This {kind} has no AnnData: load it with its counts, {kind}.load(dir, adata=adata).")
    if module.gene_likelihood not in ("zinb", "nb", "poisson"):
        raise CapabilityError(
            f"gene_likelihood={module.gene_likelihood!r} is not adapted (scvi marks it experimental); zinb, nb and "
            "poisson are."
        )
    if module.dispersion == "gene-label" and module.gene_likelihood != "poisson":
        raise CapabilityError(
            "dispersion='gene-label' is not adapted: a new cell could be scored only with its label. gene, gene-batch "
            "and gene-cell are."
        )
    return module


def _likelihood(module: Any) -> Likelihood:
    if module.gene_likelihood == "poisson":
        return Poisson()
    zero_inflated = module.gene_likelihood == "zinb"
    if module.dispersion != "gene":
        return CellDispersion(zero_inflated)
    counts = (ZeroInflatedNegativeBinomial if zero_inflated else NegativeBinomial)(n_columns=module.n_input)
    counts.log_dispersion = module.px_r  # scvi's own parameter: what is trained on here is trained there
    return counts


def _understood(
    name: str, module: Any, layout: CellContext, facts: TrainingFacts, rows: OwnRows | None
) -> list[Understood]:
    """What `print` shows."""
    given = [Understood("given.size_factor" if layout.size_factor else "given.library")]
    given += [Understood("given.batches", {"n": layout.n_batch})] if layout.n_batch > 1 else []
    n_covariates = len(layout.n_categories) + layout.n_reals
    if n_covariates:
        given.append(Understood("given.covariate" + "s" * (n_covariates > 1), {"n": n_covariates}))
    built = {"likelihood": module.gene_likelihood, "genes": module.n_input, "units": module.n_latent}
    decoded = {"likelihood": module.gene_likelihood, "dispersion": module.dispersion, "given": tuple(given)}
    lines = [
        Understood("head.cells", {"name": name, **built, "device": str(module.device)}),
        Understood("encode.cells", {"units": module.n_latent}),
        Understood("decode.cells", decoded),
    ]
    if facts.kl_weight_reached is not None:
        code = "loss.cells" + ".warmup" * (facts.warmup is not None)
        lines.append(Understood(code, {"kl_weight": facts.kl_weight_reached, "warmup": facts.warmup}))
    if module.latent_distribution == "ln":
        lines.append(Understood("prior.softmax"))
    if not module.use_observed_lib_size:
        lines.append(Understood("library.latent"))
    if rows is None:
        return [*lines, Understood("rows.none")]
    return [*lines, Understood("rows.own", {"train": len(rows.train), "held_out": len(rows.held_out)})]


def _tensors(layout: CellContext, context: Tensor | None) -> dict[str, Any]:
    """Batch.context (N, C) under the names that scvi's module reads."""
    library, batch, categories, reals = layout.unpack(context)
    return {
        "batch": batch,
        "labels": torch.zeros_like(batch),  # read by a dispersion per label alone
        "extra_categorical_covs": categories,
        "extra_continuous_covs": reals,
        "size_factor": library if layout.size_factor else None,
        "library": library,
    }


@contextmanager
def _draws_unnoticed(like: Tensor) -> Iterator[None]:
    """scvi draws z as it encodes: that draw is not used, and nobody's generator moves by it."""
    with torch.random.fork_rng(devices=[like.device] if like.is_cuda else []):
        yield
