"""Laws of progress: few events, the last one always, and nothing written where nobody asked."""

from __future__ import annotations

import io

import torch
from torch import nn

from latentfit.data import Batch, Rows
from latentfit.training import LiveProgress, PlainProgress, ProgressEvent, Recipe, minimise, show_progress
from latentfit.training import loop as loop_file
from latentfit.training.rng import independent_seeds, isolated_rng


def train(progress, max_steps: int = 100, **more) -> None:
    m = nn.Linear(2, 2)
    minimise(
        m,
        lambda batch, step: {"loss": (m(batch.x) - batch.x).square().mean()},
        Rows(Batch(torch.randn(30, 2, generator=torch.Generator().manual_seed(0)))),
        Recipe(max_steps=max_steps),
        progress=progress,
        what="fit",
        **more,
    )


def test_events_are_ordered_and_end_with_a_finished_one(monkeypatch) -> None:
    monkeypatch.setattr(loop_file, "SECONDS_PER_EVENT", 0.0)
    events: list[ProgressEvent] = []
    train(events.append)
    assert [event.step for event in events] == list(range(1, 101))
    assert [event.finished for event in events] == [False] * 99 + [True]
    assert all(event.max_steps == 100 and event.what == "fit" for event in events)
    assert all(event.seconds_left is not None and event.seconds_left >= 0 for event in events)
    assert set(events[-1].terms) == {"loss"}


def test_events_are_few() -> None:
    events: list[ProgressEvent] = []
    train(events.append, max_steps=400)
    assert len(events) <= 2 + events[-1].seconds / loop_file.SECONDS_PER_EVENT


def test_without_a_terminal_there_is_a_line_per_tenth(monkeypatch) -> None:
    monkeypatch.setattr(loop_file, "SECONDS_PER_EVENT", 0.0)
    stream = io.StringIO()
    with show_progress(stream) as progress:
        assert isinstance(progress, PlainProgress)
        train(progress)
    lines = stream.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == [f"{k}/100" for k in range(10, 101, 10)]
    assert "left" in lines[0]
    assert "in all" in lines[-1]
    assert stream.getvalue().isascii()


def test_the_live_bar_shows_the_run(monkeypatch) -> None:
    from rich.console import Console

    monkeypatch.setattr(loop_file, "SECONDS_PER_EVENT", 0.0)
    stream = io.StringIO()
    with LiveProgress(Console(file=stream, force_terminal=True, width=100)) as progress:
        train(progress)
    assert "fit" in stream.getvalue()
    assert "100/100" in stream.getvalue()


def test_without_progress_nothing_is_printed(capsys) -> None:
    train(None)
    out = capsys.readouterr()
    assert (out.out, out.err) == ("", "")


def test_isolated_rng_is_seeded_and_leaves_no_trace_even_after_an_error() -> None:
    before = torch.get_rng_state()
    draws = []
    for seed in (1, 1, 2):
        try:
            with isolated_rng(seed):
                draws.append(torch.rand(4))
                raise RuntimeError
        except RuntimeError:
            pass
        assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_independent_seeds_differ_and_repeat() -> None:
    seeds = [s for state in range(50) for s in independent_seeds(state, 3)]
    assert len(set(seeds)) == 150
    assert independent_seeds(7, 3) == independent_seeds(7, 3)
