"""A training step asks nothing of the device, by torch's meta device, which has no numbers to give.

A number that goes to a GPU or comes from it in each step holds up the launches behind it, and cannot be captured.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from latentfit import methods
from latentfit.data import Batch

#: what they ask for: the scale of the batch's distances; how many rows are encoded anew; networks of their own
ASKING = {"mmd", "exemplar", "adversarial"}
JOINT = sorted(name for name, method in methods.METHODS.items() if method.joint and name not in ASKING)
N = 30


class NothingFromTheHost(TorchFunctionMode):
    """Refuses tensors that are made of numbers on the host, on the device."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func in (torch.tensor, torch.as_tensor, Tensor.new_tensor, Tensor.to, Tensor.copy_):
            given = [a for a in args if isinstance(a, Tensor)]
            if result.device.type == "meta" and not (given and all(a.device.type == "meta" for a in given)):
                raise AssertionError(f"{func.__name__} copies from the host to the device.")
            if func is Tensor.new_tensor and result.device.type == "meta":
                raise AssertionError("new_tensor copies from the host to the device: see new_full.")
        return result


@pytest.fixture
def no_autocast(monkeypatch):
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *device: False)  # it knows no meta device


@pytest.mark.parametrize("method", JOINT)
def test_step(method, no_autocast):
    recipe = methods.get(method)
    vae = methods.build(recipe, data_shape=(12,), latent_dim=4, likelihood="normal")
    vae.prior.bind(vae, Batch(torch.rand(2 * N, 12)))
    vae = vae.to("meta").train()
    objective = recipe.objective(100)
    objective.n_train = 2 * N
    batch = Batch(torch.empty(N, 12, device="meta"), index=torch.empty(N, dtype=torch.long, device="meta"))
    with NothingFromTheHost():
        loss = objective(vae, batch)["loss"]
        loss.backward()
    assert loss.device.type == "meta"
