"""Laws of interruption: a run that was stopped and resumed is the run that was not, to the bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from latentfit.data import Batch, Rows
from latentfit.errors import InputError, ReliabilityWarning, SavedFileError
from latentfit.training import Recipe, TrainingResult, minimise
from latentfit.training import loop as loop_file

X = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
RECIPE = Recipe(max_steps=60, batch_size=16, validate_every=10, ema_decay=0.9, learning_rate=0.01, patience=50)


class Objective(nn.Module):
    """A loss with all that must be stored: noise, a parameter, a moving buffer, BatchNorm in the model."""

    counter: torch.Tensor

    def __init__(self, m: nn.Module) -> None:
        super().__init__()
        self.m = m
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("counter", torch.zeros(()))
        self.stop_at: int | None = None
        self.stop_with: BaseException | None = None

    def forward(self, batch: Batch, step: int) -> dict[str, torch.Tensor]:
        self.counter += 0.01
        noisy = self.m(batch.x + 0.1 * torch.randn_like(batch.x))
        if step == self.stop_at and self.stop_with is not None:
            raise self.stop_with
        error = (noisy - batch.x).square().mean()
        return {"loss": error * self.counter + (self.scale - self.counter).square(), "error": error}


def setting() -> tuple[nn.Module, Objective]:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        m = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 4))
    return m, Objective(m)


def run(m: nn.Module, objective: Objective, run_dir: Path | None, recipe: Recipe = RECIPE) -> TrainingResult:
    def validate() -> float:
        return (m(X + 0.1 * torch.randn_like(X)) - X).square().mean().item()

    @torch.no_grad()
    def restart() -> list[nn.Parameter]:
        last = m.get_parameter("3.weight")
        last.mul_(0.5)
        return [last]

    return minimise(
        m,
        objective,
        Rows(Batch(X)),
        recipe,
        validate=validate,
        run_dir=run_dir,
        random_state=5,
        restarts={25: restart, 33: restart},
        what="test",
    )


Finished = tuple[nn.Module, Objective, TrainingResult]


def assert_same(a: Finished, b: Finished) -> None:
    for p, q in zip(a[1].state_dict().values(), b[1].state_dict().values(), strict=True):
        assert torch.equal(p, q)
    for key in ("steps", "best_step", "best_value", "stopped", "skipped_steps", "rollbacks", "learning_rate"):
        assert getattr(a[2], key) == getattr(b[2], key)
    drop = {"seconds"}
    assert [{k: v for k, v in r.items() if k not in drop} for r in a[2].history] == [
        {k: v for k, v in r.items() if k not in drop} for r in b[2].history
    ]


@pytest.fixture(scope="module")
def straight():
    m, objective = setting()
    return m, objective, run(m, objective, None)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("the cable")])
@pytest.mark.parametrize("often", [False, True], ids=["at the end", "every snapshot"])
def test_interrupted_and_resumed_is_the_straight_run(tmp_path, straight, error, often, monkeypatch) -> None:
    if often:
        monkeypatch.setattr(loop_file, "SECONDS_PER_CHECKPOINT", 0.0)
    m, objective = setting()
    objective.stop_at, objective.stop_with = 37, error
    with pytest.raises(type(error)):
        run(m, objective, tmp_path)
    kept = {int(path.stem.rpartition("-")[2]) for path in tmp_path.glob("checkpoint-*")}
    assert kept == ({30, 33} if often else {33})
    m, objective = setting()
    assert_same((m, objective, run(m, objective, tmp_path)), straight)
    lines = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 61))
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_finished_run_is_not_run_again(tmp_path, straight) -> None:
    m, objective = setting()
    run(m, objective, tmp_path)
    m, objective = setting()
    objective.stop_at, objective.stop_with = 0, AssertionError("ran again")
    result = run(m, objective, tmp_path)
    assert_same((m, objective, result), straight)


KILLED = """
import sys
sys.path.insert(0, {here!r})
import test_resume as t
from pathlib import Path
t.loop_file.SECONDS_PER_CHECKPOINT = 0.0
m, objective = t.setting()
forward = objective.forward
def dying(batch, step):
    if step == 37:
        import os, signal
        os.kill(os.getpid(), signal.SIGKILL)
    return forward(batch, step)
