"""Some rows through an untrained VAE: whether its parts meet, before hours are spent on it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TypeVar

import torch

from latentfit.data.batch import Batch
from latentfit.errors import InputError, ReliabilityWarning
from latentfit.model.vae import VAEModule
from latentfit.training import isolated_rng
from latentfit.training.modes import in_eval

T = TypeVar("T")

_ROWS = 64
#: standard deviations of the codes at which a decoder is asked whether anything takes it out of [0, 1]
_FAR = 100.0


@torch.no_grad()
def try_out(module: VAEModule, data: Batch, prepare: Callable[[Batch], Batch] | None, random_state: int) -> None:
    """Encode and decode some rows in eval mode; no weight, no mode and no random state is changed.

    Raises:
        InputError: an encoder or decoder of another width than the rows, the posterior or the likelihood.

    Warns:
        ReliabilityWarning: a decoder that ends in a sigmoid under a likelihood that reads logits.
    """
    with in_eval(module), isolated_rng(random_state, module.device):
        part = data[:_ROWS].to(module.device)
        _meet(module, part if prepare is None else prepare(part))
        if module.likelihood.reads_logits and _is_squashed(module, part):
            name = module.likelihood.name or type(module.likelihood).__name__
            warnings.warn(
                f"The decoder's output lies in [0, 1] whatever z is, as after a sigmoid, but likelihood {name!r} reads "
                "logits: every probability will be between 0.50 and 0.73. Leave the decoder's sigmoid out.",
                ReliabilityWarning,
                stacklevel=4,  # the caller of `fit`, past torch's decorator
            )


def _meet(module: VAEModule, part: Batch) -> None:
    shape, width = _text(part.x.shape[1:]), module.posterior.n_parameters
    expected = f"It must take (N, {shape}) and return (N, {width}): change its first layer, or reshape the rows"
    q = _tried(lambda: module.encode(part), "encoder", f"rows ({len(part)}, {shape})", expected)
    z, _ = q.rsample_with_log_prob(1)
    inside = _text(module.event_shape)
    expected = f"It must take (N, {inside}): change its first layer, or latent_dim"
    params = _tried(lambda: module.decode(z[0], part.context), "decoder", f"codes ({len(part)}, {inside})", expected)
    module.check_parameters(part.x, params)


def _tried(run: Callable[[], T], network: str, what: str, expected: str) -> T:
    try:
        return run()
    except torch.cuda.OutOfMemoryError:
        raise
    except RuntimeError as error:  # what torch raises where shapes do not meet
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise InputError(f"The {network} failed on {what}: {reason}. {expected}.") from error


def _is_squashed(module: VAEModule, part: Batch) -> bool:
    """Whether codes as far out as never seen are decoded to both ends of [0, 1], and none beyond.

    Small logits of an untrained decoder may lie in [0, 1] by chance near the prior, but not out there.
    """
    z = _FAR * torch.randn(len(part), *module.event_shape, device=module.device, dtype=part.x.dtype)
    try:
        params = module.decode(z, part.context)
    except Exception:  # a decoder may refuse such codes, and training will never show it any
        return False
    moves = bool((params != params[:1]).any())
    return moves and 0 <= params.min().item() < 0.25 and 0.75 < params.max().item() <= 1


def _text(shape: torch.Size) -> str:
    return ", ".join(map(str, shape))
