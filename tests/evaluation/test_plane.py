"""The plane of the map: never a worse direction than any coordinate's, and the known one where one is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from latentfit.errors import InputError
from latentfit.evaluation.plane import worst_plane


def normal(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def wasserstein(a: torch.Tensor, b: torch.Tensor, v: torch.Tensor) -> float:
    return float(((a @ v).sort().values - (b @ v).sort().values).square().mean().sqrt())


@pytest.mark.parametrize("d", [2, 5, 40])
def test_two_modes_along_a_slanted_direction_are_found(d):
    slanted = normal(1, d, 7)[0]
    slanted = slanted / slanted.norm()
    z, p = normal(1_500, d, 0), normal(1_500, d, 1)
    modes = 2.0 * torch.where(torch.arange(1_500) % 2 == 0, 1.0, -1.0)
    z = z + (modes - z @ slanted).unsqueeze(-1) * slanted  # the rest of z is as p's
    plane = worst_plane(z, p)
    assert abs(float(plane.axes[:, 0] @ slanted)) > 0.97
    assert plane.distance >= wasserstein(z, p, slanted) - 1e-4


def test_no_coordinate_is_worse_than_the_worst_direction():
    z, p = normal(600, 6, 0) * torch.linspace(0.2, 2.0, 6), normal(600, 6, 1)
    plane = worst_plane(z, p)
    assert plane.distance >= max(wasserstein(z, p, axis) for axis in torch.eye(6)) - 1e-4


def test_the_axes_are_orthonormal_and_the_second_is_the_widest_across_the_first():
    z, p = (
        normal(800, 4, 0) * torch.tensor([0.05, 3.0, 1.0, 1.0]),
        normal(800, 4, 1) * torch.tensor([1.0, 3.0, 1.0, 1.0]),
    )
    plane = worst_plane(z, p)
    assert torch.allclose(plane.axes.T @ plane.axes, torch.eye(2), atol=1e-5)
    assert plane.axes[:, 0].abs().argmax() == 0
    assert plane.axes[:, 1].abs().argmax() == 1
    assert plane.of(z).shape == (800, 2)
    assert np.allclose(plane.of(z).mean(0), 0, atol=1e-4)


def test_codes_of_one_unit_have_a_plane_too():
    plane = worst_plane(normal(50, 1, 0), normal(50, 1, 1))
    assert plane.axes.tolist() == [[1.0, 0.0]]


def test_spatial_codes_are_flattened_and_the_same_call_gives_the_same_plane():
    z, p = normal(100, 8, 0).reshape(100, 2, 2, 2), normal(90, 8, 1).reshape(90, 2, 2, 2)
    assert torch.equal(worst_plane(z, p).axes, worst_plane(z, p).axes)


def test_one_code_is_no_map():
    with pytest.raises(InputError, match="at least 2"):
        worst_plane(normal(1, 2, 0), normal(9, 2, 0))
