"""Each schedule against its formula."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentfit.errors import InputError
from latentfit.model import schedules
from latentfit.registry import registry

steps = st.integers(1, 10_000)
weights = st.floats(0, 10)


@given(steps, weights, weights, st.floats(0, 1))
def test_linear_is_its_formula(n, start, end, share):
    step = int(share * n)
    expected = start + (end - start) * min(1.0, step / n)
    assert schedules.linear(n, start, end)(step) == pytest.approx(expected, abs=1e-9)


@given(steps, st.floats(0, 1))
def test_sigmoid_is_its_formula(n, share):
    step = int(share * n)
    low, high = (1 / (1 + math.exp(-10 * (u - 0.5))) for u in (0, 1))
    middle = 1 / (1 + math.exp(-10 * (min(1, step / n) - 0.5)))
    assert schedules.sigmoid(n)(step) == pytest.approx((middle - low) / (high - low), abs=1e-9)


@given(steps, weights, weights)
def test_ramps_meet_their_ends_and_settle(n, start, end):
    for ramp in (schedules.linear(n, start, end), schedules.sigmoid(n, start, end)):
        assert ramp(0) == pytest.approx(start, abs=1e-9)
        assert ramp(ramp.settled_at) == end == ramp(10 * n)


def test_schedules_rebuild_from_their_configuration():
    for schedule in (
        schedules.constant(0.3),
        schedules.linear(7, 0.1, 2.0),
        schedules.sigmoid(9, steepness=4.0),
    ):
        again = registry.build("schedule", schedule.config())
        assert [again(t) for t in range(12)] == [schedule(t) for t in range(12)]


def test_no_steps_are_refused():
    with pytest.raises(InputError, match="steps >= 1, got 0"):
        schedules.linear(0)
