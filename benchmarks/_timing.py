"""Interleaved timing: every arm runs once in each round, so that a busy machine slows all of them alike."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from latentfit.saving import write_atomic

RESULTS = Path(__file__).parent / "results"


def one_thread() -> None:
    """A benchmark is a program, so it may set threads; with two, small kernels can be 4-10x slower."""
    torch.set_num_threads(1)


def interleave(
    arms: Mapping[str, Callable[[], int]],
    *,
    rounds: int,
    warmup: int = 2,
    clock: Callable[[], float] = time.process_time,
) -> dict[str, list[float]]:
    """Seconds per unit of work of every arm in every round.

    Args:
        arms: by name; each call does some work and returns how many units (steps, samples) it was.
        rounds: measured rounds; the arms' order is reversed in every second one.
        warmup: rounds that are not measured.
        clock: CPU time by default, which other programs on the machine disturb least.

    Returns:
        One number per round for each arm.
    """
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(warmup + rounds):
        names = list(arms) if number % 2 else list(reversed(arms))
        for name in names:
            began = clock()
            units = arms[name]()
            if number >= warmup:
                seconds[name].append((clock() - began) / units)
    return seconds


def summary(seconds: Mapping[str, list[float]], reference: str) -> dict[str, Any]:
    """Medians in microseconds, and each arm's median over the rounds of its ratio to the reference arm's."""
    base = seconds[reference]
    return {
        name: {
            "median_us": round(1e6 * statistics.median(values), 1),
            "ratio": round(statistics.median(v / b for v, b in zip(values, base, strict=True)), 4),
            "ratio_quartiles": [
                round(q, 4) for q in statistics.quantiles((v / b for v, b in zip(values, base, strict=True)), n=4)[::2]
            ],
        }
        for name, values in seconds.items()
    }


def store(name: str, result: Mapping[str, Any], out: Path = RESULTS) -> Path:
    """Write NAME.json to benchmarks/results or another folder: what numbers depend on, not the machine's name."""
    path = out / f"{name}.json"
    facts = {"torch": torch.__version__, "threads": torch.get_num_threads(), "clock": "CPU seconds"}
    write_atomic(path, json.dumps({**facts, **result}, indent=2) + "\n")
    return path
