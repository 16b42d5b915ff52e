"""The command that a diagnosis names for what comes next."""

from __future__ import annotations

from pathlib import Path

from latentfit.cli.subject import Asked


def test_it_is_of_the_same_model_and_rows():
    run = Asked(run=Path("runs/my run"))
    assert run.retrofit_command(None) == "latentfit retrofit 'runs/my run'"
    own = Asked(model="m.py:vae", data="x.npy", likelihood="bernoulli", output_kind="logits", data_dir=Path("d"))
    assert own.retrofit_command("donor.npy") == (
        "latentfit retrofit --model m.py:vae --data x.npy --groups donor.npy --data-dir d --likelihood bernoulli "
        "--output-kind logits"
    )
