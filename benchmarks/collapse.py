"""A VAE that collapses, and what brings its units back.

    python benchmarks/collapse.py  # ten minutes of one core; stores results/collapse.json

Data: scikit-learn's digits, black and white, 1,400 rows for training and 397 held out. A decoder of 64 dense layers
without skip connections: at KL weight 1 from the first step the encoder gives its 16 units up before the decoder has
learned to use them. The decoder is that deep and the run that long because with fewer of either the collapse is not
complete: after 1,000 steps some units still move a little, and 32 or 40 layers begin to use one within 2,000. Every
remedy has the same networks, steps and seed; log p(x) by importance sampling with 500 draws.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import numpy as np
import torch
from _timing import one_thread, store

import latentfit as lf
from latentfit.evaluation import active_units, elbo_terms, encode_rows, log_likelihood
from latentfit.training.rng import isolated_rng

STEPS, LATENT_DIM, DEPTH = 2_000, 16, 64

REMEDIES: dict[str, Callable[[], lf.ELBO]] = {
    "weight 1 from the start": lambda: lf.ELBO(1.0),
    "free_bits, 4 nats over all": lambda: lf.ELBO(kl_term=lf.kl_terms.free_bits(4.0, groups="all")),
    "free_bits, 0.25 nats a unit": lambda: lf.methods.get("free_bits").objective(STEPS),
    "annealed": lambda: lf.methods.get("annealed").objective(STEPS),
    "cyclical": lambda: lf.methods.get("cyclical").objective(STEPS),
    "capacity, 5 nats": lambda: lf.ELBO(2.0, kl_term=lf.kl_terms.capacity(5.0)),
    "warm-up of a tenth (standard)": lambda: lf.methods.get("standard").objective(STEPS),
}


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    """Digits as 0 and 1, shuffled."""
    from sklearn.datasets import load_digits

    x = (load_digits().data >= 8).astype("float32")
    x = torch.from_numpy(x[np.random.default_rng(0).permutation(len(x))])
    return x[:1_400], x[1_400:]


def main() -> None:
    """Train and judge each."""
    one_thread()
    train, test = rows()
    table = {}
    for name, objective in REMEDIES.items():
        with isolated_rng(0):
            vae = lf.VAEModule(
                encoder=lf.networks.create("mlp", in_shape=64, out_shape=2 * LATENT_DIM, hidden=[128]),
                decoder=lf.networks.create(
                    "mlp", in_shape=LATENT_DIM, out_shape=64, hidden=[64] * DEPTH, activation="relu"
                ),
                latent_dim=LATENT_DIM,
                likelihood="bernoulli",
            )
        began = time.process_time()
        lf.fit(vae, train, objective=objective(), max_steps=STEPS, patience=None)
        seconds = time.process_time() - began
        terms, codes = elbo_terms(vae, test), encode_rows(vae, test)
        scored = log_likelihood(vae, test, X_train=train, n_importance_samples=500)
        table[name] = {
            "active_units": int(active_units(codes)),
            "kl": round(terms.kl.value, 2),
            "elbo": round(terms.elbo.value, 2),
            "log_px": round(scored.estimate.value, 2),
            "std_error": round(scored.estimate.std_error, 2),
            "seconds": round(seconds, 1),
        }
        print(name, json.dumps(table[name]), flush=True)
        store("collapse", {"steps": STEPS, "decoder_layers": DEPTH, "rows": table})


if __name__ == "__main__":
    main()
