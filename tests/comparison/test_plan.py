"""A plan's arithmetic: minutes become steps, jobs become seconds, workers stay busy."""

from __future__ import annotations

import dataclasses

import pytest

from latentfit.comparison.plan import FIXED_SECONDS, Plan
from latentfit.comparison.run import _topped_up

STEP = {"standard": 0.003, "annealed": 0.003, "mixture": 0.004, "realnvp": 0.01}


def plan_of(max_steps: int = 1500) -> Plan:
    recipe = {"max_steps": max_steps, "batch_size": 128}
    return Plan({"recipe": recipe}, list(STEP), ["learned_gaussian", "mixture"], 3, STEP, n_scored=500)


@pytest.mark.parametrize("workers", [1, 2, 8])
@pytest.mark.parametrize("seconds", [1.0, 30.0, 45.0, 60.0, 90.0, 1e4])
def test_minutes_become_the_steps_that_take_them(seconds, workers):
    plan = plan_of()
    steps = plan.steps_within(seconds, workers)
    assert 100 <= steps <= plan.max_steps
    if 100 < steps < plan.max_steps:
        assert plan_of(steps).seconds(workers) <= seconds < plan_of(steps + 1).seconds(workers)
    elif steps == 100:
        assert plan_of(101).seconds(workers) > seconds
    else:
        assert plan.seconds(workers) <= seconds


def test_a_plan_takes_what_its_jobs_take():
    plan = plan_of()
    total = sum(map(plan.job_seconds, plan.first + plan.second))
    assert plan.seconds(1) - plan.seconds(2) == pytest.approx(total / 2)
    assert Plan.from_json(plan.to_json()) == plan


def test_fits_of_flows_and_annealing_are_counted():
    plan = plan_of()
    (ladder, *_), (null, *_) = plan.ladders, plan.null
    rows = dataclasses.replace(plan, n_train=6_000)
    assert rows.job_seconds(ladder) == plan.job_seconds(ladder)  # Gaussians and mixtures fit at once
    flow = dataclasses.replace(plan, rungs=["realnvp"])
    assert dataclasses.replace(flow, n_train=6_000).job_seconds(ladder) == pytest.approx(flow.job_seconds(ladder) + 20)
    annealed = dataclasses.replace(plan, n_annealed=128)
    assert annealed.job_seconds(null) - plan.job_seconds(null) == pytest.approx(0.003 * 128 * 7_600 / (6 * 128))


def test_a_ladder_waits_for_its_model_however_many_workers_there_are():
    plan = dataclasses.replace(plan_of(), n_train=6_000, rungs=["realnvp"])
    chain = plan.job_seconds(plan.null[0]) + plan.job_seconds(plan.ladders[0])
    assert plan.seconds(50) == pytest.approx(chain + FIXED_SECONDS)


def test_a_plan_of_an_earlier_version_is_read():
    data = plan_of().to_json()
    del data["n_annealed"], data["n_train"]
    assert Plan.from_json(data) == plan_of()


@pytest.mark.parametrize("workers", [1, 2, 3, 5, 8, 20])
def test_no_worker_waits_while_later_jobs_are_there(workers):
    plan = plan_of()
    nulls, later = _topped_up(plan.null, plan.second, workers)
    ladders, last = _topped_up(plan.ladders, later, workers)
    assert nulls[: plan.n_seeds] == plan.null  # first, for everything stands on them
    assert not later or len(nulls) % workers == 0
    assert not last or len(ladders) % workers == 0
    done = [*nulls, *ladders, *last]
    assert len(done) == len({job.key for job in done}) == len(plan.first + plan.second)
    assert dataclasses.replace(plan, n_seeds=1).null == plan.null[:1]
