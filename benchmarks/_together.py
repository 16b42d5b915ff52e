"""Several seeds of one VAE trained at once, without a word to the device between validations.

A small VAE's step on a GPU is bound by the launches of its kernels, not by their work. So M seeds of a model are one
model with a leading dimension (`torch.func.vmap`), their weights one tensor (M, P), and some steps on end (draws of the
rows and of the noise, forward, backward, clipping, fused Adam with a schedule read from a table) are one CUDA graph.
Groups with other models run beside it on streams of their own. On a CPU the same steps run one after the other.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from latentfit import saving
from latentfit.data import Batch
from latentfit.model import ELBO, VAEModule
from latentfit.model.schedules import Schedule
from latentfit.training import Recipe, independent_seeds
from latentfit.training.batches import ShuffledEpochs

#: steps of one graph
CHUNK = 5
#: validation rows at once
VALIDATION_ROWS = 5_000


class Weight(Schedule):
    """A KL weight that is read from the device."""

    def __init__(self, settled_at: int, device: torch.device) -> None:
        self.value, self.steps = torch.zeros((), device=device), settled_at

    def __call__(self, step: int) -> float:
        return self.value  # type: ignore[return-value]

    @property
    def settled_at(self) -> int:
        return self.steps


class Terms(nn.Module):
    """x (B, 784) -> the loss and the ELBO at weight 1, with noise from a generator of one's own."""

    def __init__(self, vae: VAEModule, objective: ELBO, generator: torch.Generator, weight: Tensor) -> None:
        super().__init__()
        self.vae, self.objective, self.generator, self.weight = vae, objective, generator, weight

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        terms = self.objective(self.vae, Batch(x), generator=self.generator)
        # the objective's own weight is 1: what is decided by a number on the device cannot be captured
        return terms["loss"] + (self.weight - 1) * terms["kl"], terms["elbo"]


