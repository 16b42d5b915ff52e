"""log p(x) by importance sampling, with what says whether it can be trusted."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentfit.errors import CapabilityError, InputError, ReliabilityWarning
from latentfit.evaluation.codes import encode_rows
from latentfit.evaluation.estimate import Estimate
from latentfit.evaluation.local import PAIRS, REFINEMENT_STREAM, Refinement
from latentfit.evaluation.pooling import OverModels, PooledWeights
from latentfit.evaluation.proposal import Frame, Proposal, encoder_proposal, fit_proposal, log_joint
from latentfit.evaluation.psis import RELIABLE_K
from latentfit.evaluation.rows import RowNoise, blocks, decoder_rows, drawn_models, evaluation_rows, frozen, to_numpy
from latentfit.model.contracts import RANKABLE
from latentfit.model.vae import VAEModule

#: share of unreliable rows above which the caller is warned
UNRELIABLE_SHARE = 0.01
#: draws below which the weights' tail is not known (five weights make it)
FEWEST_JUDGED = 25


@dataclass(frozen=True)
class LogLikelihood:
    """Importance-sampled log p(x) of N rows, nats; M models, S draws of z from each.

    Attributes:
        values: (N,) log of the mean weight: biased downward, by less the more draws.
        effective_sample_size: (N,) (sum w)^2 / sum w^2 over all draws, between 1 and M S; where one model explains the
            row, its own.
        pareto_k: (N,) shape of the weights' tail, of each model by itself, averaged by its share in p(x); nan below 25
            draws.
        std_error: (N,) of each value as that of these M models, by S draws in each (delta method).
        doubling: mean over rows of what the second half of the draws added, nats; about twice the bias that
            is left.
        estimate: the mean over rows, with its standard error over rows.
        n_importance_samples: S, draws per row and model.
        n_models: M, how many models were combined by log-sum-exp.
        over_models: what drawing M models and no more leaves uncertain in the mean over rows; None where M = 1.
    """

    values: np.ndarray
    effective_sample_size: np.ndarray
    pareto_k: np.ndarray
    std_error: np.ndarray
    doubling: float
    estimate: Estimate
    n_importance_samples: int
    n_models: int = 1
    over_models: OverModels | None = None

    @property
    def unreliable(self) -> float:
        """Share of rows whose Pareto-k is above 0.7, or cannot be computed."""
        return float(np.mean(~(self.pareto_k <= RELIABLE_K)))

    def __float__(self) -> float:
        return self.estimate.value

    def __str__(self) -> str:
        text = f"log p(x) = {self.estimate} nats per row ({len(self.values):,} rows"
        return f"{text})" if self.over_models is None else f"{text}; {self.over_models})"


def log_likelihood(
    vae: VAEModule | Sequence[VAEModule],
    X: Any,
    *,
    n_importance_samples: int = 1000,
    proposal: Proposal | Sequence[Proposal] | None = None,
    X_train: Any = None,
    groups: Any = None,
    random_state: int = 0,
    batch_size: int | None = None,
    refinement_steps: int = 100,
    frames: Sequence[Frame] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> LogLikelihood:
    r"""log p(x) per row by importance sampling from the evaluation proposal e(z given x).

        log p(x) ~ log 1/S sum_s p(x|z_s) p(z_s) / e(z_s|x),   z_s ~ e

    A lower bound in expectation, exact as S grows (Burda et al. 2016, arXiv 1509.00519). The same
    `random_state` gives the same noise to the same row whichever model is scored, so differences between
    models of one latent dimension are paired.

    Several models are combined as the mixture they are, log 1/M sum_m p_m(x). A VAE with a distribution over its
    weights is scored by its draws, each with the same weight, for they come from that distribution itself:
    p(x) = E_w[p(x given w)]. The logarithm of a mean over M draws is too low by Jensen's inequality; `over_models` says
    by how much. Each model gets S importance samples and its own refinement of the rows' proposals: one proposal for
    all would leave the posteriors p(z given x, w_m) of other decoders to its defensive component.

    Args:
        vae: a VAE, or several; of a distribution over weights, `vae.n_draws` seeded draws.
        X: (N, *data_shape), rows to score.
        n_importance_samples: S, draws per row and model; honoured exactly.
        proposal: from `fit_proposal`, one for each model, or one for all that share an encoder: each refines it.
        X_train: rows to fit the proposal on, where none is given; with neither, the encoder itself with a
            widened defensive component serves.
        groups: (N,) labels of related rows, for a cluster-robust error of the mean.
        random_state: seed.
        batch_size: decoder calls at once (rows times draws); by default what stays in the cache, or keeps a GPU busy.
        refinement_steps: gradient steps that fit each scored row's own Gaussian proposal from the shared one (each
            costs about a dozen draws); 0 leaves the shared one, which fails on rows the encoder has not seen where it
            overfits.
        frames: from `refined_rows`, one for each model, where the rows' own proposals are known already.
        progress: called with ("log p(x)", rows done, rows), of all models together.

    Returns:
        The values, their errors, and effective sample size, Pareto-k and k-doubling.

    Raises:
        CapabilityError: a prior whose density cannot enter log p(x).
        InputError: rows or counts that cannot be used.

    Warns:
        ReliabilityWarning: where more than 1 % of the rows have a Pareto-k above 0.7.
    """
    models = drawn_models(vae, random_state)
    if n_importance_samples < 1:
        raise InputError(f"n_importance_samples must be at least 1, got {n_importance_samples}.")
    if batch_size is not None and batch_size < 1:
        raise InputError(f"batch_size must be at least 1, got {batch_size}.")
    for model in models:
        require_density(model)
    proposals = _proposals(models, proposal, X_train, random_state)
    known: Sequence[Frame | None] = [None] * len(models) if frames is None else frames
    if len(known) != len(models):
        raise InputError(f"log_likelihood: {len(models)} models need as many frames, got {len(known)}.")
    batch = evaluation_rows(X, models[0])

    def of_model(stream: int) -> Callable[[int], None]:
        def told(done: int) -> None:
            if progress is not None:
                progress("log p(x)", stream * len(batch) + done, len(models) * len(batch))

        return told

    pool: list[PooledWeights] = []
    for stream, (model, e, frame) in enumerate(zip(models, proposals, known, strict=True)):
        parts = _log_weights(
            model,
            X,
            e,
            n_importance_samples,
            random_state,
            stream,
            batch_size,
            refinement_steps,
            frame,
            of_model(stream),
        )
        for i, log_w in enumerate(parts):
            if stream == 0:
                pool.append(PooledWeights())
            pool[i].add(log_w)
    weights = batch.weight
    result = _summary(pool, None if weights is None else to_numpy(weights), groups)
    if n_importance_samples < FEWEST_JUDGED:
        warnings.warn(
            f"{n_importance_samples} importance samples are too few to judge their weights by; that takes at least "
            f"{FEWEST_JUDGED}, and 5,000 are usual.",
            ReliabilityWarning,
            stacklevel=2,
        )
    elif result.unreliable > UNRELIABLE_SHARE:
        remedy = "take more importance samples" + ("" if X_train is not None or proposal else " or give X_train=")
        warnings.warn(
            f"Importance sampling is unreliable for {result.unreliable:.0%} of rows (Pareto-k > {RELIABLE_K}): "
            f"log p(x) is too low there, by an unknown amount; {remedy}.",
            ReliabilityWarning,
            stacklevel=2,
        )
    return result


def require_density(vae: VAEModule) -> None:
    """Refuse priors whose density cannot enter log p(x).

    Raises:
        CapabilityError: with the reason in one line.
    """
    kind = vae.prior.density
    if kind in RANKABLE:
        return
    name = vae.prior.name or type(vae.prior).__name__
    reason = {
        "none": "it has no density, only samples",
        "approximate": "its density is only approximate",
        "log_unbiased": "a noisy log-density biases importance sampling upward, by half its variance",
    }[kind]
    raise CapabilityError(
        f"log p(x) cannot be computed under the prior {name!r}: {reason}. Compare by sample quality instead."
    )


def _summary(pool: list[PooledWeights], weights: np.ndarray | None, groups: Any) -> LogLikelihood:
    def joined(name: str) -> np.ndarray:
        return np.concatenate([to_numpy(getattr(block, name)) for block in pool], axis=-1)

    log_p = np.concatenate([to_numpy(torch.stack(block.log_p)) for block in pool], axis=-1)  # (M, N)
    values = joined("values")
    return LogLikelihood(
        values=values,
        effective_sample_size=joined("effective_sample_size"),
        pareto_k=joined("pareto_k"),
        std_error=joined("std_error"),
        doubling=float(joined("doubling").mean()),
        estimate=Estimate.of(values, weights=weights, groups=groups),
        n_importance_samples=pool[0].n_samples,
        n_models=len(log_p),
        over_models=OverModels.of(log_p, weights) if len(log_p) > 1 else None,
    )


def _proposals(
    models: list[VAEModule], given: Proposal | Sequence[Proposal] | None, X_train: Any, random_state: int
) -> list[Proposal]:
    if given is None:
        if X_train is None:
            return [encoder_proposal(model) for model in models]
        return [fit_proposal(model, X_train, random_state=random_state) for model in models]
    proposals = [given] if isinstance(given, Proposal) else list(given)
    if len(proposals) == 1 and all(model.encoder is models[0].encoder for model in models):
        proposals *= len(models)
    if len(proposals) != len(models):
        raise InputError(f"log_likelihood: {len(models)} models need as many proposals, got {len(proposals)}.")
    return proposals


def _log_weights(
    vae: VAEModule,
    X: Any,
    proposal: Proposal,
    n: int,
    random_state: int,
    stream: int,
    batch_size: int | None,
    refinement_steps: int,
    known: Frame | None,
    told: Callable[[int], None],
) -> Iterator[Tensor]:
    """log p(x, z) - log e(z given x) of blocks of rows: each (n, R), float64.

    Memory: `batch_size` decoded rows at a time, whatever n, N and the size of x.
    """
    batch = evaluation_rows(X, vae)
    codes = encode_rows(vae, batch, random_state=random_state)
    noise = RowNoise(len(batch), random_state, stream)
    search = RowNoise(len(batch), random_state, stream + REFINEMENT_STREAM)
    refined = Refinement(vae, proposal, batch, codes, search, refinement_steps)
    budget = batch_size or decoder_rows(batch, vae.device)
    with frozen(vae, proposal, random_state=random_state):
        for chunk in blocks(len(batch), max(1, budget // (2 * PAIRS))):
            part = batch[chunk].to(vae.device)
            frame = refined(chunk) if known is None else known[chunk]
            # latents are small: several decoder calls share what is done once per block
            for rows in blocks(len(part), max(1, 4 * budget // n)):
                eps = noise.draw(
                    slice(chunk.start + rows.start, chunk.start + rows.stop), n, (proposal.dim,), codes.mean
                )
                with torch.inference_mode():
                    z, log_e = proposal.draw(frame[rows], eps)  # (n, R, *E), (n, R)
                    draws = blocks(n, max(1, budget // z.shape[1]))
                    log_p = torch.cat([log_joint(vae, part[rows], z[picked]) for picked in draws])
                    log_w = log_p.double() - log_e.double()
                    # a draw where p(x, z) is 0 or overflowed carries no weight
                yield torch.where(log_w.isnan(), -math.inf, log_w).cpu()
            told(chunk.stop)
