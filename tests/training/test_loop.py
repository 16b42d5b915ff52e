"""Laws of the one loop: it is Adam, it leaves the caller alone, it keeps the best, it survives bad steps."""

from __future__ import annotations

import math
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from latentfit.data import Batch, Rows
from latentfit.errors import InputError, ReliabilityWarning, TrainingError
from latentfit.training import Recipe, minimise, precision

X = torch.linspace(-1, 1, 50)[:, None] + torch.randn(50, 3, generator=torch.Generator().manual_seed(0))


class Recording(Rows):
    """Rows that remember what was asked for."""

    def __init__(self, x: torch.Tensor) -> None:
        super().__init__(Batch(x))
        self.asked: list[torch.Tensor] = []

    def batch(self, index: torch.Tensor) -> Batch:
        self.asked.append(index.clone())
        return super().batch(index)


def model(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3))


def reconstruction(m: nn.Module, noise: float = 0.0):
    def loss(batch: Batch, step: int) -> dict[str, torch.Tensor]:
        error = (m(batch.x + noise * torch.randn_like(batch.x)) - batch.x).square().mean()
        return {"loss": error, "twice": 2 * error}

    return loss


def weights(m: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in m.parameters()]


def equal(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(p, q) for p, q in pairs)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("batch_size", [16, 64])
def test_it_is_a_hand_written_adam_loop_to_the_bit(batch_size: int, weight_decay: float) -> None:
    ours, theirs, data = model(), model(), Recording(X)
    recipe = Recipe(max_steps=40, batch_size=batch_size, schedule="constant", clip_norm=None, weight_decay=weight_decay)
    minimise(ours, reconstruction(ours), data, recipe)
    kind = torch.optim.AdamW if weight_decay else torch.optim.Adam
    adam = kind(theirs.parameters(), lr=1e-3, weight_decay=weight_decay, fused=True)
    for index in data.asked:
        adam.zero_grad()
        (theirs(X[index]) - X[index]).square().mean().backward()
        adam.step()
    assert len(data.asked) == 40
    assert equal(ours, theirs)
    assert not equal(ours, model())


@pytest.mark.parametrize(("n", "batch_size", "sizes"), [(50, 16, [16] * 3), (20, 16, [16, 4]), (10, 16, [10])])
def test_every_epoch_is_a_permutation_and_short_batches_are_dropped(n, batch_size, sizes) -> None:
    m, data = model(), Recording(X[:n])
    minimise(m, reconstruction(m), data, Recipe(max_steps=3 * len(sizes), batch_size=batch_size))
    epochs = [data.asked[i : i + len(sizes)] for i in range(0, len(data.asked), len(sizes))]
    for epoch in epochs:
        assert [len(index) for index in epoch] == sizes
        assert len(torch.cat(epoch).unique()) == sum(sizes)
    assert not torch.equal(epochs[0][0], epochs[1][0])


def test_it_is_a_function_of_its_arguments_and_leaves_the_callers_rng_alone() -> None:
    runs = [model(), model(), model()]
    torch.manual_seed(7)
    before = torch.get_rng_state()
    for m, seed in zip(runs, (3, 3, 4), strict=True):
        minimise(m, reconstruction(m, noise=0.1), Rows(Batch(X)), Recipe(max_steps=20), random_state=seed)
        assert torch.equal(before, torch.get_rng_state())
        torch.rand(5)  # what the caller draws in between must not matter
        before = torch.get_rng_state()
    assert equal(runs[0], runs[1])
    assert not equal(runs[0], runs[2])


def test_validation_neither_disturbs_training_nor_sees_other_noise_each_time() -> None:
    plain, watched, draws = model(), nn.Sequential(model(), nn.Dropout(0.5)), []

    def validate() -> float:
        assert not watched.training
        assert not torch.is_grad_enabled()
        draws.append(torch.rand(3))
        return -float(len(draws))  # always better: the last weights are kept

    recipe = Recipe(max_steps=30, validate_every=10)
    watched[1].eval()
    minimise(plain, reconstruction(plain, 0.1), Rows(Batch(X)), recipe)
    result = minimise(watched, reconstruction(watched[0], 0.1), Rows(Batch(X)), recipe, validate=validate)
    assert equal(plain, watched[0])
    assert len(draws) == 3
    assert all(torch.equal(draws[0], d) for d in draws)
    assert (watched.training, watched[1].training) == (True, False)
    assert (result.best_step, result.best_value) == (30, -3.0)


