"""Two stages on MNIST with a learned variance: what they win, in samples, over N(0, I), and beside pythae's sampler.

    python benchmarks/two_stage_mnist.py                                  # resumable; run it again to go on
    pip install --target /tmp/pythae --no-deps pythae==0.1.2 ...        # and what it imports, apart from this package
    python benchmarks/two_stage_mnist.py --pythae /tmp/pythae

The first stage is a VAE with one learned sigma on grey images, 64 latents (Dai & Wipf 2019: kappa = 64). Samples are
decoder means, as in the paper, compared with test images by the Frechet distance in 64 features of a classifier trained
here. Beside it: sampled codes' standard deviation over that of q(z), per active dimension, and the Frechet distance of
codes. pythae's second stage is fitted to the very same codes, in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from torch import Tensor, nn

from latentfit import methods, priors, saving
from latentfit.data import Batch, Rows, grey_to_unit, load
from latentfit.divergences import frechet_distance
from latentfit.evaluation.codes import encode_rows
from latentfit.evaluation.collapse import active_units
from latentfit.model import VAEModule, fit
from latentfit.networks import MLP
from latentfit.training import Recipe, minimise
from latentfit.training.rng import isolated_rng

RESULTS = Path(__file__).parent / "results" / "two_stage_mnist.json"
SAMPLES = 10_000

#: run where pythae is on the path: its TwoStageVAESampler on given codes; its VAE hands them through
PYTHAE = """
import sys, time, numpy as np, torch
from torch import nn
from pythae.models import VAE, VAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from pythae.samplers import TwoStageVAESampler, TwoStageVAESamplerConfig
from pythae.trainers import BaseTrainerConfig
torch.set_num_threads(1); torch.manual_seed(0)
source, target, epochs, n = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
codes = torch.as_tensor(np.load(source)); low, high = codes.min(), codes.max(); d = codes.shape[1] // 2
class Encoder(BaseEncoder):
    def forward(self, x):
        x = low + (high - low) * x.reshape(len(x), -1)
        return ModelOutput(embedding=x[:, :d], log_covariance=x[:, d:])
class Decoder(BaseDecoder):
    def forward(self, z):
        return ModelOutput(reconstruction=torch.cat((z, z), 1))
model = VAE(VAEConfig(input_dim=(2 * d,), latent_dim=d), encoder=Encoder(), decoder=Decoder())
sampler = TwoStageVAESampler(model, TwoStageVAESamplerConfig(second_stage_depth=3, second_layers_dim=1024))
start = time.time()
sampler.fit(((codes - low) / (high - low)).clamp(0, 1), training_config=BaseTrainerConfig(
    output_dir=target + ".run", num_epochs=epochs, learning_rate=1e-3, per_device_train_batch_size=500, no_cuda=True))
