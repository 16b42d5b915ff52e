"""`dense` gives torch's numbers, whichever library multiplies, and leaves to torch what the direct call cannot do."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import forward_ad
from torch.nn import functional as F

from latentfit.networks import products
from latentfit.networks.products import dense

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="a build of torch without oneDNN")


@pytest.fixture(autouse=True)
def called(monkeypatch):
    """oneDNN whatever this processor, from the smallest products on; how often it was asked."""
    calls, real = [], products._one_dnn
    monkeypatch.setattr(products, "LARGE", 0)
    monkeypatch.setattr(products, "_one_dnn_is_faster", lambda: True)
    monkeypatch.setattr(products, "_one_dnn", lambda *args: calls.append(args) or real(*args))
    return calls


def operands(*shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    sizes = (shape, (7, shape[-1]), (7,))
    return [torch.randn(size, generator=generator, dtype=dtype).requires_grad_() for size in sizes]


@pytest.mark.parametrize("shape", [(5, 3), (4, 5, 3), (1, 3)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_values_and_both_derivatives(shape, with_bias, called):
    x, weight, bias = operands(*shape)
    given = (x, weight, bias) if with_bias else (x, weight)

    def both(product):
        value = product(*given)
        slopes = torch.autograd.grad(value.sin().sum(), given, create_graph=True)
        curvatures = torch.autograd.grad(sum(slope.square().sum() for slope in slopes), given)
        return value, *slopes, *curvatures

    for ours, torchs in zip(both(dense), both(F.linear), strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-4, atol=1e-5)
    assert len(called) >= 3


def test_parts_of_larger_matrices(called):
    x, weight, bias = (t.detach() for t in operands(6, 3))
    wide, tall = torch.cat((x, x), 1), torch.cat((weight, weight), 1)
    torch.testing.assert_close(dense(wide[:, 1:4], tall[:, 1:4], bias), F.linear(wide[:, 1:4], tall[:, 1:4], bias))
    torch.testing.assert_close(dense(x.T.contiguous().T, weight, bias), F.linear(x, weight, bias))
    assert all(t.is_contiguous() or t.T.is_contiguous() for args in called for t in map(products._whole, args[:2]))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch's own, on its first forward derivative
def test_what_is_left_to_torch(called):
    x, weight, bias = (t.detach() for t in operands(6, 3))
    torch.func.vmap(dense, in_dims=(0, None))(x, weight)
    torch.func.jvp(lambda x: dense(x, weight), (x,), (x,))
    with forward_ad.dual_level():
        moved = dense(forward_ad.make_dual(x, x), weight)
        torch.testing.assert_close(forward_ad.unpack_dual(moved).tangent, F.linear(x, weight))
    with torch.autocast("cpu", torch.bfloat16):
        assert dense(x, weight, bias).dtype == torch.bfloat16
    assert dense(x.double(), weight.double()).dtype == torch.float64
    assert dense(x.to("meta"), weight.to("meta")).device.type == "meta"
    assert not called


def test_small_products_are_torchs_own_to_the_bit(monkeypatch, called):
    monkeypatch.setattr(products, "LARGE", 8_000_000)
    x, weight, bias = operands(20, 3)
    assert torch.equal(dense(x, weight, bias), F.linear(x, weight, bias))
    assert not called
