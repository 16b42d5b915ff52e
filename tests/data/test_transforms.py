from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentfit.data.transforms import (
    Identity,
    LogStandardise,
    Standardise,
    Transform,
    drop_constant_columns,
    resolution,
)
from latentfit.errors import InputError
from latentfit.registry import registry

#: one line for each transform: how to build it, for rows of which shape
TABLE = {
    "identity": (lambda: Identity(4), (4,)),
    "standardise, table": (lambda: Standardise(4), (4,)),
    "standardise, images": (lambda: Standardise((2, 3)), (2, 3)),
    "standardise, images per pixel": (lambda: Standardise((2, 3), per_column=True), (2, 3)),
    "standardise, table shared": (lambda: Standardise(4, per_column=False), (4,)),
    "log_standardise": (lambda: LogStandardise((2, 3)), (2, 3)),
}


@pytest.fixture(params=TABLE)
def case(request):
    build, shape = TABLE[request.param]
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(40, *shape, generator=generator, dtype=torch.float64) * 20
    return build().double().fit(x), x


def test_round_trip(case):
    transform, x = case
    torch.testing.assert_close(transform.inverse(transform(x)), x)


def test_log_det_is_that_of_the_jacobian(case):
    transform, x = case
    for row in x[:3]:
        jacobian = torch.autograd.functional.jacobian(transform, row).reshape(row.numel(), row.numel())
        expected = torch.linalg.slogdet(jacobian).logabsdet
        torch.testing.assert_close(transform.log_det(row.unsqueeze(0)).sum(), expected)


def test_masked_log_det_counts_observed_entries_only(case):
    transform, x = case
    mask = torch.rand(x.shape, generator=torch.Generator().manual_seed(2)) < 0.5
    slopes = torch.autograd.grad(transform(leaf := x.clone().requires_grad_()).sum(), leaf)[0]
    expected = torch.where(mask, slopes.abs().log(), 0.0).flatten(1).sum(1)
    torch.testing.assert_close(transform.log_det(x, mask).expand(len(x)), expected)


def test_rebuilt_from_its_configuration_and_state(case):
    transform, x = case
    twin = registry.build("transform", transform.config()).double()
    twin.load_state_dict(transform.state_dict())
    assert type(twin) is type(transform)
    assert torch.equal(twin(x), transform(x))


def test_every_registered_transform_is_in_the_table():
    built = {build().name for build, _ in TABLE.values()}
    assert built == set(registry.names("transform"))


def test_a_table_has_unit_columns_and_images_one_scale():
    x = torch.randn(500, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 10.0, 100.0])
    y = Standardise(3).fit(x)(x)
    torch.testing.assert_close(y.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(y.std(0, correction=0), torch.ones(3))
    images = x.reshape(500, 1, 3)
    shared = Standardise((1, 3)).fit(images)
    assert shared.scale.shape == ()
    torch.testing.assert_close(shared(images).std(correction=0), torch.tensor(1.0))


def test_unobserved_entries_do_not_count():
    x = torch.tensor([[1.0], [3.0], [1e6]])
    masked = Standardise(1).fit(x, torch.tensor([[True], [True], [False]]))
    assert (masked.loc.item(), masked.scale.item()) == (2.0, 1.0)


def test_the_scale_is_never_below_the_rounding_error():
    x = torch.zeros(10_000, 1)
    x[0] = 1.0  # std 0.01, rounding 1 / sqrt(12)
    assert Standardise(1).fit(x).scale.item() == pytest.approx(12**-0.5)


def test_a_gene_never_seen_does_not_refuse_the_others():
    x = torch.tensor([[0.0, 0.0], [0.0, 5.0]])
    transform = LogStandardise(2).fit(x)
    assert transform.scale[0] == 1
    assert torch.isfinite(transform(torch.tensor([[7.0, 1.0]]))).all()


@given(gap=st.floats(1e-3, 1e3), steps=st.lists(st.integers(-50, 50), min_size=2, max_size=30))
@settings(max_examples=60, deadline=None)
def test_resolution_of_a_lattice_is_a_multiple_of_its_gap(gap, steps):
    x = torch.tensor(steps, dtype=torch.float64).unsqueeze(1) * gap
    found = resolution(x).item()
    distances = np.diff(np.unique(steps))
    assert found == pytest.approx(distances.min() * gap if len(distances) else 0.0)


def test_resolution_per_column():
    x = torch.tensor([[0.0, 1.0, 5.0], [0.5, 3.0, 5.0], [2.0, 4.0, 5.0]])
    assert resolution(x, per_column=True).tolist() == [0.5, 1.0, 0.0]


def test_constant_columns_are_dropped_and_listed():
    x = np.array([[1, 5, 2], [2, 5, 2], [3, 5, 9]])
    table, kept, dropped = drop_constant_columns(x, ["a", "b", "c"])
    assert np.array_equal(table, x[:, [0, 2]])
    assert (kept, dropped) == (("a", "c"), ("b",))
    assert drop_constant_columns(x)[2] == ("1",)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Standardise(2).fit(torch.tensor([[1.0, 2], [1, 3]])), r"1 constant columns \(0\): nothing"),
        (lambda: Standardise((2, 2)).fit(torch.ones(3, 2, 2)), "1 constant data set: nothing to standardise"),
        (lambda: Standardise(2).fit(torch.ones(3, 4)), r"built for rows of shape \(2,\), got \(4,\)"),
        (lambda: Standardise(2).fit(torch.ones(1, 2)), "needs two observed values in every column"),
        (lambda: Standardise(0), "data_shape must be positive, got 0"),
        (lambda: Standardise(()), "data_shape must be positive"),
        (lambda: LogStandardise(1).fit(torch.tensor([[-2.0], [1.0]])), "takes counts, got a value of -2"),
        (lambda: LogStandardise(1).log_det(), "depends on x"),
        (lambda: drop_constant_columns(np.ones((3, 2))), "All 2 columns are constant"),
        (lambda: drop_constant_columns(np.ones((3, 2, 2))), r"takes a table \(N, D\), got shape \(3, 2, 2\)"),
        (lambda: drop_constant_columns(np.eye(3), ["a"]), "1 names for 3 columns"),
        (lambda: registry.create("transform", "standardize"), "calls it 'standardise'"),
    ],
)
def test_what_cannot_be_transformed_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_transforms_are_abstract_or_final():
    with pytest.raises(TypeError, match="abstract"):
        Transform(2)  # type: ignore[abstract]