drawn = sampler.sample(num_samples=n, batch_size=500, return_gen=True, save_sampler_config=False)
np.savez(target, z=drawn[:, :d].detach().numpy(), seconds=time.time() - start)
"""


def classifier(folder: Path, x: Tensor, label: Tensor) -> nn.Module:
    """An MLP whose 64 last hidden units are the features."""
    with isolated_rng(0):
        net = nn.Sequential(MLP(784, 64, hidden=[256]), nn.SiLU(), nn.Linear(64, 10))

    def loss(batch: Batch, step: int) -> dict[str, Tensor]:
        return {"loss": nn.functional.cross_entropy(net(batch.x), label[batch.index])}

    recipe = Recipe(max_steps=3_000, batch_size=200, learning_rate=1e-3)
    minimise(net, loss, Rows(Batch(x)), recipe, run_dir=folder / "classifier", what="classifier")
    return net.eval().requires_grad_(False)


def first_stage(folder: Path, x: Tensor, steps: int, device: str) -> VAEModule:
    method = methods.get("standard")
    with isolated_rng(0):
        vae = methods.build(
            method,
            data_shape=(784,),
            latent_dim=64,
            likelihood={"name": "normal", "args": {"scale": "learned", "floor": 1 / 255}},
            network="gated_mlp",
            network_args={"hidden": [400, 400]},
        )
    recipe = Recipe(
        max_steps=steps, batch_size=200, learning_rate=1e-3, ema_decay=0.999, clip_norm=2_000.0, device=device
    )
    fit(vae, Batch(x), objective=method.objective(steps), recipe=recipe, run_dir=folder / "first")
    return vae.cpu()


def fitted(folder: Path, mean: Tensor, std: Tensor, steps: int | None, device: str) -> tuple[priors.Prior, float]:
    path = folder / "two_stage"
    if not path.exists():
        start = time.perf_counter()
        prior = priors.create("two_stage", latent_dim=mean.shape[1]).to(device)
        prior.fit(mean, std=std, max_steps=steps)
        saving.save_component(prior.cpu(), path)
        (path / "seconds").write_text(str(time.perf_counter() - start))
    return priors.load(path), float((path / "seconds").read_text())


def pythae_codes(packages: Path, folder: Path, mean: Tensor, std: Tensor, epochs: int) -> tuple[Tensor, float]:
    path = folder / "pythae.npz"
    if not path.exists():
        with tempfile.TemporaryDirectory() as work:
            source = Path(work) / "codes.npy"
            np.save(source, torch.cat((mean, 2 * std.log()), 1).numpy())
            path_of = os.pathsep.join([str(packages), os.environ.get("PYTHONPATH", "")])
            run = [sys.executable, "-c", PYTHAE, str(source), str(path), str(epochs), str(SAMPLES)]
            subprocess.run(run, check=True, env={**os.environ, "PYTHONPATH": path_of})
    found = np.load(path)
    return torch.as_tensor(found["z"]), float(found["seconds"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20_000, help="of the first stage")
    parser.add_argument("--second-steps", type=int, default=None)
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--pythae", type=Path, default=None, help="folder with pythae and what it imports")
    parser.add_argument("--pythae-epochs", type=int, default=20)
    parser.add_argument("--data-dir", type=Path, default=None)
    parser.add_argument("--folder", type=Path, default=Path("runs/two-stage-mnist"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    a = parser.parse_args()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    folder = a.folder / f"{a.rows}-{a.steps}"
    folder.mkdir(parents=True, exist_ok=True)
    source = load("mnist", a.data_dir)
    x, is_test = torch.as_tensor(grey_to_unit(source.x)).flatten(1), torch.as_tensor(source.is_test)
    train, test = x[~is_test][: a.rows], x[is_test]
    label = torch.as_tensor(np.asarray(source.labels))
    net = classifier(folder, train, label[~is_test][: a.rows])
    accuracy = float((net(test).argmax(1) == label[is_test]).float().mean())
    vae = first_stage(folder, train, a.steps, a.device).eval()
    codes, held_out = encode_rows(vae, Batch(train)), encode_rows(vae, Batch(test))
    spread = (codes.mean.var(0) + codes.std.square().mean(0)).sqrt()
    active = torch.as_tensor(active_units(codes).active)
    reference, q = net[:2](test), held_out.sample(1, torch.Generator().manual_seed(0))[0]
    generator = torch.Generator().manual_seed(1)
    draws: dict[str, tuple[Tensor, float]] = {"N(0, I)": (vae.prior.sample(SAMPLES, generator=generator), 0.0)}
    prior, seconds = fitted(folder, codes.mean, codes.std, a.second_steps, a.device)
    draws["two_stage"] = (prior.sample(SAMPLES, generator=generator), seconds)
    if a.pythae is not None:
        draws["pythae"] = pythae_codes(a.pythae.resolve(), folder, codes.mean, codes.std, a.pythae_epochs)
    draws["codes of test images (floor)"] = (q, 0.0)
    table = {}
    with torch.no_grad():
        for name, (z, taken) in draws.items():
            ratio = (z.std(0) / spread)[active]
            table[name] = {
                "frechet_of_samples": frechet_distance(net[:2](vae.decode_mean(z)), reference),
                "frechet_of_codes": frechet_distance(z, q),
                "spread": {"least": float(ratio.min()), "mean": float(ratio.mean()), "most": float(ratio.max())},
                "fit_seconds": taken,
            }
            print(name, table[name], flush=True)
    facts = {
        "protocol": f"{a.rows} images, gated MLP 2 x 400, 64 latents, learned sigma, {a.steps} steps of 200; "
        f"{SAMPLES} samples against 10,000 test images",
        "classifier_accuracy": accuracy,
        "sigma": float(vae.likelihood.log_scale.exp()),
        "active_units": int(active.sum()),
        "times_lower_than_standard": table["N(0, I)"]["frechet_of_samples"] / table["two_stage"]["frechet_of_samples"],
        "torch": torch.__version__,
        "arms": table,
    }
    saving.write_atomic(a.out, json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