def test_the_best_weights_are_kept_and_patience_stops() -> None:
    m, seen = model(), []
    values = iter([5.0, 3.0, math.nan, 4.0, 4.0, 1.0])

    def validate() -> float:
        seen.append(weights(m))
        return next(values)

    recipe = Recipe(max_steps=100, validate_every=5, patience=3)
    result = minimise(m, reconstruction(m), Rows(Batch(X)), recipe, validate=validate)
    assert (result.stopped, result.steps, result.best_step, result.best_value) == ("early", 25, 10, 3.0)
    assert all(torch.equal(a, b) for a, b in zip(weights(m), seen[1], strict=True))


def test_patience_only_counts_validations_after_min_steps() -> None:
    m = model()
    values = iter([1.0, *[2.0] * 19])
    recipe = Recipe(max_steps=100, validate_every=5, patience=2, min_steps=30)
    result = minimise(m, reconstruction(m), Rows(Batch(X)), recipe, validate=lambda: next(values))
    assert (result.stopped, result.steps) == ("early", 35)  # 30 and 35


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.99, 0.999])
def test_averaged_weights_follow_the_definition(decay: float) -> None:
    m, path = model(), []
    every = max(1, min(32, round(0.02 / (1 - decay))))

    def loss(batch: Batch, step: int) -> dict[str, torch.Tensor]:
        path.append(weights(m))
        return {"loss": (m(batch.x) - batch.x).square().mean()}

    minimise(m, loss, Rows(Batch(X)), Recipe(max_steps=60, ema_decay=decay, learning_rate=0.01))
    last = model()
    minimise(last, reconstruction(last), Rows(Batch(X)), Recipe(max_steps=60, learning_rate=0.01))
    expected = path[0]
    for step, now in enumerate([*path[1:], weights(last)], start=1):
        if step % every == 0:
            d = min(decay, (1 + step) / (10 + step)) ** every
            expected = [d * e + (1 - d) * w for e, w in zip(expected, now, strict=True)]
    for a, b in zip(weights(m), expected, strict=True):
        torch.testing.assert_close(a, b)


def test_validation_sees_the_averaged_weights_and_they_are_kept() -> None:
    m, seen = model(), []

    def validate() -> float:
        seen.append(weights(m))
        return -float(len(seen))

    recipe = Recipe(max_steps=40, validate_every=20, ema_decay=0.9)
    minimise(m, reconstruction(m), Rows(Batch(X)), recipe, validate=validate)
    without = model()
    minimise(without, reconstruction(without), Rows(Batch(X)), recipe)
    assert all(torch.equal(a, b) for a, b in zip(weights(m), seen[-1], strict=True))
    assert equal(m, without)


