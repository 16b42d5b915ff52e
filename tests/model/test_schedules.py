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


@given(steps, weights, weights, st.floats(0, 1))
def test_cosine_is_its_formula(n, start, end, share):
    step = int(share * n)
    expected = start + (end - start) * (1 - math.cos(math.pi * step / n)) / 2
    assert schedules.cosine(n, start, end)(step) == pytest.approx(expected, abs=1e-9)


@given(st.integers(1, 6), st.integers(1, 400), weights, weights, st.floats(0.05, 1), st.floats(0, 0.999))
def test_cyclical_is_its_formula(cycles, period, start, end, rise, share):
    """Fu et al. (2019): beta = f(tau) for tau <= R, else 1, tau the place within the cycle."""
    n = cycles * period
    step = int(share * n)
    tau = (step % period) / period
    expected = end if tau > rise else start + (end - start) * tau / rise
    assert schedules.cyclical(n, start, end, cycles, rise)(step) == pytest.approx(expected, abs=1e-9)


@given(st.integers(1, 6), st.integers(0, 3000), st.floats(0.05, 1))
def test_cyclical_settles_where_its_last_rise_ends(cycles, more, rise):
    schedule = schedules.cyclical(cycles + more, cycles=cycles, rise=rise)
    settled = schedule.settled_at
    assert settled <= schedule.steps
    assert all(schedule(t) == 1.0 for t in range(settled, settled + 50))
    assert settled == 0 or schedule(settled - 1) < 1.0 + 1e-12


@given(steps, weights, weights)
def test_ramps_meet_their_ends_and_settle(n, start, end):
    for ramp in (schedules.linear(n, start, end), schedules.sigmoid(n, start, end), schedules.cosine(n, start, end)):
        assert ramp(0) == pytest.approx(start, abs=1e-9)
        assert ramp(ramp.settled_at) == end == ramp(10 * n)


def test_schedules_rebuild_from_their_configuration():
    for schedule in (
        schedules.constant(0.3),
        schedules.linear(7, 0.1, 2.0),
        schedules.sigmoid(9, steepness=4.0),
        schedules.cosine(8, end=0.4),
        schedules.cyclical(12, cycles=3, rise=0.3),
    ):
        again = registry.build("schedule", schedule.config())
        assert [again(t) for t in range(12)] == [schedule(t) for t in range(12)]


def test_no_steps_are_refused():
    with pytest.raises(InputError, match="steps >= 1, got 0"):
        schedules.linear(0)


@pytest.mark.parametrize(("arguments", "message"), [({"cycles": 9}, "9 cycles in 8 steps"), ({"rise": 0.0}, "rise")])
def test_impossible_cycles_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        schedules.cyclical(8, **arguments)