class Group:
    """M copies of a VAE that differ by their seed, trained on the same images under dynamic binarisation.

    Args:
        vaes: M models of the same architecture; afterwards (`finish`) with the best weights.
        train: (N, D) grey values in [0, 1]; held_out: (V, D) binary. Both on the device of the models.
        kl_weight: the schedule.
        recipe: the steps, the rates, the clipping and the averaging.
        seeds: one for each model.
    """

    def __init__(
        self,
        vaes: Sequence[VAEModule],
        train: Tensor,
        held_out: Tensor,
        kl_weight: Schedule,
        recipe: Recipe,
        seeds: Sequence[int],
    ) -> None:
        self.vaes, self.train, self.held_out, self.recipe = list(vaes), train, held_out, recipe
        self.device = device = train.device
        for vae in self.vaes:
            vae.to(device).train()
            vae.prior.bind(vae, Batch(train))
        for name, buffer in vaes[0].named_buffers():
            if not all(torch.equal(buffer, dict(vae.named_buffers())[name]) for vae in vaes):
                raise ValueError(f"The seeds differ in the buffer {name}, which this engine shares.")
        order_seeds, noise_seeds = zip(*(independent_seeds(seed, 3)[:2] for seed in seeds), strict=True)
        self.generator = torch.Generator(device).manual_seed(noise_seeds[0])
        steps = recipe.max_steps
        epochs = [ShuffledEpochs(len(train), recipe.batch_size, seed) for seed in order_seeds]
        order = torch.stack([torch.stack([e.next().int() for _ in range(steps)]) for e in epochs], 1)
        self.order = order.to(device)  # (T, M, B)
        self.rates = torch.tensor([recipe.rate(t) for t in range(steps)], device=device)
        self.weights = torch.tensor([float(kl_weight(t)) for t in range(steps)], device=device)
        self.weight = Weight(kl_weight.settled_at, device)
        objective = ELBO()
        objective.n_train = len(train)
        self.terms = Terms(vaes[0], objective, self.generator, self.weight.value)

        named = [(name, p) for name, p in self.terms.named_parameters() if p.requires_grad]
        self.names = [name for name, _ in named]
        self.shapes = [p.shape for _, p in named]
        flat = [nn.utils.parameters_to_vector(p for p in vae.parameters() if p.requires_grad) for vae in vaes]
        self.flat = torch.stack(flat).detach().requires_grad_()  # (M, P)
        self.rate = torch.zeros((), device=device)
        self.optimiser = torch.optim.Adam([self.flat], lr=self.rate, fused=True, capturable=device.type == "cuda")
        self.average = self.flat.detach().clone()
        self.best, self.best_step = self.average.clone(), torch.zeros(len(vaes), device=device)
        self.best_value = torch.full((len(vaes),), torch.inf, device=device)
        self.step = torch.zeros(1, dtype=torch.int64, device=device)
        self.skipped = torch.zeros((), device=device)
        self.done, self.seconds = 0, 0.0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def advance(self) -> None:
        """One step, without anything from the host: it can be captured."""
        rows = self.order.index_select(0, self.step)[0]  # (M, B)
        grey = self.train.index_select(0, rows.flatten()).unflatten(0, rows.shape)
        x = (torch.rand(grey.shape, generator=self.generator, device=self.device) < grey).to(grey.dtype)
        self.weight.value.copy_(self.weights.index_select(0, self.step)[0])
        self.rate.copy_(self.rates.index_select(0, self.step)[0])
        self.flat.grad = None
        loss, _ = self._each(self.flat, x)
        loss.sum().backward()
        gradient = self.flat.grad
        norm = torch.linalg.vector_norm(gradient, dim=1, keepdim=True)
        if self.recipe.clip_norm is not None:
            gradient.mul_((self.recipe.clip_norm / norm).clamp(max=1.0))
        # fused Adam leaves the step out where this is 1
        self.optimiser.found_inf = (~norm.isfinite()).any().float()
        self.optimiser.step()
        self.skipped.add_(self.optimiser.found_inf)
        self.step.add_(1)

    def capture(self) -> str:
        """Make a graph of `CHUNK` steps, where there is a GPU; says what the steps will run as."""
        if self.stream is None:
            return "eager"
        torch.cuda.synchronize(self.device)
        self.chunk()  # libraries allocate in their first call, which a capture may not see
        torch.cuda.synchronize(self.device)
        graph = torch.cuda.CUDAGraph()
        try:
            graph.register_generator_state(self.generator)
            # a stream of its own: groups that ran on one would share cuBLAS's workspace
            with torch.cuda.graph(graph, stream=self.stream):
                for _ in range(CHUNK):
                    self.advance()
        except RuntimeError as error:
            torch.cuda.synchronize(self.device)
            return f"eager ({type(error).__name__}: {str(error).splitlines()[0]})"
        self.graph = graph
        return "graph"

    def chunk(self) -> None:
        """`CHUNK` steps, and the average of the weights brought up to date."""
        with torch.cuda.stream(self.stream):  # nothing on a CPU
            n = min(CHUNK, self.recipe.max_steps - self.done)
            if self.graph is not None and n == CHUNK:
                self.graph.replay()
            else:
                for _ in range(n):
                    self.advance()
            self.done += n
            decay = min(self.recipe.ema_decay, (1 + self.done) / (10 + self.done)) ** n
            self.average.lerp_(self.flat.detach(), 1 - decay)

    @torch.no_grad()
    def validate(self) -> None:
        """Keep each model's averaged weights where its validation ELBO is the best so far."""
        with torch.cuda.stream(self.stream):
            self.terms.eval()
            self.terms.generator = torch.Generator(self.device).manual_seed(0)  # the same noise each time
            value = torch.zeros(len(self.vaes), device=self.device)
            for x in self.held_out.split(VALIDATION_ROWS):
                _, elbo = self._each(self.average, x, same=True)
                value -= elbo * len(x) / len(self.held_out)
            self.terms.generator = self.generator
            self.terms.train()
            better = value < self.best_value  # false for nan
            self.best_value.copy_(torch.where(better, value, self.best_value))
            self.best_step.copy_(torch.where(better, float(self.done), self.best_step))
            self.best.copy_(torch.where(better[:, None], self.average, self.best))

    def finish(self) -> list[dict[str, float]]:
        """Put the best weights into the models; what there is to say of each."""
        facts = []
        for m, vae in enumerate(self.vaes):
            with torch.no_grad():
                nn.utils.vector_to_parameters(self.best[m], [p for p in vae.parameters() if p.requires_grad])
            vae.eval()
            facts.append(
                {
                    "steps": self.done,
                    "best_step": int(self.best_step[m]),
                    "validation_elbo": -float(self.best_value[m]),
                    "skipped_steps": int(self.skipped),
                    "n_parameters": self.flat.shape[1],
                }
            )
        return facts

    def save(self, path: Path) -> None:
        """All that it takes to go on later."""
        adam = {f"adam.{key}": value for key, value in self.optimiser.state[self.flat].items()}
        state = {name: getattr(self, name).detach() for name in _STATE}
        saving.save_tensors(path, {**state, **adam, "noise": self.generator.get_state()}, {"done": self.done})

    def load(self, path: Path) -> None:
        """Go on from `save`; before `capture`."""
        tensors, meta = saving.load_tensors(path)
        self.done = meta["done"]
        self.generator.set_state(tensors["noise"])
        with torch.no_grad():
            for name in _STATE:
                getattr(self, name).copy_(tensors[name])
        self.optimiser.state[self.flat] = {
            key.removeprefix("adam."): value.to(self.device)
            for key, value in tensors.items()
            if key.startswith("adam.")
        }

    def _each(self, flat: Tensor, x: Tensor, same: bool = False) -> tuple[Tensor, Tensor]:
        """Loss and ELBO (M,) of the models with weights flat (M, P) on x (M, B, D), or, `same`, all on x (B, D)."""
        parts = flat.split([shape.numel() for shape in self.shapes], dim=1)
        parameters = {n: p.unflatten(1, s) for n, p, s in zip(self.names, parts, self.shapes, strict=True)}
        if len(flat) == 1:  # as it is, for what cannot be vectorised
            loss, elbo = self._terms({n: p[0] for n, p in parameters.items()}, x if same else x[0])
            return loss[None], elbo[None]
        in_dims, randomness = (0, None if same else 0), "same" if same else "different"
        return vmap(self._terms, in_dims=in_dims, randomness=randomness)(parameters, x)

    def _terms(self, parameters: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        return functional_call(self.terms, parameters, (x,))


#: what changes in training, beside the optimiser and the noise
_STATE = ("flat", "average", "best", "best_value", "best_step", "step", "skipped")


def train(groups: Sequence[Group], deadline: float) -> bool:
    """Train groups of equally many steps side by side; False where the time was up before."""
    recipe, device = groups[0].recipe, groups[0].device
    every = max(CHUNK, recipe.validation_interval // CHUNK * CHUNK)
    while min(group.done for group in groups) < recipe.max_steps:
        for group in groups:
            group.chunk()
        done = min(group.done for group in groups)
        if done % every == 0 or done == recipe.max_steps:
            for group in groups:
                group.validate()
            if device.type == "cuda":
                torch.cuda.synchronize(device)  # else the clock would run far ahead of the work
            if time.monotonic() > deadline and done < recipe.max_steps:
                return False
    return True