def test_gradients_are_clipped_to_the_norm() -> None:
    from latentfit.training.updates import clip, gradient_norm

    gradients = [torch.full((3,), 4.0), torch.zeros(2, 2)]
    norm = gradient_norm(gradients).item()
    assert norm == pytest.approx(math.sqrt(48))
    clip(gradients, norm, 100.0)
    assert gradients[0].tolist() == [4.0] * 3
    clip(gradients, norm, 1.0)
    assert gradient_norm(gradients).item() == pytest.approx(1.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_single_bad_step_is_skipped_and_counted(bad: float) -> None:
    m, before, after = model(), [], []

    def loss(batch: Batch, step: int) -> dict[str, torch.Tensor]:
        if step == 7:
            before.extend(weights(m))
        if step == 8:
            after.extend(weights(m))
        error = (m(batch.x) - batch.x).square().mean()
        return {"loss": error * (bad if step == 7 else 1.0)}

    result = minimise(m, loss, Rows(Batch(X)), Recipe(max_steps=20))
    assert (result.skipped_steps, result.rollbacks, result.steps) == (1, 0, 20)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(math.isfinite(record["loss"]) for record in result.history if "loss" in record)


def test_a_bad_gradient_under_a_finite_loss_is_skipped() -> None:
    m = model()

    def loss(batch: Batch, step: int) -> dict[str, torch.Tensor]:
        x = batch.x * (0.0 if step == 3 else 1.0)
        return {"loss": (m[0](x) * 0 + x[:, :1] * m[0].bias).square().sum().sqrt()}  # sqrt'(0) is infinite

    assert minimise(m, loss, Rows(Batch(X)), Recipe(max_steps=10)).skipped_steps == 1
    assert all(p.isfinite().all() for p in m.parameters())


def test_several_bad_steps_roll_back_at_half_the_rate() -> None:
    m = nn.Sequential(model(), nn.BatchNorm1d(3))
    good: list[dict[str, torch.Tensor]] = []
    found: list[dict[str, torch.Tensor]] = []

    def state() -> dict[str, torch.Tensor]:
        return {key: value.clone() for key, value in m.state_dict().items()}

    def loss(batch: Batch, step: int) -> dict[str, torch.Tensor]:
        if step == 10:
            good.append(state())
        if step == 20:
            found.append(state())
        bad = 15 <= step < 20
        return {"loss": (m(batch.x * (math.nan if bad else 1.0)) - batch.x).square().mean()}

    result = minimise(m, loss, Rows(Batch(X)), Recipe(max_steps=40, validate_every=10))
    assert (result.rollbacks, result.skipped_steps) == (1, 5)
    assert result.learning_rate == 0.5e-3
    assert good[0].keys() == found[0].keys()
    assert all(torch.equal(good[0][key], found[0][key]) for key in good[0])  # the poisoned BatchNorm too
    assert all(value.isfinite().all() for value in m.state_dict().values())


def test_after_three_roll_backs_the_error_names_the_term_and_the_last_good_weights_stay(tmp_path) -> None:
    m, kept = model(), []

    def loss(batch: Batch, step: int) -> dict[str, torch.Tensor]:
        if step == 20:
            kept.extend(weights(m))
        error = (m(batch.x) - batch.x).square().mean()
        kl = error * (math.inf if step >= 20 else 0.0)
        return {"loss": error + kl, "fit": error, "kl": kl}

    with pytest.raises(TrainingError) as caught:
        minimise(m, loss, Rows(Batch(X)), Recipe(max_steps=99, validate_every=10), what="mixture", random_state=1)
    assert str(caught.value) == (
        "Training stopped at step 40: the term 'kl' became infinite after 3 roll-backs (mixture, seed 1; "
        "last good step 20 kept). Usual cause: a log-scale or log-variance ran away. Try learning_rate=3e-04."
    )
    assert all(torch.equal(a, b) for a, b in zip(weights(m), kept, strict=True))


def test_a_loss_module_is_trained_and_shared_parameters_only_once() -> None:
    class Objective(nn.Module):
        def __init__(self, m: nn.Module) -> None:
            super().__init__()
            self.m = m
            self.log_scale = nn.Parameter(torch.zeros(()))

        def forward(self, batch: Batch, step: int) -> dict[str, torch.Tensor]:
            error = (self.m(batch.x) - batch.x).square().mean()
            return {"loss": error * (-2 * self.log_scale).exp() + 2 * self.log_scale}

    m = model()
    objective = Objective(m)
    minimise(m, objective, Rows(Batch(X)), Recipe(max_steps=100, learning_rate=0.01))
    assert objective.log_scale.item() < -0.05
    assert not equal(m, model())


def test_a_parameter_group_keeps_its_own_rate() -> None:
    m = model()
    frozen = weights(m[2])
    groups = [{"params": list(m[2].parameters()), "lr": 0.0}]
    minimise(m, reconstruction(m), Rows(Batch(X)), Recipe(max_steps=20), parameter_groups=groups)
    assert all(torch.equal(a, b) for a, b in zip(weights(m[2]), frozen, strict=True))
    assert not torch.equal(m[0].weight, model()[0].weight)


def test_bf16_runs_the_loss_under_autocast_and_keeps_fp32_weights(monkeypatch) -> None:
    monkeypatch.setattr(precision, "_cpu_has_bf16", lambda: True)
    m, seen = model(), set()

    def loss(batch: Batch, step: int) -> dict[str, torch.Tensor]:
        out = m(batch.x)
        seen.add(out.dtype)
        return {"loss": (out.float() - batch.x).square().mean()}

    minimise(m, loss, Rows(Batch(X)), Recipe(max_steps=5, precision="bf16"))
    assert seen == {torch.bfloat16}
    assert m[0].weight.dtype == torch.float32


@pytest.mark.parametrize("has_it", [True, False])
def test_bf16_on_a_processor_without_it_warns(monkeypatch, has_it: bool) -> None:
    monkeypatch.setattr(precision, "_cpu_has_bf16", lambda: has_it)
    m = model()
    expected = nullcontext() if has_it else pytest.warns(ReliabilityWarning, match="no instructions")
    with expected:
        minimise(m, reconstruction(m), Rows(Batch(X)), Recipe(max_steps=1, precision="bf16"))


def test_the_history_averages_every_step_once() -> None:
    m, raw = model(), []

    def loss(batch: Batch, step: int) -> dict[str, torch.Tensor]:
        error = (m(batch.x) - batch.x).square().mean()
        raw.append(error.item())
        return {"loss": error, "twice": 2 * error}

    result = minimise(m, loss, Rows(Batch(X)), Recipe(max_steps=1000, validate_every=170))
    assert [r["step"] for r in result.history] == sorted({*range(5, 1001, 5), *range(170, 1001, 170)})
    start = 0
    for r in result.history:
        assert r["loss"] == pytest.approx(sum(raw[start : r["step"]]) / (r["step"] - start))
        assert r["twice"] == pytest.approx(2 * r["loss"])
        start = r["step"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_steps": 0}, "max_steps must be a whole number of at least 1, got 0."),
        ({"max_steps": 2.5}, "max_steps must be a whole number of at least 1, got 2.5."),
        ({"batch_size": -1}, "batch_size must be a whole number of at least 1, got -1."),
        ({"learning_rate": 0.0}, "learning_rate must be above 0 and finite, got 0.0."),
        ({"learning_rate": math.nan}, "learning_rate must be above 0 and finite, got nan."),
        ({"ema_decay": 1.0}, "ema_decay must be at least 0 and below 1, got 1.0."),
        ({"clip_norm": 0.0}, "clip_norm must be above 0 and finite, got 0.0."),
        ({"schedule": "step"}, "schedule must be one of one_cycle, cosine, constant, got 'step'."),
        ({"precision": "fp16"}, "precision must be one of fp32, bf16, got 'fp16'."),
        ({"patience": 0}, "patience must be a whole number of at least 1, got 0."),
    ],
)
def test_bad_recipes_are_one_clear_line(arguments, message) -> None:
    with pytest.raises(InputError) as caught:
        Recipe(**arguments)
    assert str(caught.value) == message


