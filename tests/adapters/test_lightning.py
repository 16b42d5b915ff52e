"""A real LightningModule: trained by its Trainer where there is one, adapted as any module."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from latentfit.adapters import adapt
from latentfit.evaluation.codes import encode_rows

lightning = pytest.importorskip("pytorch_lightning")
pytestmark = pytest.mark.filterwarnings("default")  # a foreign package's own


class LitVAE(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU())
        self.moments, self.out = nn.Linear(8, 4), nn.Linear(2, 6)

    def encode(self, x):
        return self.moments(self.body(x)).chunk(2, dim=1)

    def decode(self, z):
        return self.out(z)

    def training_step(self, batch, index):
        mean, logvar = self.encode(batch[0])
        z = mean + torch.randn_like(mean) * (0.5 * logvar).exp()
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(1).mean()
        loss = F.mse_loss(self.decode(z), batch[0]) + 0.01 * kl
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-2)


def test_trained_and_adapted(tmp_path, gain_is_real) -> None:
    torch.manual_seed(0)
    x = torch.randn(256, 2) @ torch.randn(2, 6)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), batch_size=64, shuffle=True)
    model = LitVAE()
    trainer = lightning.Trainer(
        max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(model, loader)
    model.train()
    adapted = adapt(
        model, example=loader, likelihood="normal", kl_weight=0.01, reconstruction="mse_mean", spread="logvar"
    )
    assert adapted.model_name == "LitVAE"
    gain_is_real(adapted, x[:48])
    with torch.no_grad():
        mean, _ = model.eval().encode(x[:8])
    torch.testing.assert_close(encode_rows(adapted, x[:8]).mean, mean)
