"""The tables of docs/flow-prior-or-flow-posterior.md, from the stored results alone."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latentfit import saving

START, END = "<!-- tables: python benchmarks/flow_prior_or_posterior.py --phase collect -->", "<!-- /tables -->"

#: rows of a step, and passes over the data below which nothing is concluded
BATCH, ENOUGH_PASSES = 200, 40
TOO_SHORT = " Far too short a run to conclude anything from: it shows that the script runs, and what it reports."

Facts = Mapping[str, Any]


def write_tables(page: Path, facts: Facts, words: Mapping[str, str]) -> None:
    """Put the tables between the page's marks."""
    text = page.read_text(encoding="utf-8")
    before, rest = text.split(START)
    after = rest.split(END)[1]
    saving.write_atomic(page, f"{before}{START}\n\n{tables(facts, words)}\n{END}{after}")


def tables(facts: Facts, words: Mapping[str, str]) -> str:
    """For each number of training images a table of the longest runs there are, then the times of a step."""
    longest: dict[int, int] = {}
    for name in facts["runs"]:
        _, rows, steps, _ = parsed(name)
        longest[rows] = max(steps, longest.get(rows, 0))
    parts = [table(facts["runs"], rows, steps, words) for rows, steps in sorted(longest.items())]
    return "\n".join([*parts, *(timing(device, arms, words) for device, arms in sorted(facts["timing"].items()))])


def parsed(name: str) -> tuple[str, int, int, int]:
    """arm-rows-steps-seed."""
    arm, rows, steps, seed = name.rsplit("-", 3)
    return arm, int(rows), int(steps), int(seed)


def table(runs: Facts, rows: int, steps: int, words: Mapping[str, str]) -> str:
    """One line an arm: the mean over seeds, and its standard error where there are two or more."""
    found: dict[str, dict[int, Facts]] = {}
    for name, run in runs.items():
        arm, n, t, seed = parsed(name)
        if (n, t) == (rows, steps):
            found.setdefault(arm, {})[seed] = run
    base = found.get("standard", {})
    any_run = next(iter(next(iter(found.values())).values()))
    trained: dict[str, list[str]] = {}
    for arm, label in words.items():
        for run in found.get(arm, {}).values():
            if label not in trained.setdefault(run["trained"], []):
                trained[run["trained"]].append(label)
    rest = max(trained, key=lambda device: len(trained[device]))
    other = [f"{device}: {', '.join(labels)}" for device, labels in trained.items() if device != rest]
    lines = [
        f"**{rows:,} training images, {steps:,} steps**; {any_run['n_test']:,} test images, {any_run['k']:,} "
        f"importance samples; trained on: {'; '.join([*other, rest])}."
        + (TOO_SHORT if steps * BATCH < ENOUGH_PASSES * rows else ""),
        "",
        "| | seeds | -log p(x) | won over N(0, I) | -ELBO | inference gap | active units | best step |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for arm, label in words.items():
        seeds = found.get(arm, {})
        if not seeds:
            lines.append(f"| {label} | not run | | | | | | |")
            continue
        won = [base[s]["nll"]["value"] - run["nll"]["value"] for s, run in seeds.items() if s in base]
        cells = [
            mean([run["nll"]["value"] for run in seeds.values()]),
            mean(won) if won and arm != "standard" else "",
            mean([-run["elbo"]["value"] for run in seeds.values()]),
            mean([run["inference_gap"]["value"] for run in seeds.values()]),
            mean([run["active_units"] for run in seeds.values()], 1),
            f"{statistics.mean(run['best_step'] for run in seeds.values()):,.0f}",
        ]
        lines.append(f"| {label} | {len(seeds)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def mean(values: list[float], digits: int = 2) -> str:
    """The mean over seeds, with its standard error where there is one."""
    value = statistics.mean(values)
    if len(values) < 2:
        return f"{value:.{digits}f}"
    return f"{value:.{digits}f} ± {statistics.stdev(values) / math.sqrt(len(values)):.{digits}f}"


def timing(device: str, arms: Facts, words: Mapping[str, str]) -> str:
    """Milliseconds of one training step of one model, and the ratio to N(0, I) in the same run."""
    lines = [
        f"**A training step** of batch 200, one model alone, on: {device}.",
        "",
        "| | ms | ratio |",
        "| --- | --- | --- |",
    ]
    lines += [
        f"| {label} | {arms[arm]['ms']:.2f} | {arms[arm]['ratio']:.2f} |" for arm, label in words.items() if arm in arms
    ]
    return "\n".join(lines) + "\n"
