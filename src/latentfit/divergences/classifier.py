"""The classifier two-sample test."""

from __future__ import annotations

import math
from typing import cast

import torch
from numpy.typing import ArrayLike
from torch import Generator, Tensor
from torch.nn import functional as F

from latentfit.data.batch import Batch
from latentfit.data.rows import Rows
from latentfit.divergences.samples import TwoSampleTest, two_samples
from latentfit.errors import InputError
from latentfit.networks import MLP
from latentfit.training import Recipe, minimise
from latentfit.training.rng import isolated_rng

HIDDEN = [64, 64]
#: of the rows it is trained on, those that stop it
VALIDATION = 0.2


def classifier_test(
    a: ArrayLike | Tensor, b: ArrayLike | Tensor, *, max_steps: int = 1_000, random_state: int = 0
) -> TwoSampleTest:
    r"""Whether a small network tells two samples apart, on rows it has not seen.

    Half of each sample trains it, the other half is classified. Where both come from one distribution its hits among
    the rows it calls a are hypergeometric, so the p-value is exact whatever the network learned.

    Args:
        a: (n, D), n >= 8.
        b: (m, D), m >= 8.
        max_steps: of its training, at most.
        random_state: of the halves and the training.

    Returns:
        The mean of both samples' accuracies: 0.5 where they cannot be told apart; its p-value, one-sided.

    Raises:
        InputError: other shapes, too few rows, entries that are not finite.

    Source: Lopez-Paz & Oquab (2017), Revisiting classifier two-sample tests, arXiv:1610.06545.

    Example:
        >>> x = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
        >>> classifier_test(x[:200], x[200:] + 2, max_steps=200).statistic > 0.8
        True
    """
    x, y = (sample.float() for sample in two_samples("classifier_test", a, b))
    if min(len(x), len(y)) < 8:
        raise InputError(f"classifier_test needs at least 8 rows of each sample, got {len(x)} and {len(y)}.")
    generator = Generator().manual_seed(random_state)
    halves = [sample[torch.randperm(len(sample), generator=generator).to(sample.device)] for sample in (x, y)]
    seen = [half[: len(half) // 2] for half in halves]
    unseen = [half[len(half) // 2 :] for half in halves]
    pooled = torch.cat(seen)
    mean, std = pooled.mean(0), pooled.std(0).clamp_min(1e-12)
    network = _trained([(part - mean) / std for part in seen], max_steps, random_state)
    with torch.no_grad():
        called_a = [(network((part - mean) / std).squeeze(-1) > 0).sum().item() for part in unseen]
    n, m = map(len, unseen)
    accuracy = 0.5 * (called_a[0] / n + 1 - called_a[1] / m)
    # of n + m rows c are called a; under the null those of them that are a's are hypergeometric
    called = int(sum(called_a))
    spread = 0.5 * math.sqrt(called * (n + m - called) / (n * m * (n + m - 1)))
    return TwoSampleTest(
        accuracy, _upper_tail(int(called_a[0]), called, n, m), (0.5 - 1.96 * spread, 0.5 + 1.96 * spread)
    )


def _trained(samples: list[Tensor], max_steps: int, random_state: int) -> MLP:
    """A network whose output is above 0 for rows of the first sample."""
    device = samples[0].device
    kept, stop = [], []
    for sample in samples:
        n_stop = max(1, round(VALIDATION * len(sample)))
        stop.append(sample[:n_stop])
        kept.append(sample[n_stop:])
    with isolated_rng(random_state):
        network = MLP(in_shape=[samples[0].shape[1]], out_shape=1, hidden=HIDDEN)

    def labelled(parts: list[Tensor]) -> Batch:
        target = torch.cat([torch.full((len(part), 1), float(i == 0), device=device) for i, part in enumerate(parts)])
        # both samples weigh the same
        weight = torch.cat([torch.full((len(part),), 1 / len(part), device=device) for part in parts])
        return Batch(torch.cat(parts), context=target, weight=weight)

    def loss(batch: Batch, step: int = 0) -> dict[str, Tensor]:
        rows = F.binary_cross_entropy_with_logits(network(batch.x), cast(Tensor, batch.context), reduction="none")
        return {"loss": batch.mean(rows.squeeze(-1))}

    held_out = labelled(stop)
    recipe = Recipe(
        max_steps=max_steps, batch_size=256, learning_rate=3e-3, weight_decay=1e-3, patience=5, device=str(device)
    )
    minimise(
        network,
        loss,
        Rows(labelled(kept)),
        recipe,
        validate=lambda: loss(held_out)["loss"].item(),
        random_state=random_state,
        what="classifier",
    )
    return network.eval()


def _upper_tail(hits: int, called: int, n: int, m: int) -> float:
    """P(H >= hits), H hypergeometric: of `called` rows out of n + m, those among the n."""

    def log_choose(total: int, part: int) -> float:
        return math.lgamma(total + 1) - math.lgamma(part + 1) - math.lgamma(total - part + 1)

    everything = log_choose(n + m, called)
    tail = [
        math.exp(log_choose(n, h) + log_choose(m, called - h) - everything)
        for h in range(max(hits, called - m, 0), min(called, n) + 1)
    ]
    return min(1.0, math.fsum(tail))
