"""Everything a run needs to go on from where it was, taken between two steps as one consistent whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor, nn

from latentfit.errors import SavedFileError
from latentfit.training.batches import ShuffledEpochs
from latentfit.training.updates import Adam, WeightAverage

_SMALL = 2**16


@dataclass(slots=True)
class Counters:
    """The numbers of a run; `stopped` is empty while it goes on."""

    step: int = 0
    seconds: float = 0.0
    best_value: float | None = None
    best_step: int = 0
    stale: int = 0
    skipped: int = 0
    bad_in_a_row: int = 0
    rollbacks: int = 0
    rate_factor: float = 1.0
    stopped: str = ""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Copies of the tensors, and the counters, after `counters.step` steps."""

    tensors: dict[str, Tensor]
    counters: Counters
    position: int


class TrainingState:
    """What changes in training, and how to copy it out and back in.

    Large buffers that nobody has written to since the start are left out of later snapshots: a prior may hold
    its whole training set in one. The first snapshot has them all.

    Args:
        module: the model.
        loss: the loss, where it is a module with a state of its own.
        optimiser: its parameters are the trained ones.
        average: the moving average of the weights, or None.
        epochs: the order of the rows.
        device: whose generator drives the noise.
    """

    def __init__(
        self,
        module: nn.Module,
        loss: nn.Module | None,
        optimiser: Adam,
        average: WeightAverage | None,
        epochs: ShuffledEpochs,
        device: torch.device,
    ) -> None:
        self.roots = {"module": module, **({} if loss is None else {"loss": loss})}
        self.optimiser, self.average, self.epochs, self.device = optimiser, average, epochs, device
        self.counters = Counters()
        self.best: dict[str, Tensor] | None = None
        self.parameters = [p for group in optimiser.param_groups for p in group["params"]]
        names = {id(p): f"{root}.{key}" for root, m in self.roots.items() for key, p in m.named_parameters()}
        self.names = [names.get(id(p), f"group.{i}") for i, p in enumerate(self.parameters)]
        self._untouched = {name: _identity(buffer) for name, buffer in self._buffers()}

    def weights(self, *, everything: bool = False) -> dict[str, Tensor]:
        """The trained parameters and the buffers that have changed, by name; not copied."""
        tensors = {name: p.detach() for name, p in zip(self.names, self.parameters, strict=True)}
        for name, buffer in self._buffers():
            # BatchNorm's kernel writes its statistics without counting a version, so small ones always go
            if everything or buffer.numel() <= _SMALL or self._untouched.get(name) != _identity(buffer):
                tensors[name] = buffer
        return tensors

    def capture(self, *, everything: bool = False, reuse: Snapshot | None = None) -> Snapshot:
        """A copy of the state now.

        Args:
            everything: with the untouched buffers.
            reuse: a snapshot nobody needs any more; writing into its memory is several times faster than new
                memory.
        """
        old = {} if reuse is None else reuse.tensors
        tensors: dict[str, Tensor] = {}

        def keep(name: str, tensor: Tensor) -> None:
            room = old.get(name)
            fits = room is not None and room.shape == tensor.shape and room.dtype == tensor.dtype
            tensors[name] = room.copy_(tensor) if room is not None and fits else tensor.clone()

        for name, tensor in self.weights(everything=everything).items():
            keep(f"weights.{name}", tensor)
        for i, p in enumerate(self.parameters):
            for key, tensor in self.optimiser.state.get(p, {}).items():
                keep(f"optimiser.{i}.{key}", tensor)
        for i, tensor in enumerate(() if self.average is None else self.average.values):
            keep(f"average.{i}", tensor)
        if self.best is not None:  # never written to after it was made
            tensors |= {f"best.{name}": tensor for name, tensor in self.best.items()}
        tensors["rng.cpu"] = torch.get_rng_state()
        if self.device.type == "cuda":
            tensors["rng.cuda"] = torch.cuda.get_rng_state(self.device)
        tensors["rng.order"], position = self.epochs.state()
        return Snapshot(tensors, replace(self.counters), position)

    def restore_weights(self, snapshot: Snapshot) -> None:
        """Back to the snapshot's weights and optimiser; noise, the order of rows and counters run on."""
        parts = _by_prefix(snapshot.tensors)
        self.load_weights(parts.get("weights", {}))
        self.optimiser.state.clear()
        for key, value in parts.get("optimiser", {}).items():
            number, name = key.split(".", 1)
            p = self.parameters[int(number)]
            # fused Adam counts its steps on the device of the parameter, so everything goes there
            self.optimiser.state.setdefault(p, {})[name] = value.to(p.device, copy=True)
        if self.average is not None:
            for i, value in enumerate(self.average.values):
                value.copy_(parts["average"][str(i)])

    def resume(self, snapshot: Snapshot) -> None:
        """Back to the snapshot in everything, to the bit."""
        self.restore_weights(snapshot)
        parts = _by_prefix(snapshot.tensors)
        if "best" in parts:
            self.best = {name: value.to(self.device) for name, value in parts["best"].items()}
        torch.set_rng_state(parts["rng"]["cpu"])
        if self.device.type == "cuda" and "cuda" in parts["rng"]:
            torch.cuda.set_rng_state(parts["rng"]["cuda"], self.device)
        self.epochs.restore(parts["rng"]["order"], snapshot.position)
        self.counters = replace(snapshot.counters)

    @torch.no_grad()
    def start_over(self, parameters: Iterable[nn.Parameter]) -> None:
        """Take these parameters as they are now for a start: no moments, and their average is themselves."""
        anew = {id(p) for p in parameters}
        for i, p in enumerate(self.parameters):
            if id(p) in anew:
                self.optimiser.state.pop(p, None)
                if self.average is not None:
                    self.average.values[i].copy_(p)

    def load_weights(self, tensors: dict[str, Tensor]) -> None:
        """Write tensors of `weights` back in place."""
        now = self.weights(everything=True)
        for name, value in tensors.items():
            if name not in now or now[name].shape != value.shape:
                raise SavedFileError(f"The stored state holds {name} {tuple(value.shape)}, which this model has not.")
            now[name].copy_(value)

    def keep_best(self) -> None:
        """Copy the current weights as the best."""
        self.best = {name: t.clone() for name, t in self.weights().items()}

    def _buffers(self) -> Iterator[tuple[str, Tensor]]:
        seen: set[int] = set()
        for root, module in self.roots.items():
            for name, buffer in module.named_buffers():
                if id(buffer) not in seen:
                    seen.add(id(buffer))
                    yield f"{root}.{name}", buffer


def counters_to_json(snapshot: Snapshot) -> dict[str, object]:
    """The part of a snapshot that is not tensors."""
    return {"counters": asdict(snapshot.counters), "position": snapshot.position}


def _identity(tensor: Tensor) -> tuple[int, int]:
    """Changes when a tensor is written to in place (its version) or replaced (its id)."""
    return id(tensor), -1 if tensor.is_inference() else tensor._version


def _by_prefix(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        prefix, name = key.split(".", 1)
        parts.setdefault(prefix, {})[name] = value
    return parts