objective.forward = dying
t.run(m, objective, Path({folder!r}))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_killed_and_resumed_is_the_straight_run(tmp_path, straight) -> None:
    code = KILLED.format(here=str(Path(__file__).parent), folder=str(tmp_path))
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert (tmp_path / "checkpoint-30.safetensors").is_file()
    m, objective = setting()
    assert_same((m, objective, run(m, objective, tmp_path)), straight)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def edit(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-50] ^= 1
    path.write_bytes(bytes(raw))


@pytest.mark.parametrize(("damage", "word"), [(truncate, "truncated or foreign"), (edit, "checksum")])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    tmp_path, straight, damage, word, monkeypatch
) -> None:
    monkeypatch.setattr(loop_file, "SECONDS_PER_CHECKPOINT", 0.0)
    m, objective = setting()
    objective.stop_at, objective.stop_with = 37, KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        run(m, objective, tmp_path)
    damage(tmp_path / "checkpoint-33.safetensors")
    m, objective = setting()
    with pytest.warns(ReliabilityWarning) as caught:
        result = run(m, objective, tmp_path)
    assert [str(w.message) for w in caught] == [
        f"{tmp_path / 'checkpoint-33'} is damaged ({word}), going back to checkpoint-30."
    ]
    assert_same((m, objective, result), straight)


def test_where_all_are_damaged_it_starts_over(tmp_path, straight) -> None:
    m, objective = setting()
    run(m, objective, tmp_path)
    for path in tmp_path.glob("checkpoint-*"):
        truncate(path)
    m, objective = setting()
    with pytest.warns(ReliabilityWarning, match="starting from the beginning"):
        result = run(m, objective, tmp_path)
    assert_same((m, objective, result), straight)


def test_a_folder_of_another_run_is_refused_and_untouched(tmp_path) -> None:
    run(*setting(), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(InputError, match=r"differs in: learning_rate 0.01 -> 0.1, clip_norm 200.0 -> 9.0\)"):
        run(*setting(), tmp_path, replace(RECIPE, learning_rate=0.1, clip_norm=9.0))
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def test_an_unwritable_folder_is_refused_before_training(tmp_path) -> None:
    (tmp_path / "file").write_text("not a folder", encoding="utf-8")
    m, objective = setting()
    objective.stop_at, objective.stop_with = 0, AssertionError("trained")
    with pytest.raises(SavedFileError, match="Cannot write") as caught:
        run(m, objective, tmp_path / "file" / "run")
    assert "\n" not in str(caught.value)


def test_a_disk_that_fills_up_warns_once_and_the_run_goes_on(tmp_path, straight, monkeypatch) -> None:
    monkeypatch.setattr(loop_file, "SECONDS_PER_CHECKPOINT", 0.0)
    m, objective = setting()
    sync, calls = os.fsync, []

    def full(file: int) -> None:
        calls.append(file)
        if len(calls) > 3:
            raise OSError(28, "No space left on device")
        sync(file)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.warns(ReliabilityWarning, match="No space left on device") as caught:
        result = run(m, objective, tmp_path)
    assert len(caught) == 1
    assert len(calls) > 5
    assert_same((m, objective, result), straight)


class Poisoned(Objective):
    """A loss that is not a number for five steps."""

    def forward(self, batch: Batch, step: int) -> dict[str, torch.Tensor]:
        terms = super().forward(batch, step)
        return {"loss": terms["loss"] * (float("nan") if 41 <= step < 46 else 1.0)}


@pytest.mark.parametrize("stop_at", [37, 44, 48])
def test_a_rollback_in_a_resumed_run_is_the_straight_runs(tmp_path, stop_at) -> None:
    finished = []
    for interrupted in (False, True):
        folder = tmp_path / str(interrupted)
        if interrupted:
            objective = Poisoned(setting()[0])
            objective.stop_at, objective.stop_with = stop_at, KeyboardInterrupt()
            with pytest.raises(KeyboardInterrupt):
                run(objective.m, objective, folder)
        objective = Poisoned(setting()[0])
        finished.append((objective.m, objective, run(objective.m, objective, folder)))
    assert_same(*finished)
    assert (finished[0][2].rollbacks, finished[0][2].skipped_steps) == (1, 5)