def test_bad_calls_are_one_clear_line() -> None:
    m, data = model(), Rows(Batch(X))
    with pytest.raises(InputError, match="must return a dict with a scalar tensor under 'loss', got"):
        minimise(m, lambda batch, step: {"total": m(batch.x).mean()}, data, Recipe(max_steps=2))
    with pytest.raises(InputError, match="depends on no parameter"):
        minimise(m, lambda batch, step: {"loss": batch.x.mean()}, data, Recipe(max_steps=2))
    with pytest.raises(InputError, match="nothing to train"):
        minimise(model().requires_grad_(False), reconstruction(m), data, Recipe(max_steps=2))
    with pytest.raises(InputError, match="no rows"):
        minimise(m, reconstruction(m), Rows(Batch(X[:0])), Recipe(max_steps=2))
    with pytest.raises(InputError, match="device must be"):
        minimise(m, reconstruction(m), data, Recipe(max_steps=2, device="abacus"))


@pytest.mark.parametrize("schedule", ["one_cycle", "cosine", "constant"])
@pytest.mark.parametrize("max_steps", [1, 7, 1000])
def test_rates_are_positive_peak_at_the_learning_rate_and_end_low(schedule, max_steps) -> None:
    recipe = Recipe(max_steps=max_steps, schedule=schedule)
    rates = [recipe.rate(step) for step in range(max_steps)]
    assert min(rates) > 0
    assert max(rates) == pytest.approx(1e-3)
    if max_steps == 1000:
        peak = rates.index(max(rates))
        assert rates[:peak] == sorted(rates[:peak])
        assert rates[peak:] == sorted(rates[peak:], reverse=True)
        assert rates[-1] == 1e-3 if schedule == "constant" else rates[-1] < 1e-8


def test_a_restarted_parameter_is_trained_as_from_its_first_step() -> None:
    """Adam's first step moves by the rate whatever the gradient; a later one after large gradients by less."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))

    two, moved = Two(), []

    def both(batch: Batch, step: int) -> dict[str, torch.Tensor]:
        moved.append((two.a.item(), two.b.item()))
        return {"loss": (two.a + two.b) * (1.0 if step < 10 else 0.01)}

    @torch.no_grad()
    def restart() -> list[nn.Parameter]:
        two.a.fill_(5.0)
        return [two.a]

    recipe = Recipe(max_steps=12, batch_size=1, learning_rate=0.1, schedule="constant")
    minimise(two, both, Rows(Batch(torch.zeros(4, 1))), recipe, restarts={10: restart})
    assert moved[10] == (5.0, pytest.approx(-1.0, abs=1e-4))
    assert moved[11][0] == pytest.approx(4.9, abs=1e-4)
    assert moved[11][1] - moved[10][1] > -0.095
